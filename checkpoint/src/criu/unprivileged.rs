//! Lets tasks in user namespaces open a userfaultfd while they are restored.
//!
//! With lazy pages each task opens its own descriptor, for faults in the kernel as well. The kernel allows that to a task
//! with `CAP_SYS_PTRACE` over the host, which one in a user namespace never has, or to everybody, if the sysctl
//! `vm.unprivileged_userfaultfd` is 1. So it is set to 1 until every task has its descriptor.
//!
//! ```text
//! take    lock exclusively: nobody else needs it  -> write down what the operator has, set 1
//!         lock shared: others do                  -> it is 1 already
//! drop    lock exclusively: nobody else needs it  -> set what was written down
//!         cannot: others do                       -> the last of them does
//! ```
//! The locks are on the directory of what was written down, which is one for everybody on this kernel: the last one to drop its own may be
//! on another host of this kernel than the first to take it was. (A lock on the sysctl itself would be on the inode of one of many
//! `/proc`.) They end with their owner. What a killed relay has left, the next one to drop its own puts back, or the daemon, when it
//! drops what it has received or starts.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

const SYSCTL: &str = "/proc/sys/vm/unprivileged_userfaultfd";

/// Holds what the operator had, while it is something else. Hosts that share a kernel share the directory.
const STATE: &str = "/run/tranship-kernel/unprivileged-userfaultfd";

const ALLOWED: &str = "1";

/// How long somebody may have the lock to itself.
const LOCK_DEADLINE: Duration = Duration::from_secs(1);

/// Between two attempts to have it as well.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Every task may open a userfaultfd as long as this lives.
#[derive(Debug)]
pub struct Permission {
    /// The lock; none if the permission could not be taken. Then those who need none are restored all the same, and CRIU says why
    /// the others are not.
    lock: Option<File>,
    places: Places,
}

#[derive(Clone, Debug)]
struct Places {
    sysctl: PathBuf,
    state: PathBuf,
}

impl Places {
    fn of_host() -> Self {
        Self {
            sysctl: SYSCTL.into(),
            state: STATE.into(),
        }
    }
}

impl Permission {
    /// Gives the permission to everybody on this host.
    #[must_use]
    pub fn take() -> Self {
        Self::at(Places::of_host())
    }

    fn at(places: Places) -> Self {
        Self {
            lock: take(&places).ok(),
            places,
        }
    }
}

impl Drop for Permission {
    fn drop(&mut self) {
        // What cannot be put back now is put back when a daemon starts.
        let _ = self.lock.take().map(|lock| put_back(&self.places, lock));
    }
}

/// Puts back what relays that were killed have left, unless a restore is under way. What cannot be put back is logged.
pub fn put_back_abandoned() {
    if let Err(error) = put_back_at(&Places::of_host()) {
        tracing::warn!(%error, "vm.unprivileged_userfaultfd is still what a killed restore has made it");
    }
}

fn put_back_at(places: &Places) -> io::Result<()> {
    if !places.state.exists() {
        return Ok(());
    }
    put_back(places, open_lock(places)?)
}

fn open_lock(places: &Places) -> io::Result<File> {
    let directory = places.state.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(directory)?;
    File::open(directory)
}

fn take(places: &Places) -> io::Result<File> {
    let operators = read(&places.sysctl)?;
    let lock = open_lock(places)?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
            allow(places)?;
        }
        lock_shared(&lock)?;
        // A lock is let go of before it is made a shared one: between the two somebody may have put it back.
        if places.state.exists() && read(&places.sysctl)? == ALLOWED {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(io::Error::other(format!("the sysctl stays {operators}")));
        }
    }
}

/// Writes down what the operator has, and sets what is needed.
fn allow(places: &Places) -> io::Result<()> {
    // If it is written down already, what it is now is what a killed relay has set.
    if !places.state.exists() {
        let staged = places.state.with_extension("new");
        fs::write(&staged, read(&places.sysctl)?)?;
        fs::rename(&staged, &places.state)?;
    }
    fs::write(&places.sysctl, ALLOWED)
}

/// Others have the lock to themselves for moments only.
fn lock_shared(lock: &File) -> io::Result<()> {
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockShared) {
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
            locked => return locked.map_err(io::Error::from),
        }
    }
}

/// Sets what was written down, unless others hold the lock.
fn put_back(places: &Places, lock: File) -> io::Result<()> {
    if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(());
    }
    match fs::read_to_string(&places.state) {
        Ok(operators) => {
            fs::write(&places.sysctl, operators.trim())?;
            fs::remove_file(&places.state)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(path)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Permission, Places, put_back_at, read};
    use std::fs;

    fn host(operators: &str) -> (tempfile::TempDir, Places) {
        let directory = tempfile::tempdir().unwrap();
        let places = Places {
            sysctl: directory.path().join("sysctl"),
            state: directory.path().join("kernel").join("state"),
        };
        fs::write(&places.sysctl, operators).unwrap();
        (directory, places)
    }

    #[test]
    fn the_last_of_several_puts_back_what_the_operator_had() {
        for operators in ["0", "1"] {
            let (_directory, places) = host(operators);
            let first = Permission::at(places.clone());
            let second = Permission::at(places.clone());
            assert_eq!(read(&places.sysctl).unwrap(), "1");
            drop(first);
            assert_eq!(read(&places.sysctl).unwrap(), "1");
            drop(second);
            assert_eq!(read(&places.sysctl).unwrap(), operators);
            assert!(!places.state.exists());
        }
    }

    #[test]
    fn those_who_see_the_sysctl_in_another_place_are_waited_for_too() {
        let (directory, places) = host("0");
        // As it is with a `/proc` of one's own: another inode, the same setting.
        let elsewhere = Places {
            sysctl: directory.path().join("elsewhere"),
            state: places.state.clone(),
        };
        fs::write(&elsewhere.sysctl, "1").unwrap();
        let first = Permission::at(places.clone());
        let second = Permission::at(elsewhere.clone());
        drop(second);
        assert_eq!(
            read(&elsewhere.sysctl).unwrap(),
            "1",
            "it was taken from the first"
        );
        drop(first);
        assert_eq!(read(&places.sysctl).unwrap(), "0");
    }

    #[test]
    fn what_a_killed_relay_has_left_is_put_back_and_never_taken_for_the_operators() {
        let (_directory, places) = host("0");
        let mut killed = Permission::at(places.clone());
        drop(killed.lock.take());
        drop(killed);
        assert_eq!(read(&places.sysctl).unwrap(), "1");
        let next = Permission::at(places.clone());
        put_back_at(&places).unwrap();
        assert_eq!(
            read(&places.sysctl).unwrap(),
            "1",
            "it was taken from a restore under way"
        );
        drop(next);
        assert_eq!(read(&places.sysctl).unwrap(), "0");
        let mut killed = Permission::at(places.clone());
        drop(killed.lock.take());
        put_back_at(&places).unwrap();
        assert_eq!(read(&places.sysctl).unwrap(), "0");
        put_back_at(&places).unwrap();
    }

    #[test]
    fn a_host_without_the_sysctl_needs_no_permission() {
        let (directory, _) = host("0");
        let places = Places {
            sysctl: directory.path().join("missing"),
            state: directory.path().join("state"),
        };
        assert!(Permission::at(places.clone()).lock.is_none());
        put_back_at(&places).unwrap();
    }
}
