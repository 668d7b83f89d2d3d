//! One daemon per state directory: two would each take the other's containers for left-overs. The guard of a daemon that has
//! died ([`crate::guard`]) uses it for a moment, and the next daemon waits for that.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// What a guard writes into the file while it has the lock.
const GUARD: &[u8] = b"guard";

/// How long a daemon waits for a guard, which may have to wait itself until CRIU has left a container.
const GUARD_WORKS: Duration = Duration::from_secs(30);

/// For a process that is just ending: its files are closed one after the other.
const ENDING: Duration = Duration::from_secs(1);

/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(5);

/// The state directory is not ours to use.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another daemon uses it.
    #[error("another transhipd uses {}: stop it first, or give this one a state_dir of its own", state_dir.display())]
    Taken {
        /// The directory.
        state_dir: PathBuf,
    },
    /// The lock cannot be taken.
    #[error("cannot lock {}", path.display())]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Keeps other daemons away from a state directory until it is dropped or the process ends.
#[derive(Debug)]
pub struct StateLock {
    file: File,
}

impl StateLock {
    /// Locks the directory for a daemon; makes it where it is missing. Waits for a guard that is at work there.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(state_dir: &Path) -> Result<Self, LockError> {
        let path = state_dir.join("lock");
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        make(state_dir).map_err(failed)?;
        let file = open(&path, true).map_err(failed)?;
        let mut patience = Patience::new(Instant::now());
        if !lock(&file, |now| patience.lasts(now, is_guards(&file))).map_err(failed)? {
            return Err(LockError::Taken {
                state_dir: state_dir.to_owned(),
            });
        }
        file.set_len(0).map_err(failed)?;
        Ok(Self { file })
    }

    /// Locks the directory for the guard of a daemon that has died; `None` if another daemon uses it, or nobody ever will.
    ///
    /// # Errors
    /// [`LockError::Io`].
    pub fn take_as_guard(state_dir: &Path) -> Result<Option<Self>, LockError> {
        let path = state_dir.join("lock");
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = match open(&path, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let mut patience = Patience::new(Instant::now());
        if !lock(&file, |now| patience.lasts(now, false)).map_err(failed)? {
            return Ok(None);
        }
        // On a full disk it cannot be told whose the lock is: a daemon that starts meanwhile waits for it less long. That is no
        // reason to leave what stands still as it is.
        file.write_all_at(GUARD, 0).ok();
        Ok(Some(Self { file }))
    }
}

impl Drop for StateLock {
    fn drop(&mut self) {
        // Whoever finds the lock free does not look at what is written there.
        self.file.set_len(0).ok();
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(create).truncate(false).read(true).write(true);
    options.mode(0o600).open(path)
}

fn is_guards(file: &File) -> bool {
    let mut bytes = [0; GUARD.len()];
    file.read_exact_at(&mut bytes, 0).is_ok() && bytes == GUARD
}

/// How long somebody else's lock is waited for.
#[derive(Clone, Copy, Debug)]
struct Patience {
    begun: Instant,
    /// A process that ends, or a guard that has done its work, is gone by then: whoever has the lock still is neither.
    ends: Instant,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self {
            begun: now,
            ends: now + ENDING,
        }
    }

    /// Whether to wait on. A guard that is at work gets its own time, and from the last sight of it the time to end: it has given up its
    /// sign a moment before its lock, and a program that it was just starting may have a copy of that for another moment.
    fn lasts(&mut self, now: Instant, guard_works: bool) -> bool {
        if guard_works && now < self.begun + GUARD_WORKS {
            self.ends = now + ENDING;
        }
        now < self.ends
    }
}

/// Tries again as long as `patience` lasts; whether it has the lock then.
fn lock(file: &File, mut patience: impl FnMut(Instant) -> bool) -> io::Result<bool> {
    loop {
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if patience(Instant::now()) => std::thread::sleep(AGAIN),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Makes the directory for root alone; what leads to it is for everybody.
fn make(state_dir: &Path) -> io::Result<()> {
    if let Some(parent) = state_dir.parent() {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(0o700).create(state_dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && state_dir.is_dir() => Ok(()),
        made => made,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_directory_has_one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = StateLock::take(&state).unwrap();
        let second = StateLock::take(&state).unwrap_err();
        assert!(second.to_string().contains("another transhipd"), "{second}");
        drop(first);
        StateLock::take(&state).unwrap();
    }

    #[test]
    fn a_guard_leaves_a_state_directory_to_the_daemon_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert!(
            StateLock::take_as_guard(&state).unwrap().is_none(),
            "nothing is made"
        );
        assert!(!state.exists());
        let daemon = StateLock::take(&state).unwrap();
        assert!(StateLock::take_as_guard(&state).unwrap().is_none());
        drop(daemon);
        assert!(StateLock::take_as_guard(&state).unwrap().is_some());
    }

    #[test]
    fn a_daemon_waits_for_a_guard_longer_than_for_another_daemon() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateLock::take(dir.path()).unwrap());
        let guard = StateLock::take_as_guard(dir.path()).unwrap().unwrap();
        let works = std::thread::spawn(move || {
            std::thread::sleep(ENDING + Duration::from_millis(300));
            drop(guard);
        });
        StateLock::take(dir.path()).unwrap();
        works.join().unwrap();
    }

    #[test]
    fn a_guard_that_has_worked_for_long_gets_the_time_to_end() {
        let dir = tempfile::tempdir().unwrap();
        drop(StateLock::take(dir.path()).unwrap());
        let guard = StateLock::take_as_guard(dir.path()).unwrap().unwrap();
        let works = std::thread::spawn(move || {
            std::thread::sleep(ENDING + Duration::from_millis(300));
            let held_elsewhere = guard.file.try_clone().unwrap();
            drop(guard);
            std::thread::sleep(Duration::from_millis(300));
            drop(held_elsewhere);
        });
        StateLock::take(dir.path()).unwrap();
        works.join().unwrap();
    }

    #[test]
    fn nobody_is_waited_for_without_end() {
        let begun = Instant::now();
        let mut patience = Patience::new(begun);
        assert!(patience.lasts(begun + ENDING / 2, false));
        assert!(!patience.lasts(begun + ENDING, false));
        let mut patience = Patience::new(begun);
        let step = ENDING / 2;
        let mut now = begun;
        while patience.lasts(now, true) {
            now += step;
        }
        assert!(now >= begun + GUARD_WORKS && now <= begun + GUARD_WORKS + ENDING + step);
    }
}
