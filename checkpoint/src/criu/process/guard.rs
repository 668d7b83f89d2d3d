//! Holds a CRIU that ends until the tree it dumps is frozen.
//!
//! Tasks that CRIU has stopped run on as soon as it is gone. What it leaves may not be let run: connections in repair answer
//! with errors, and a thread may stand at a call of CRIU's. So the relay traces CRIU, for nothing but its end: the kernel
//! then stops it when it has begun to end, whatever it dies of, and still has its tasks.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::thread::gettid;

use crate::freeze::Freezer;
use crate::process_tree::is_ending;
use crate::sys::undo::thread::{Stop, Tracer};

/// How long the tree may take to be frozen. Longer than that a dying CRIU is not held: the daemon freezes the tree, too.
const FREEZE: Duration = Duration::from_millis(500);

/// Pause between two looks at the freezer.
const LOOK: Duration = Duration::from_micros(20);

/// Two system calls take a few microseconds; where they take longer this thread was not running in between, and it may
/// have been then that the other was killed.
const DISTURBED: Duration = Duration::from_micros(50);

/// A thread that waits for CRIU's end.
#[derive(Debug)]
pub struct Guard {
    /// CRIU has been asked to dump, so that the tree may be in its hands.
    asked: Arc<AtomicBool>,
    task: i32,
    thread: JoinHandle<io::Result<ExitStatus>>,
}

impl Guard {
    /// Watches over the child `criu`, which only [`Self::wait`] may wait for from then on.
    pub fn over(criu: u32, freezer: Freezer) -> io::Result<Self> {
        let criu = i32::try_from(criu).map_err(io::Error::other)?;
        let (seized, begun) = mpsc::sync_channel(1);
        let asked = Arc::new(AtomicBool::new(false));
        let known = Arc::clone(&asked);
        let thread = std::thread::Builder::new().spawn(move || {
            // A tracer is a thread, and so is who may wait.
            let tracer = Tracer::of_end(criu);
            let task = gettid().as_raw_pid();
            // Nobody listens when the other side is gone, and then nobody needs it.
            let _ = seized.send(tracer.as_ref().map(|_| task).map_err(io::Error::kind));
            hold_at_end(&tracer?, || {
                if known.load(Ordering::SeqCst) {
                    freeze(&freezer);
                }
            })
        })?;
        match begun.recv() {
            Ok(Ok(task)) => Ok(Self { asked, task, thread }),
            Ok(Err(kind)) => Err(kind.into()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// From now on the tree is frozen when CRIU ends. One that ends before has touched nothing.
    pub fn begin(&self) {
        self.asked.store(true, Ordering::SeqCst);
    }

    /// The thread that holds CRIU, as the kernel numbers it.
    pub fn task(&self) -> i32 {
        self.task
    }

    /// CRIU's exit status, when it has ended.
    pub fn wait(self) -> io::Result<ExitStatus> {
        let ended = self.thread.join();
        ended.map_err(|_| io::Error::other("the guard's thread has panicked"))?
    }
}

/// Lets a traced task run until it has ended; calls `ending` when it has begun to end, and holds it meanwhile.
pub fn hold_at_end(tracer: &Tracer, ending: impl Fn()) -> io::Result<ExitStatus> {
    loop {
        match tracer.wait()? {
            Stop::Ended(status) => return Ok(ExitStatus::from_raw(status)),
            Stop::Ending => {
                ending();
                tracer.go_on(0)?;
            }
            Stop::Signal(signal) => {
                let begin = Instant::now();
                // One that was killed meanwhile stands at its end already, and going on would let go of it.
                if tracer.was_killed()? {
                    continue;
                }
                tracer.go_on(signal)?;
                if begin.elapsed() > DISTURBED && is_ending(tracer.task()) {
                    // Too late to hold it, perhaps; but it does not leave its tasks at once.
                    ending();
                }
            }
            Stop::Stopped => tracer.stay()?,
        }
    }
}

/// Freezes the tree, as far as that is possible in [`FREEZE`]. What is not frozen then is frozen by the daemon, later.
pub fn freeze(freezer: &Freezer) {
    let end = Instant::now() + FREEZE;
    if freezer.ask_to_freeze().is_err() {
        return;
    }
    while matches!(freezer.is_frozen(), Ok(false)) && Instant::now() < end {
        std::thread::sleep(LOOK);
    }
}
