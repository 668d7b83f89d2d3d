//! Network namespaces: made, entered and removed. A thread that enters one is never used for anything else, so that no
//! work of the daemon can run in the wrong namespace.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};
use tokio::sync::oneshot;

use super::error::NetworkError;

/// Nothing done in a namespace takes more than milliseconds; this long means that something is broken.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Settings of a new namespace. A container's user namespace does not own the network namespace, so these two would be
/// beyond its root: low ports and ping are then open to everybody inside, as Docker has it. IPv6 stays on `lo` alone,
/// because nothing announces an IPv6 address that moves; without `accept_dad` an address is usable at once.
const SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// Runs `work` on a thread of its own, in the namespace mounted at `netns`; without one in the daemon's.
pub(super) async fn within<T: Send + 'static>(
    netns: Option<PathBuf>,
    what: &'static str,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    on_a_thread(what, move || {
        if let Some(path) = netns {
            let file = File::open(&path).map_err(|source| NetworkError::File {
                what: "open the namespace",
                path,
                source,
            })?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .map_err(|error| NetworkError::io("enter a network namespace")(error.into()))?;
        }
        work()
    })
    .await
}

async fn on_a_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    let (sender, result) = oneshot::channel();
    thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || sender.send(work()))
        .map_err(NetworkError::io("start a thread"))?;
    match tokio::time::timeout(LIMIT, result).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(NetworkError::State {
            what: format!("the thread to {what} ended early"),
        }),
        Err(_) => Err(NetworkError::Deadline {
            what: what.to_owned(),
            limit: LIMIT,
        }),
    }
}

/// Makes a namespace that stays, mounted at `path`, with the settings every container's has.
pub(super) async fn create(path: PathBuf) -> Result<(), NetworkError> {
    on_a_thread("make a network namespace", move || {
        let file = |what| {
            let path = path.clone();
            move |source| NetworkError::File { what, path, source }
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(file("make the directory of"))?;
        }
        File::create_new(&path).map_err(file("make"))?;
        unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|error| NetworkError::io("make a network namespace")(error.into()))?;
        mount_bind("/proc/thread-self/ns/net", &path)
            .map_err(|error| file("mount the namespace at")(error.into()))?;
        for (name, value) in SETTINGS {
            set(name, value)?;
        }
        Ok(())
    })
    .await
}

/// Writes a setting of the calling thread's network namespace. One that this kernel does not have (it may be built
/// without IPv6) is already as wanted.
pub(super) fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = Path::new("/proc/sys").join(name);
    match fs::write(&path, value) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NetworkError::File {
            what: "write",
            path,
            source,
        }),
        _ => Ok(()),
    }
}

/// Mounts a sysfs of the calling thread's network namespace, read-only.
pub(super) fn mount_sysfs(target: PathBuf) -> Result<(), NetworkError> {
    fs::create_dir_all(&target).map_err(|source| NetworkError::File {
        what: "make the directory",
        path: target.clone(),
        source,
    })?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("sysfs", &target, "sysfs", flags, None).map_err(|error| NetworkError::File {
        what: "mount a sysfs at",
        path: target,
        source: error.into(),
    })
}

/// Unmounts whatever is mounted there, once for each mount. Nothing there is what was wanted.
pub(super) fn unmount_all(target: &Path) -> Result<(), NetworkError> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => {
                return Err(NetworkError::File {
                    what: "unmount",
                    path: target.to_owned(),
                    source: error.into(),
                });
            }
        }
    }
}

/// Unmounts a namespace and removes its file. The kernel ends it when the last process in it has gone.
pub(super) fn remove(path: &Path) -> Result<(), NetworkError> {
    unmount_all(path)?;
    ignore_missing(fs::remove_file(path), "remove", path)
}

/// Unmounts a container's sysfs and removes its directory, and the container's own if nothing else is in it.
pub(super) fn remove_sysfs(target: &Path) -> Result<(), NetworkError> {
    unmount_all(target)?;
    ignore_missing(fs::remove_dir(target), "remove", target)?;
    let parent_empty = target
        .parent()
        .is_some_and(|parent| fs::remove_dir(parent).is_ok());
    tracing::trace!(parent_empty, "removed the sysfs of a container");
    Ok(())
}

fn ignore_missing(result: io::Result<()>, what: &'static str, path: &Path) -> Result<(), NetworkError> {
    match result {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(NetworkError::File {
            what,
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}
