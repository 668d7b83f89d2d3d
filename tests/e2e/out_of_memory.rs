//! The memory of a daemon and of what it starts from one step of a migration on runs out: the kernel kills the daemon, runc, CRIU or
//! whoever asks for more. One host runs the container all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tranship_tests::faults::{self, host_of};
use tranship_tests::field::{Course, Field};
use tranship_tests::halfway::{is_in, signal_daemon};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

/// So much more may be used from then on: the next page that anybody asks for is his end.
const ROOM: &str = "0";
/// The kernel has killed somebody by then, or nobody asks for more.
const SHORT: Duration = Duration::from_secs(6);
const AGAIN: Duration = Duration::from_millis(20);

/// CRIU and the relay that runc takes for it.
const PROGRAMS: &str = "for process in /proc/[0-9]*; do case $(readlink $process/exe) in \
    */criu|*/tranship-criu) echo ${process#/proc/} ;; esac; done";

const CGROUPS: &str = "/sys/fs/cgroup/memory";

/// Who is short of memory, together with what he starts.
#[derive(Clone, Copy, Debug)]
enum Who {
    Daemon,
    /// And the relay: with a daemon that has all it needs.
    Criu,
}

/// Where, who, and which host runs the container in the end; either, where nobody knows when the
/// daemon asks for more, if it does before the end.
type Step = (&'static str, Who, Option<&'static str>);

const STEPS: [Step; 21] = [
    ("source:describe", Who::Daemon, Some("a")),
    ("source:track-memory", Who::Daemon, Some("a")),
    ("source:prepare-dump", Who::Daemon, Some("a")),
    ("source:freeze", Who::Daemon, None),
    ("source:dump", Who::Daemon, None),
    ("source:dump", Who::Criu, Some("a")),
    ("destination:reserve", Who::Daemon, Some("a")),
    ("destination:page-keeper", Who::Daemon, Some("a")),
    ("destination:prepare-restore", Who::Daemon, Some("a")),
    ("destination:restore-held", Who::Daemon, None),
    ("destination:restore-held", Who::Criu, Some("a")),
    ("source:receive-ready", Who::Daemon, None),
    ("source:journal-committed", Who::Daemon, None),
    ("source:send-go", Who::Daemon, Some("b")),
    ("destination:receive-go", Who::Daemon, Some("b")),
    ("destination:journal-resuming", Who::Daemon, Some("b")),
    ("destination:release", Who::Daemon, Some("b")),
    ("destination:release", Who::Criu, None),
    ("destination:adopt", Who::Daemon, Some("b")),
    ("source:receive-running", Who::Daemon, Some("b")),
    ("source:remove-copy", Who::Daemon, Some("b")),
];

/// Until a migration is over that was asked for once more.
const OVER: Duration = Duration::from_secs(20);

/// Until a preflight waits for its answer.
const ASKED: Duration = Duration::from_millis(300);

#[test]
fn whoever_runs_out_of_memory_loses_no_container() -> Result<()> {
    try_each(
        &[STEPS[0], STEPS[2], STEPS[5], STEPS[10], STEPS[13], STEPS[15]],
        &["b"],
    )
}

#[test]
#[ignore = "takes long: make faults"]
fn whoever_runs_out_of_memory_at_any_step_loses_no_container() -> Result<()> {
    try_each(&STEPS, &["a", "b"])
}

fn try_each(steps: &[Step], in_preflight: &[&str]) -> Result<()> {
    let mut field = Field::begin()?;
    for host in in_preflight {
        let strike = |scenario: &Scenario| runs_short_in_the_preflight(scenario, host);
        let judge = |course: &Course<u64>| {
            ensure!(course.struck > 0, "nobody was short of memory");
            Ok(())
        };
        let told = format!("from the preflight on there is no memory for {host}'s daemon");
        field.attempt(&told, strike, judge);
    }
    for (point, who, entitled) in steps {
        let strike = |scenario: &Scenario| runs_short(scenario, point, *who);
        let judge = |course: &Course<u64>| {
            eprintln!("the kernel has killed {}", course.struck);
            ensure!(
                course.struck > 0 || entitled.is_none(),
                "nobody was short of memory"
            );
            let right = entitled.is_none_or(|entitled| entitled == course.owner);
            ensure!(right, "{} runs it", course.owner);
            Ok(())
        };
        let told = format!("from {point} on there is no memory for {who:?}");
        field.attempt(&told, strike, judge);
    }
    field.end()
}

/// As [`runs_short`], while the source waits for the answer to its preflight.
fn runs_short_in_the_preflight(scenario: &Scenario, short: &str) -> Result<u64> {
    let (a, b, host) = (scenario.host("a")?, scenario.host("b")?, scenario.host(short)?);
    signal_daemon(b, "STOP")?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    sleep(ASKED);
    ensure!(is_in(a, &id, "preflight")?, "it is not in its preflight");
    let shortage = Shortage::begin(host, Who::Daemon)?;
    signal_daemon(b, "CONT")?;
    lives_or_is_killed(host, a, &id)?;
    let killed = end_shortage(host, shortage)?;
    // It is asked again when it is back, and may have taken the container by the end.
    wait_for("the migration to be over", OVER, || {
        Ok(a.tranship_json(&["migrate", "status", &id])?["outcome"] != "running")
    })?;
    // A daemon that was asked, or has just started, looks at what its CRIU can do: that is not one of the host's processes for long.
    sleep(ASKED);
    wait_for("CRIU to have been looked at", SHORT, || {
        Ok(programs_at_work(a)?.is_empty() && programs_at_work(b)?.is_empty())
    })?;
    Ok(killed)
}

/// Answers how many the kernel has killed.
fn runs_short(scenario: &Scenario, point: &str, who: Who) -> Result<u64> {
    let (a, host) = (scenario.host("a")?, scenario.host(host_of(point))?);
    faults::plan(host, &format!("{point} hold"))?;
    let id = a.tranship(&["migrate", "--detach", "redis", "b"])?;
    faults::wait_held(host, point)?;
    let shortage = Shortage::begin(host, who)?;
    faults::let_go(host, point)?;
    lives_or_is_killed(host, a, &id)?;
    end_shortage(host, shortage)
}

/// Waits until the host's daemon is killed or a's migration over, but not for ever.
fn lives_or_is_killed(host: &Host, a: &Host, id: &str) -> Result<()> {
    let since = Instant::now();
    while daemon::pid(host).is_some() && since.elapsed() < SHORT {
        let record = a.try_tranship(&["--format", "json", "migrate", "status", id])?;
        if record.status.success() && !record.text().contains("\"running\"") {
            break;
        }
        sleep(AGAIN);
    }
    Ok(())
}

/// Everybody has memory again. Answers how many the kernel has killed.
fn end_shortage(host: &Host, shortage: Shortage) -> Result<u64> {
    let lives = daemon::pid(host).is_some();
    let killed = shortage.end()?;
    if !lives {
        faults::start(host)?;
    }
    Ok(killed)
}

/// Of a host that is about to dump or restore a container.
fn programs_at_work(host: &Host) -> Result<Vec<String>> {
    let found = host.run("sh", ["-c", PROGRAMS])?;
    Ok(found.text().lines().map(str::to_owned).collect())
}

/// Somebody and what he starts from now on, in a cgroup with hardly any room.
struct Shortage {
    cgroup: PathBuf,
}

impl Shortage {
    fn begin(host: &Host, who: Who) -> Result<Self> {
        let cgroup = Path::new(CGROUPS)
            .join(host.layout.cgroup())
            .join(host.name())
            .join("short");
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make {}", cgroup.display()))?;
        fs::write(cgroup.join("memory.limit_in_bytes"), ROOM)?;
        // Their host knows them by those numbers.
        let pids = match who {
            Who::Daemon => vec![daemon::pid(host).context("the daemon does not run")?.to_string()],
            Who::Criu => programs_at_work(host)?,
        };
        ensure!(!pids.is_empty(), "{who:?} is not there");
        for pid in pids {
            host.run(
                "sh",
                ["-c", &format!("echo {pid} >{}/cgroup.procs", cgroup.display())],
            )?;
        }
        Ok(Self { cgroup })
    }

    /// Answers how many the kernel has killed. Those that live have memory again.
    fn end(self) -> Result<u64> {
        fs::write(self.cgroup.join("memory.limit_in_bytes"), "-1")?;
        let control = fs::read_to_string(self.cgroup.join("memory.oom_control"))?;
        let killed = control.lines().find_map(|line| line.strip_prefix("oom_kill "));
        let killed = killed.context("the kernel counts whom it kills")?.parse()?;
        let end = Instant::now() + SHORT;
        loop {
            for pid in fs::read_to_string(self.cgroup.join("cgroup.procs"))?.lines() {
                // It may have ended by now.
                let _ = fs::write(Path::new(CGROUPS).join("cgroup.procs"), pid);
            }
            match fs::remove_dir(&self.cgroup) {
                Ok(()) => return Ok(killed),
                Err(_) if Instant::now() < end => sleep(AGAIN),
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot remove {}", self.cgroup.display()));
                }
            }
        }
    }
}
