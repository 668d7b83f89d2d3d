//! What `tranship-monitor` does, from top to bottom. One thread, one `poll`: nothing here waits for the daemon.

mod events;
mod held_memory;
mod invoke;
mod log_file;
mod setup;
mod stdio;

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::super::cgroup::Cgroup;
use super::job::{Action, Job, Report};
use super::record::{ExitStatus, MonitorRecord, ProcessId, keep_room, write_record};
use events::{Ended, Events, Order};
use invoke::{Invocation, RuncFailed};
use stdio::Stdio;

/// How long what is left in the pipes may take to arrive once the container has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Runs a monitor: the job is on standard input, reports go to standard output, everything else to standard error.
#[must_use]
pub fn run() -> ExitCode {
    match setup::job().and_then(|job| Monitor::of(job).map_err(setup::SetupError::from)) {
        Ok(mut monitor) => monitor.life(),
        Err(error) => {
            report(&Report::Failed {
                stage: "monitor".to_owned(),
                detail: chain(&error),
            });
            ExitCode::FAILURE
        }
    }
}

/// Between two looks at processes that are ending, or at their cgroup.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

struct Monitor {
    job: Job,
    me: ProcessId,
    events: Events,
    deadline: Instant,
}

impl Monitor {
    fn of(job: Job) -> io::Result<Self> {
        let me = setup::detach(&job)?;
        let deadline = Instant::now() + Duration::from_millis(job.deadline_ms);
        let events = Events::new(&job.bundle.join("container.log"))?;
        Ok(Self {
            job,
            me,
            events,
            deadline,
        })
    }

    /// The whole of it.
    fn life(&mut self) -> ExitCode {
        match self.begin() {
            Ok(init) => {
                report(&Report::Running { pid: init.pid });
                setup::stop_reporting();
                self.watch(&init);
                self.leave_cgroup();
                ExitCode::SUCCESS
            }
            Err((stage, detail)) => {
                self.remove();
                complain(
                    "remove monitor.json",
                    fs::remove_file(self.job.bundle.join("monitor.json")),
                );
                self.leave_cgroup();
                report(&Report::Failed {
                    stage: stage.to_owned(),
                    detail,
                });
                ExitCode::FAILURE
            }
        }
    }

    fn leave_cgroup(&self) {
        let own = Cgroup::at(&self.job.monitor_cgroup);
        complain("leave the cgroup", patiently(|| own.leave()));
    }

    /// Until the container runs.
    fn begin(&mut self) -> Result<ProcessId, (&'static str, String)> {
        self.record(None, 0)
            .map_err(|error| ("monitor", format!("cannot write monitor.json: {error}")))?;
        match self.job.action.clone() {
            Action::Create => {
                let init = self
                    .bring_up("create", &[])
                    .map_err(|failed| ("create", failed.0))?;
                report(&Report::Created { pid: init.pid });
                self.await_order(&init).map_err(|failed| ("start", failed.0))?;
                self.note(&init).map_err(|failed| ("start", failed.0))?;
                self.call("start").map_err(|failed| ("start", failed.0))?;
                Ok(init)
            }
            Action::Restore { arguments, filler } => {
                // Once the tasks run nothing may fail any more for want of room.
                let kept = keep_room(&self.job.bundle.join("monitor.json"));
                kept.map_err(|error| ("monitor", format!("cannot keep room for monitor.json: {error}")))?;
                if let Some(directory) = filler {
                    let held = self.events.hold_memory(&directory, &self.job.cgroup);
                    held.map_err(|error| ("restore", format!("the filler cannot be reached: {error}")))?;
                }
                let init = self
                    .bring_up("restore", &arguments)
                    .map_err(|failed| ("restore", failed.0))?;
                self.note(&init).map_err(|failed| ("restore", failed.0))?;
                Ok(init)
            }
        }
    }

    /// Until the daemon says that the created container shall run.
    fn await_order(&mut self, init: &ProcessId) -> Result<(), RuncFailed> {
        match self
            .events
            .order(init.pid, self.deadline)
            .map_err(RuncFailed::because("wait for the daemon"))?
        {
            Order::Start => Ok(()),
            Order::Gone => Err(RuncFailed(
                "the daemon went away before the container was started".to_owned(),
            )),
            Order::Late => Err(RuncFailed(
                "nobody started the created container in time".to_owned(),
            )),
            Order::Pointless => Err(RuncFailed(
                "the first process ended before it was started".to_owned(),
            )),
        }
    }

    fn note(&self, init: &ProcessId) -> Result<(), RuncFailed> {
        self.record(Some(init.clone()), now_ms())
            .map_err(RuncFailed::because("write monitor.json"))
    }

    /// `runc create` or `runc restore`, and the first process that it leaves with us.
    fn bring_up(&mut self, command: &'static str, arguments: &[String]) -> Result<ProcessId, RuncFailed> {
        let stdio = Stdio::new().map_err(RuncFailed::because("make the pipes"))?;
        let child = Invocation::of(&self.job, command).bring_up(arguments, stdio.for_child()?)?;
        self.events.listen(stdio.ours);
        self.events.hold();
        report(&Report::RuncStarted);
        let ended = self
            .events
            .wait_for(child, Some(self.deadline))
            .map_err(RuncFailed::because("wait for runc"))?;
        if ended != Some(Ended::Exited(0)) {
            let said = self.events.take_held();
            return Err(invoke::failure(child, ended, &said));
        }
        let pid = invoke::read_pid(&self.job)?;
        let init =
            ProcessId::of(pid).map_err(RuncFailed::because("look at the container's first process"))?;
        self.events.release();
        Ok(init)
    }

    /// Another call of runc, to its end.
    fn call(&mut self, command: &'static str) -> Result<(), RuncFailed> {
        let (child, mut said) = Invocation::of(&self.job, command).spawn()?;
        let ended = self
            .events
            .wait_for(child, Some(self.deadline))
            .map_err(RuncFailed::because("wait for runc"))?;
        if ended == Some(Ended::Exited(0)) {
            Ok(())
        } else {
            Err(invoke::failure(child, ended, &said.read()))
        }
    }

    /// Until the container has ended, and a little longer.
    fn watch(&mut self, init: &ProcessId) {
        let ended = self.events.wait_for(init.pid, None);
        let finished_ms = now_ms();
        complain(
            "read what the container wrote last",
            self.events.drain(Instant::now() + DRAIN_DEADLINE),
        );
        let oom_killed = Cgroup::at(&self.job.cgroup).was_oom_killed();
        self.remove();
        let exit_code = match ended {
            Ok(Some(ended)) => Some(ended.exit_code()),
            Ok(None) => None,
            Err(error) => {
                complain("wait for the container", Err(error));
                None
            }
        };
        let status = ExitStatus {
            exit_code,
            finished_ms,
            oom_killed,
            memory_lost: self.events.memory_lost(),
        };
        complain(
            "write how the container ended",
            write_record(&self.job.bundle.join("exit"), &status),
        );
    }

    /// Ends what is left of the container, and removes what runc keeps of it. runc itself does the latter for a container that
    /// it has brought up; one that was given up in the middle may be unknown to it and still have processes.
    fn remove(&mut self) {
        self.deadline = Instant::now() + invoke::DELETE_DEADLINE;
        complain("end the container's processes", self.kill_all());
        if self.job.runc_root.join(self.job.id.as_str()).exists() {
            let deleted = self.call("delete").map_err(|failed| io::Error::other(failed.0));
            complain("remove the container from runc", deleted);
        }
        let cgroup = Cgroup::at(&self.job.cgroup);
        complain(
            "remove the container's cgroup",
            patiently(|| cgroup.remove_everywhere()),
        );
    }

    /// The container's processes, and what a runc that was given up has left us as children.
    fn kill_all(&mut self) -> io::Result<()> {
        let cgroup = Cgroup::at(&self.job.cgroup);
        loop {
            let children = setup::children()?;
            if children.is_empty() && cgroup.processes()?.is_empty() {
                return Ok(());
            }
            for child in children {
                kill(Pid::from_raw(child), Signal::SIGKILL).ok();
            }
            cgroup.kill_all().map_err(|(_, error)| error)?;
            let now = Instant::now();
            if now >= self.deadline {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "they do not end"));
            }
            // Children are there until they have been reaped.
            self.events.turn(Some(now + LOOK_AGAIN))?;
        }
    }

    fn record(&self, init: Option<ProcessId>, started_ms: i64) -> io::Result<()> {
        let record = MonitorRecord {
            monitor: self.me.clone(),
            init,
            started_ms,
        };
        write_record(&self.job.bundle.join("monitor.json"), &record)
    }
}

fn report(report: &Report) {
    let line = serde_json::to_string(report).unwrap_or_default();
    // A daemon that is gone asks `find` when it is back.
    writeln!(io::stdout(), "{line}").ok();
}

/// Writes to `monitor.log` what nobody can be told.
fn complain(what: &str, done: io::Result<()>) {
    if let Err(error) = done {
        writeln!(io::stderr(), "{} cannot {what}: {error}", jiff::Timestamp::now()).ok();
    }
}

/// Tries again while the kernel still takes apart a process that has been reaped already: its cgroup is busy until then.
fn patiently(remove: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + DRAIN_DEADLINE;
    loop {
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                std::thread::sleep(LOOK_AGAIN);
            }
            removed => return removed,
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX)
}
