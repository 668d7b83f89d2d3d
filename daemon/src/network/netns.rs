//! Network namespaces: entered and set up. The runtime makes a container's, inside its user namespace: a restored task may
//! only repair a TCP connection in a network namespace that its own user namespace owns. A thread that enters one is never used for anything else, so that no
//! work of the daemon can run in the wrong namespace.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

use super::error::NetworkError;

/// Nothing done in a namespace takes more than milliseconds; this long means that something is broken.
pub(super) const LIMIT: Duration = Duration::from_secs(10);

/// Settings of a new namespace. Low ports and ping are open to everybody inside, as Docker has it. IPv6 stays on `lo` alone,
/// because nothing announces an IPv6 address that moves; without `accept_dad` an address is usable at once.
const SETTINGS: [(&str, &str); 4] = [
    ("net/ipv4/ip_unprivileged_port_start", "0"),
    ("net/ipv4/ping_group_range", "0 2147483647"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
];

/// The namespace at `path`, such as `/proc/PID/ns/net`.
pub(super) fn open(path: &Path) -> Result<File, NetworkError> {
    File::open(path).map_err(|source| NetworkError::File {
        what: "open the namespace",
        path: path.to_owned(),
        source,
    })
}

/// Runs `work` on a thread of its own, in that namespace; without one in the daemon's.
pub(super) async fn within<T: Send + 'static>(
    netns: Option<File>,
    what: &'static str,
    work: impl FnOnce() -> Result<T, NetworkError> + Send + 'static,
) -> Result<T, NetworkError> {
    on_a_thread(what, move || {
        if let Some(file) = netns {
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

/// Gives the calling thread's network namespace the settings every container's has.
pub(super) fn apply_settings() -> Result<(), NetworkError> {
    SETTINGS.iter().try_for_each(|(name, value)| set(name, value))
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
