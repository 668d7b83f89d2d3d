//! Locks on files: of a whole open file, of a process, of an open file's ranges. One process holds them all, others try.

use std::convert::Infallible;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FlockOperation, flock};

/// Pause between two looks at whether the locks are to be let go.
const LOOK: Duration = Duration::from_millis(20);

/// A file of this name in the first directory has the holder let everything go.
pub const RELEASE: &str = "release";

/// The kinds of locks there are.
pub const KINDS: [&str; 3] = ["flock", "posix", "ofd"];

/// Where the lock of a kind is.
#[must_use]
pub fn path(directory: &Path, kind: &str) -> PathBuf {
    directory.join(format!("{kind}.lock"))
}

/// Holds a lock of each kind in each directory, until it is asked to let them go; then stays.
///
/// # Errors
/// A lock cannot be had.
pub fn hold(directories: &[PathBuf]) -> Result<Infallible> {
    let mut held = Vec::new();
    for directory in directories {
        std::fs::create_dir_all(directory)?;
        for kind in KINDS {
            let path = path(directory, kind);
            let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
            if !lock(&file, kind)? {
                bail!("{} is locked already", path.display());
            }
            held.push(file);
        }
    }
    let first = directories.first().context("no directory to lock in")?;
    std::fs::write(first.join("held"), "")?;
    loop {
        if first.join(RELEASE).exists() {
            held.clear();
        }
        sleep(LOOK);
    }
}

/// Whether a lock can be had now. It is let go at once.
///
/// # Errors
/// There is no such file or kind, or the kernel has another reason than somebody else's lock.
pub fn can_be_had(path: &Path, kind: &str) -> Result<bool> {
    let file = File::options().read(true).write(true).open(path);
    lock(
        &file.with_context(|| format!("cannot open {}", path.display()))?,
        kind,
    )
}

/// Locks a file, a range of it where the kind has ranges; false where somebody else has it.
fn lock(file: &File, kind: &str) -> Result<bool> {
    let range = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 10,
        l_len: 100,
        l_pid: 0,
    };
    let done = match kind {
        "flock" => flock(file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| Errno::from_raw(errno.raw_os_error())),
        "posix" => fcntl(file, FcntlArg::F_SETLK(&range)).map(drop),
        "ofd" => fcntl(file, FcntlArg::F_OFD_SETLK(&range)).map(drop),
        _ => bail!("there are no locks of kind {kind}"),
    };
    match done {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => bail!("cannot lock descriptor {}: {errno}", file.as_raw_fd()),
    }
}
