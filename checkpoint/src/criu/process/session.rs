//! One conversation between runc and CRIU.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message;
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::{DaemonLink, Guard, ProcessError, children, in_words, lost, passed_on};
use crate::criu::rpc::{self, kind};
use crate::criu::unprivileged::Permission;
use crate::criu::wire::{
    Barrier, BarrierStage, Decision, Finished, FromRelay, Memory, Operation, RELEASED_NAME, RequestSeen,
    StageTime, environment,
};
use crate::freeze::Freezer;
use crate::monotonic_us;
use crate::packet::{self, Packet};
use crate::sys::view::View;

/// How long a daemon that is connected but says nothing may hold CRIU. It ends a hold that everybody has forgotten;
/// a migration's own deadlines are far shorter.
const HOLD_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Where a conversation stands.
pub struct Session {
    runc: OwnedFd,
    criu: OwnedFd,
    child: Child,
    /// Whom to ask for CRIU's exit status, where somebody watches over it.
    guard: Option<Guard>,
    /// Whether what CRIU leaves behind is to end with it.
    leave_no_children: bool,
    /// CRIU's end, to poll for: its own children hold its socket open, so the socket alone does not tell.
    ended: OwnedFd,
    daemon: Option<(DaemonLink, Operation)>,
    /// What hides pages from CRIU, in a dump without memory.
    view: Option<View>,
    stages: Vec<StageTime>,
    /// The notification that runc has been shown and has not answered.
    asked: Option<rpc::Notify>,
    /// The root task, once CRIU has named it.
    root: Option<i32>,
    /// CRIU's answer to the request itself.
    outcome: Option<rpc::Response>,
    /// What restored tasks may do until all of them have.
    permission: Option<Permission>,
}

/// Whose packet comes next.
enum Turn {
    Criu,
    Runc,
    /// Nobody's: CRIU has ended.
    Ended,
}

impl Session {
    /// A conversation that is only passed on.
    pub fn new(runc: OwnedFd, criu: OwnedFd, child: Child) -> Result<Self, ProcessError> {
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty());
        let ended = ended.map_err(|errno| lost("criu", errno.into()))?;
        let stages = Vec::new();
        Ok(Self {
            runc,
            criu,
            child,
            guard: None,
            leave_no_children: false,
            ended,
            daemon: None,
            view: None,
            stages,
            asked: None,
            root: None,
            outcome: None,
            permission: None,
        })
    }

    /// Keeps a permission until every task is restored, or CRIU has ended.
    pub fn permit(&mut self, permission: Permission) {
        self.permission = Some(permission);
    }

    /// Ends what CRIU has started and left, when CRIU has ended.
    pub fn leave_no_children(&mut self) {
        self.leave_no_children = true;
    }

    /// Has CRIU held, when it ends, until the tree in `cgroup` is frozen. A CRIU that somebody else traces, to look for a
    /// fault of it, is not held.
    pub fn watch_over(&mut self, cgroup: &str) {
        // A cgroup that is gone needs nothing: its container has ended.
        if let Ok(freezer) = Freezer::of_cgroup(cgroup) {
            self.guard = Guard::over(self.child.id(), freezer).ok();
        }
    }

    /// Lets the daemon decide at the operation's barriers.
    pub fn attach(&mut self, daemon: DaemonLink, operation: Operation) {
        self.daemon = Some((daemon, operation));
        self.reached("started");
    }

    /// CRIU has loaded `view`.
    pub fn hide_pages(&mut self, view: View) {
        self.view = Some(view);
    }

    /// Passes on what `asked` makes of runc's request, once the daemon has let it go, and everything after it until CRIU ends;
    /// returns CRIU's exit status. `pid` is the root of the tree to dump.
    pub fn run(
        &mut self,
        pid: Option<i32>,
        asked: impl FnOnce() -> Result<Packet, ProcessError>,
    ) -> Result<u8, ProcessError> {
        self.root = pid;
        let conversation = match self.request_decision(pid) {
            Ok(Decision::Go) => {
                self.reached("request");
                if let Some(guard) = &self.guard {
                    guard.begin();
                }
                asked()
                    .and_then(|request| self.to_criu(&request))
                    .and_then(|()| self.converse())
            }
            Ok(Decision::Abort) => self.refuse(),
            Err(error) => Err(error),
        };
        self.end(conversation)
    }

    /// Closes CRIU's socket, so that a CRIU that still waits gives up, takes its exit status and tells the daemon.
    fn end(&mut self, conversation: Result<(), ProcessError>) -> Result<u8, ProcessError> {
        // An error means that the socket is closed already, which is what is wanted.
        let _ = shutdown(&self.criu, Shutdown::Both);
        let status = match self.guard.take() {
            Some(guard) => guard.wait(),
            None => self.child.wait(),
        };
        let status = status.map_err(|source| lost("criu", source))?;
        if self.leave_no_children {
            children::end();
        }
        self.reached("ended");
        let outcome = self.outcome.take().unwrap_or_default();
        let finished = Finished {
            success: outcome.success == Some(true) && status.success(),
            errno: outcome.errno,
            message: outcome.message,
            exit: in_words(status),
            stages: std::mem::take(&mut self.stages),
        };
        if let Some((daemon, _)) = &mut self.daemon {
            // The daemon may be gone by now; then it finds the outcome in runc's.
            let _ = daemon.tell(&FromRelay::Finished(finished));
        }
        conversation.map(|()| passed_on(status))
    }

    fn request_decision(&mut self, pid: Option<i32>) -> Result<Decision, ProcessError> {
        let Some((daemon, operation)) = &mut self.daemon else {
            return Ok(Decision::Go);
        };
        let seen = RequestSeen {
            operation: *operation,
            pid,
            relay_pid: i32::try_from(std::process::id()).unwrap_or_default(),
            criu_pid: i32::try_from(self.child.id()).unwrap_or_default(),
            guard: self.guard.as_ref().map(Guard::task),
            memory: memory(self.view.is_some()),
        };
        daemon.tell(&FromRelay::Request(seen))?;
        self.hold()
    }

    /// Tells runc that the operation failed, in CRIU's place.
    fn refuse(&mut self) -> Result<(), ProcessError> {
        let Some((_, operation)) = &self.daemon else {
            return Ok(());
        };
        let response = rpc::Response {
            kind: Some(super::kind_of(*operation)),
            success: Some(false),
            errno: Some(libc::ECANCELED),
            message: Some("given up before CRIU was asked".to_owned()),
            notify: None,
        };
        self.outcome = Some(response.clone());
        self.to_runc(&Packet {
            bytes: response.encode_to_vec(),
            fds: Vec::new(),
        });
        Ok(())
    }

    fn converse(&mut self) -> Result<(), ProcessError> {
        loop {
            match self.next_turn()? {
                Turn::Criu => {
                    let Some(packet) = packet::receive(&self.criu).map_err(|source| lost("criu", source))?
                    else {
                        return Ok(());
                    };
                    self.note_answer(&packet)?;
                    self.to_runc(&packet);
                }
                Turn::Ended => return Ok(()),
                Turn::Runc => {
                    let Some(packet) = packet::receive(&self.runc).map_err(|source| lost("runc", source))?
                    else {
                        return self.drain();
                    };
                    self.pass_runc(packet)?;
                }
            }
        }
    }

    /// runc has closed its end. After the last answer that is its way to leave; before it CRIU must give up.
    fn drain(&mut self) -> Result<(), ProcessError> {
        if self.outcome.is_none() {
            // Closed already is as good.
            let _ = shutdown(&self.criu, Shutdown::Both);
        }
        Ok(())
    }

    fn next_turn(&self) -> Result<Turn, ProcessError> {
        loop {
            let mut all = [
                PollFd::new(self.criu.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.runc.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.ended.as_fd(), PollFlags::POLLIN),
            ];
            // CRIU and runc have deadlines of their own, and the end of either ends this wait.
            match poll(&mut all, PollTimeout::NONE) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(lost("criu", errno.into())),
            }
            // In this order: what CRIU said last comes before its end.
            let turns = [Turn::Criu, Turn::Runc, Turn::Ended];
            if let Some((turn, _)) = turns
                .into_iter()
                .zip(&all)
                .find(|(_, ready)| ready.any() == Some(true))
            {
                return Ok(turn);
            }
        }
    }

    /// Remembers what CRIU has said.
    fn note_answer(&mut self, packet: &Packet) -> Result<(), ProcessError> {
        let response =
            rpc::Response::decode(packet.bytes.as_slice()).map_err(|source| ProcessError::Message {
                from: "criu",
                source: Box::new(source),
            })?;
        if response.kind != Some(kind::NOTIFY) {
            self.outcome = Some(response);
            return Ok(());
        }
        let notify = response.notify.unwrap_or_default();
        self.root = notify.pid.filter(|pid| *pid > 0).or(self.root);
        if let Some(script) = &notify.script {
            self.reached(script);
            if script == "post-restore" {
                self.permission = None;
            }
        }
        self.asked = Some(notify);
        Ok(())
    }

    /// Passes runc's packet on; where it agrees to a barrier's stage, with the daemon's answer instead.
    fn pass_runc(&mut self, packet: Packet) -> Result<(), ProcessError> {
        let agreed = rpc::Request::decode(packet.bytes.as_slice())
            .is_ok_and(|answer| answer.notify_success == Some(true));
        let stage = self.asked.take().and_then(|notify| notify.script);
        let barrier = match (&self.daemon, stage) {
            (Some((_, operation)), Some(script)) if agreed => BarrierStage::of_script(*operation, &script),
            _ => None,
        };
        let Some(stage) = barrier else {
            return self.to_criu(&packet);
        };
        let go = self.barrier_decision(stage) == Decision::Go;
        let releases = stage == BarrierStage::PostRestore;
        let go = go && (!releases || mark_released());
        self.to_criu(&Packet {
            bytes: rpc::Request::answer(go).encode_to_vec(),
            fds: packet.fds,
        })?;
        if let Some((daemon, _)) = self.daemon.as_mut().filter(|_| go && releases) {
            // A daemon that is gone finds the mark.
            let _ = daemon.tell(&FromRelay::Released);
        }
        Ok(())
    }

    fn barrier_decision(&mut self, stage: BarrierStage) -> Decision {
        let barrier = Barrier {
            stage,
            pid: self.root.unwrap_or_default(),
            memory: memory(self.view.as_ref().is_some_and(View::has_hidden)),
            areas_taken: self.view.as_ref().map_or(0, View::areas_taken),
            stages: self.stages.clone(),
        };
        let told = match &mut self.daemon {
            Some((daemon, _)) => daemon.tell(&FromRelay::Barrier(barrier)),
            None => return Decision::Go,
        };
        match told.and_then(|()| self.hold()) {
            Ok(decision) => decision,
            Err(_) => Decision::Abort,
        }
    }

    /// Waits for the daemon, for the end of runc or of CRIU, or for [`HOLD_LIMIT`].
    fn hold(&mut self) -> Result<Decision, ProcessError> {
        let Some((daemon, _)) = &mut self.daemon else {
            return Ok(Decision::Go);
        };
        let end = Instant::now() + HOLD_LIMIT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Decision::Abort);
            }
            let mut all = [
                PollFd::new(daemon.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.runc.as_fd(), PollFlags::empty()),
                PollFd::new(self.criu.as_fd(), PollFlags::empty()),
                PollFd::new(self.ended.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut all, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(errno) => return Err(lost("the daemon", errno.into())),
            }
            if all[0].any() == Some(true) {
                return Ok(daemon.decision());
            }
            if all[1..].iter().any(|ready| ready.any() == Some(true)) {
                return Ok(Decision::Abort);
            }
        }
    }

    fn reached(&mut self, stage: &str) {
        self.stages.push(StageTime {
            stage: stage.to_owned(),
            at_us: monotonic_us(),
        });
    }

    fn to_criu(&self, packet: &Packet) -> Result<(), ProcessError> {
        match packet::send(&self.criu, packet) {
            // CRIU has ended; its exit status says why, and the next turn sees the end of its socket.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            other => other.map_err(|source| lost("criu", source)),
        }
    }

    /// A runc that has gone away does not change what CRIU does from here; the next turn sees it.
    fn to_runc(&self, packet: &Packet) {
        let _ = packet::send(&self.runc, packet);
    }
}

fn memory(hidden: bool) -> Memory {
    if hidden { Memory::StateOnly } else { Memory::Full }
}

/// Leaves the mark that tasks may run from now on; false where that fails, and they must not.
fn mark_released() -> bool {
    let socket = std::env::var_os(environment::SOCKET).map(PathBuf::from);
    let mark = socket.and_then(|socket| socket.parent().map(|directory| directory.join(RELEASED_NAME)));
    mark.is_some_and(|mark| File::create(mark).is_ok())
}
