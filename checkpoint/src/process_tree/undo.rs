//! Putting threads right that a killed CRIU has left in the middle of what it had them do, by the journal that was kept
//! outside of it.
//!
//! A thread that must be put right has to be stopped by ptrace, which a frozen one cannot be: so it is seized while it is
//! frozen, and stops before its next instruction when the tree is thawed. The rest of the tree runs on from there, which is
//! what it is thawed for anyway.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{PARASITE, TreeError, astray};
use crate::freeze::Freezer;
use crate::sys::undo::thread::Tracee;
use crate::sys::undo::{self, Before};

/// How long a seized thread may take to stop.
const STOP: Duration = Duration::from_secs(2);

/// How long a thread that is on its way out of CRIU's code is let run before it is looked at again; then twice as long each
/// time.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(100);

/// Threads that are seized, to be put right when the tree is thawed.
#[derive(Debug)]
pub struct Seized(Vec<(Before, Tracee)>);

/// Writes the text back that CRIU has changed, and seizes the threads that may not be their own. The tree is frozen.
pub fn begin(journal: &Path, tasks: &[i32]) -> Result<Seized, TreeError> {
    let unreadable = |source| TreeError::Journal {
        path: journal.to_owned(),
        source,
    };
    let mut seized = Vec::new();
    for before in undo::read(journal).map_err(unreadable)? {
        let task = before.thread;
        // A number that somebody else has by now is not in the cgroup.
        if !tasks.contains(&task) {
            continue;
        }
        let failed = |source| TreeError::NotPutRight { task, source };
        before.put_memory_back().map_err(failed)?;
        if !before.may_be_astray() {
            continue;
        }
        if let Some(tracee) = Tracee::seize(task).map_err(failed)? {
            seized.push((before, tracee));
        }
    }
    Ok(Seized(seized))
}

impl Seized {
    /// Whether this thread is to be put right.
    pub fn holds(&self, task: i32) -> bool {
        self.0.iter().any(|(before, _)| before.thread == task)
    }

    /// Thaws the tree and puts the threads right; returns how many were astray. Where there are none the tree stays
    /// frozen. After an error it is frozen again, as far as it can be.
    pub fn finish(self, freezer: &Freezer) -> Result<usize, TreeError> {
        if self.0.is_empty() {
            return Ok(0);
        }
        freezer.thaw()?;
        let deadline = Instant::now() + STOP;
        let mut astray = 0;
        for (before, tracee) in &self.0 {
            match put_right(before, tracee, deadline) {
                Ok(true) => astray += 1,
                Ok(false) => {}
                Err(source) => {
                    freezer.ask_to_freeze()?;
                    return Err(TreeError::NotPutRight {
                        task: before.thread,
                        source,
                    });
                }
            }
        }
        Ok(astray)
    }
}

/// Lets a thread that is still on its way through CRIU's code go on: it finds CRIU gone, cleans up and leaves by itself. One
/// that does not leave is put back.
fn put_right(before: &Before, tracee: &Tracee, deadline: Instant) -> io::Result<bool> {
    let mut pause = FIRST_PAUSE;
    loop {
        if !tracee.wait_stopped(deadline)? {
            return Ok(false);
        }
        let foreign = astray::foreign_areas(before.thread, PARASITE);
        let in_parasite = |at| foreign.iter().any(|area| area.contains(&at));
        if pause > LAST_PAUSE || !before.is_on_its_way(tracee, in_parasite)? {
            let done = before.put_back(tracee, in_parasite)?;
            return Ok(done.registers || done.mask);
        }
        tracee.go_on()?;
        std::thread::sleep(pause);
        tracee.interrupt()?;
        pause *= 2;
    }
}
