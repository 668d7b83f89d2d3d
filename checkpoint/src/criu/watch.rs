//! The daemon's part in what `process/guard.rs` does: where the relay that holds CRIU's end is killed itself.
//!
//! ```text
//! daemon --- traces the end of ---> the relay's guard --- traces the end of ---> CRIU --- traces ---> tasks
//! ```
//! The guard is held until CRIU can do nothing any more and the tree is frozen; until then the kernel holds CRIU for the
//! guard, and the tasks for CRIU. So no task runs when the relay, or it and CRIU at once, are killed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::process::guard::{freeze, hold_at_end};
use crate::freeze::Freezer;
use crate::process_tree::is_ending;
use crate::sys::undo::thread::Tracer;

/// How long CRIU may take to be stopped by its SIGKILL.
const STOP: Duration = Duration::from_millis(500);

/// Pause between two looks at it.
const LOOK: Duration = Duration::from_micros(20);

/// A thread that waits for the end of the relay's guard. Dropped, it does nothing when that comes.
#[derive(Debug)]
pub struct Watch(Arc<Mutex<bool>>);

impl Watch {
    /// Watches over the thread `guard` of the relay, which holds the process `criu`. The relay is held, so both are there.
    pub fn over(guard: i32, criu: i32, freezer: Freezer) -> io::Result<Self> {
        let criu = Criu::of_pid(criu)?;
        let armed = Arc::new(Mutex::new(false));
        let known = Arc::clone(&armed);
        let (seized, begun) = mpsc::sync_channel(1);
        std::thread::Builder::new().spawn(move || {
            // A tracer is a thread, and so is who may wait.
            let tracer = Tracer::of_end(guard);
            // Nobody listens when the other side is gone, and then nobody needs it.
            let _ = seized.send(tracer.as_ref().map(drop).map_err(io::Error::kind));
            let Ok(tracer) = tracer else { return };
            // An error means that the guard is gone, and there is nothing left to watch.
            let _ = hold_at_end(&tracer, || {
                // Kept while the tree is frozen: whoever drops the watch may thaw the tree next.
                if *known.lock().unwrap_or_else(PoisonError::into_inner) {
                    criu.stop();
                    freeze(&freezer);
                }
            });
        })?;
        match begun.recv() {
            Ok(Ok(())) => Ok(Self(armed)),
            Ok(Err(kind)) => Err(kind.into()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// From now on the tree is frozen when the guard ends. One that ends before has touched nothing.
    pub fn begin(&self) {
        self.set(true);
    }

    fn set(&self, armed: bool) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = armed;
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// CRIU's process.
struct Criu {
    pid: i32,
    process: OwnedFd,
}

impl Criu {
    fn of_pid(pid: i32) -> io::Result<Self> {
        let number = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let process = pidfd_open(number, PidfdFlags::empty())?;
        Ok(Self { pid, process })
    }

    /// Kills it, and waits until it does nothing of its own any more, such as to thaw the tree. One that has begun to end is
    /// not killed again: that would let go of it.
    fn stop(&self) {
        if is_ending(self.pid) || pidfd_send_signal(&self.process, Signal::KILL).is_err() {
            return;
        }
        let end = Instant::now() + STOP;
        while !is_ending(self.pid) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
    }
}
