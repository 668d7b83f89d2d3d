//! The threads that fill in the background, and what they share with the one that answers.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::content::{Buffer, Content};
use super::outstanding::Claim;
use super::space::{Attempt, Space};
use crate::memory::PAGE_BYTES;

/// Between two attempts at what could not be filled.
const PAUSE: Duration = Duration::from_micros(500);

/// Between two pieces for a process that waits for others of its pages. The one who answers, and the process once it is answered,
/// would else wait for a processor until the kernel takes it from whoever fills, some milliseconds each time.
const YIELD: Duration = Duration::from_micros(200);

/// For how long after the restore that is done: a client is waiting for the first answer then. A thread gets no further than one
/// small piece in each pause meanwhile.
const YIELDING: Duration = Duration::from_millis(250);

/// How long nothing may be possible once everything is restored, before the container is given up.
const STUCK_LIMIT: Duration = Duration::from_secs(10);

/// The same for a page that a forked child does not seem to have.
const CHILD_LIMIT: Duration = Duration::from_millis(200);

/// Niceness of filling while the container runs: a tenth of the CPU time of one that competes.
const NICE: i32 = 10;

/// What all threads share.
#[derive(Debug)]
pub struct Crew {
    pub content: Content,
    spaces: Mutex<Vec<Arc<Space>>>,
    /// Who is asked next for a piece.
    turn: AtomicUsize,
    /// Something to do may have come up.
    work: Condvar,
    restored: AtomicBool,
    stop: AtomicBool,
    failure: Mutex<Option<String>>,
    wake: UnixStream,
    /// Bytes copied in the background, before the container ran and after.
    pub hot_bytes: AtomicU64,
    pub cold_bytes: AtomicU64,
}

impl Crew {
    /// `wake` gets a byte whenever the main thread should look.
    pub fn new(content: Content, wake: UnixStream) -> Self {
        Self {
            content,
            spaces: Mutex::default(),
            turn: AtomicUsize::new(0),
            work: Condvar::new(),
            restored: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            failure: Mutex::default(),
            wake,
            hot_bytes: AtomicU64::new(0),
            cold_bytes: AtomicU64::new(0),
        }
    }

    pub fn add(&self, space: Arc<Space>) {
        self.spaces().push(space);
        self.work.notify_all();
    }

    pub fn remove(&self, number: u32) {
        self.spaces().retain(|space| space.number != number);
    }

    pub fn all(&self) -> Vec<Arc<Space>> {
        self.spaces().clone()
    }

    /// Everything is restored: everything may be filled.
    pub fn set_restored(&self) {
        self.spaces().iter().for_each(|space| space.expect_fault());
        self.restored.store(true, Ordering::Release);
        self.content.give_back();
        self.work.notify_all();
    }

    pub fn is_restored(&self) -> bool {
        self.restored.load(Ordering::Acquire)
    }

    /// Sends the threads home.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.work.notify_all();
    }

    /// Why the memory cannot be completed, if so.
    pub fn failure(&self) -> Option<String> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.clone()
    }

    fn fail(&self, reason: String) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(reason);
        drop(failure);
        self.call();
    }

    /// What one thread does until it is sent home. One that is not `early` leaves the processors to CRIU as long as that restores.
    pub fn work(&self, early: bool) {
        let watch = Panicked(self);
        let mut buffer = Buffer::new();
        let mut restored_at: Option<Instant> = None;
        while !self.stop.load(Ordering::Acquire) {
            if self.is_restored() && restored_at.is_none() {
                // The container, and whoever answers its faults, come first from here on. Without it filling is only faster.
                let _ = rustix::process::setpriority_process(None, NICE);
                restored_at = Some(Instant::now());
            }
            if !early && restored_at.is_none() {
                self.idle();
                continue;
            }
            match self.next() {
                Some((space, claim)) => match self.fill(&space, &claim, &mut buffer) {
                    Ok(true) => {
                        if restored_at.is_some_and(|at| at.elapsed() < YIELDING) && space.is_waiting() {
                            std::thread::sleep(YIELD);
                        }
                    }
                    Ok(false) => std::thread::sleep(PAUSE),
                    Err(error) => return self.fail(error.to_string()),
                },
                None => self.idle(),
            }
        }
        std::mem::forget(watch);
    }

    /// The next piece of anybody's, one after the other.
    fn next(&self) -> Option<(Arc<Space>, Claim)> {
        let spaces = self.spaces();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let only_hot = !self.is_restored();
        (0..spaces.len()).find_map(|step| {
            let space = spaces.get((first + step) % spaces.len())?;
            Some((Arc::clone(space), space.claim(only_hot)?))
        })
    }

    /// Fills a piece; false if it was not possible now.
    fn fill(&self, space: &Space, claim: &Claim, buffer: &mut Buffer) -> io::Result<bool> {
        let restored = self.is_restored();
        let (attempt, bytes) = space.fill(&self.content, claim, !restored, buffer)?;
        let sum = if restored {
            &self.cold_bytes
        } else {
            &self.hot_bytes
        };
        sum.fetch_add(bytes, Ordering::Relaxed);
        match attempt {
            Attempt::Filled => {
                if restored && space.is_complete() {
                    self.call();
                }
                Ok(true)
            }
            Attempt::Gone => {
                space.end(&self.content);
                self.call();
                Ok(true)
            }
            Attempt::Later(reason) => {
                let stuck = space.stuck_for().unwrap_or_default();
                if reason == rustix::io::Errno::NOENT && !space.restored && stuck > CHILD_LIMIT {
                    space.give_up(&self.content, claim);
                } else if restored && stuck > STUCK_LIMIT {
                    return Err(io::Error::other(format!(
                        "nothing could be put at {:#x} of process {} for {} seconds: {reason}",
                        claim.stretch.start,
                        space.process,
                        STUCK_LIMIT.as_secs()
                    )));
                }
                Ok(bytes >= PAGE_BYTES)
            }
        }
    }

    fn idle(&self) {
        let spaces = self.spaces();
        // Pieces that failed, or that another thread has claimed, come back without a word.
        let pause = if spaces.is_empty() { PAUSE * 100 } else { PAUSE };
        drop(self.work.wait_timeout(spaces, pause));
    }

    /// Has the main thread look. If the pipe is full, it is about to.
    fn call(&self) {
        let _ = (&self.wake).write(&[0]);
    }

    fn spaces(&self) -> MutexGuard<'_, Vec<Arc<Space>>> {
        self.spaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says so when a thread ends in a way that nobody has thought of.
struct Panicked<'a>(&'a Crew);

impl Drop for Panicked<'_> {
    fn drop(&mut self) {
        self.0.fail("a thread that fills has ended".to_owned());
    }
}
