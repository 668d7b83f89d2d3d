//! Removing what a restore that was given up may have left, so that it can be tried again or forgotten.
//!
//! `runc delete --force` does all of it where runc could keep its books. Where runc, the relay or CRIU was killed in the
//! middle, processes wait for a CRIU that is gone, and the bind mounts that runc makes for CRIU stay. `runc delete` then
//! removes its directory of the container recursively, and with it, **through the bind mount, every file of the rootfs**.
//! So never call it after a restore that did not end by itself: call [`discard`], which unmounts first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};
use tranship_proto::ids::ContainerId;

use crate::cgroup::{self, CgroupError};
use crate::process_tree::{self, TreeError};

/// Where runc mounts the rootfs for CRIU, below the container's directory in its root.
pub const CRIU_ROOT: &str = "criu-root";

/// A container of which nothing is to be left but its bundle.
#[derive(Clone, Debug)]
pub struct Discard {
    /// The runc program.
    pub runc: PathBuf,
    /// runc's `--root`.
    pub runc_root: PathBuf,
    /// The container's name in runc.
    pub container: ContainerId,
    /// The container's cgroup, `/parent/id`.
    pub cgroup: String,
    /// The directory that the bundle names as root. Whatever is mounted below it is runc's, and goes.
    pub rootfs: PathBuf,
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum DiscardError {
    /// Its processes.
    #[error(transparent)]
    Processes(#[from] TreeError),
    /// Its cgroups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// runc did not end.
    #[error("`runc delete` did not end in time; the container's processes are dead")]
    Deadline,
    /// Something of runc's could not be removed.
    #[error("{} is left of the container and cannot be removed: {source}", path.display())]
    Left {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Kills the container's processes, unmounts what runc has mounted for CRIU, deletes it in runc, and removes what runc
/// leaves. Idempotent. Before another restore on the same files call [`super::remove_ghosts`] too.
pub async fn discard(request: &Discard, deadline: Instant) -> Result<(), DiscardError> {
    process_tree::kill(&request.cgroup, deadline).await?;
    let state = request.runc_root.join(request.container.as_str());
    unmount_all(&state.join(CRIU_ROOT))?;
    for mount in cgroup::mounts_below(&request.rootfs)? {
        unmount_all(&mount)?;
    }
    delete(request, deadline).await?;
    remove_state(&state)?;
    Ok(cgroup::remove(&request.cgroup, deadline).await?)
}

async fn delete(request: &Discard, deadline: Instant) -> Result<(), DiscardError> {
    let mut command = Command::new(&request.runc);
    command
        .arg("--root")
        .arg(&request.runc_root)
        .args(["delete", "--force", request.container.as_str()]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    // runc refuses a container whose state it has not written yet. What counts is what is left afterwards.
    timeout_at(deadline, command.status())
        .await
        .map(|_| ())
        .map_err(|_| DiscardError::Deadline)
}

/// Unmounts whatever is mounted at a path, layer by layer, with everything below it.
fn unmount_all(path: &Path) -> Result<(), DiscardError> {
    loop {
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Nothing is mounted there any more, or there is no such place.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => {
                return Err(DiscardError::Left {
                    path: path.to_owned(),
                    source: errno.into(),
                });
            }
        }
    }
}

/// Removes runc's directory of a container. Never recursive: a bind mount of the rootfs may be in there, and its files
/// are the container's data.
fn remove_state(state: &Path) -> Result<(), DiscardError> {
    let mounted = state.join(CRIU_ROOT);
    loop {
        match unmount(&mounted, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(errno) => {
                return Err(DiscardError::Left {
                    path: mounted,
                    source: errno.into(),
                });
            }
        }
    }
    gone(&mounted, fs::remove_dir(&mounted))?;
    let Ok(entries) = fs::read_dir(state) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        gone(&entry.path(), fs::remove_file(entry.path()))?;
    }
    gone(state, fs::remove_dir(state))
}

fn gone(path: &Path, removed: io::Result<()>) -> Result<(), DiscardError> {
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(DiscardError::Left {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::remove_state;
    use std::fs;

    #[test]
    fn a_state_directory_goes_with_its_files_but_never_with_a_directory_of_somebody_else() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join("id");
        remove_state(&state).unwrap();
        fs::create_dir_all(state.join("criu-root")).unwrap();
        fs::write(state.join("state.json"), "{}").unwrap();
        remove_state(&state).unwrap();
        assert!(!state.exists());
        fs::create_dir_all(state.join("data/deep")).unwrap();
        assert!(remove_state(&state).is_err());
        assert!(state.join("data/deep").exists());
    }
}
