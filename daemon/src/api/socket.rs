//! The daemon's unix socket: who may connect, and who stays connected.
//!
//! The file's mode lets in root and the group. The credentials of each connection are checked as well: a mode can be
//! changed by anybody who tidies up, and users of `allowed_uids` are in no group.

use std::ffi::CString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::config::Config;

/// Group that is used when it exists and none is configured.
const DEFAULT_GROUP: &str = "tranship";
/// Connections between the kernel and the server.
const WAITING: usize = 16;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("another transhipd answers on {}", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// The configured group does not exist.
    #[error("socket_group is {0:?}, but there is no such group")]
    NoGroup(String),
    /// The kernel refused.
    #[error("cannot {action} the socket {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// Who may use the API.
#[derive(Clone, Debug)]
struct Allowed {
    uids: Vec<u32>,
    group: Option<Gid>,
}

/// Binds the socket of the configuration; answers with the connections of those who may use it. Call inside a runtime.
///
/// # Errors
/// [`SocketError`].
pub async fn listen(config: &Config) -> Result<ReceiverStream<io::Result<UnixStream>>, SocketError> {
    let path = &config.socket;
    let group = group(config.socket_group.as_deref())?;
    remove_stale(path).await?;
    let failed = |action| {
        move |source| SocketError::Io {
            action,
            path: path.clone(),
            source,
        }
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    // Root alone until the owner is right. Users that are in no group need the file open to all; the check below is what stops others.
    let mode = if config.allowed_uids.is_empty() {
        0o660
    } else {
        0o666
    };
    let permissions = std::fs::Permissions::from_mode(mode);
    std::os::unix::fs::chown(path, Some(0), group.map(Gid::as_raw)).map_err(failed("give away"))?;
    std::fs::set_permissions(path, permissions).map_err(failed("open"))?;
    let allowed = Allowed {
        uids: config.allowed_uids.clone(),
        group,
    };
    let (connections, accepted) = mpsc::channel(WAITING);
    tokio::spawn(accept(listener, allowed, connections));
    Ok(ReceiverStream::new(accepted))
}

async fn accept(listener: UnixListener, allowed: Allowed, connections: mpsc::Sender<io::Result<UnixStream>>) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                if allowed.lets_in(&stream).await && connections.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection to the socket was not accepted");
                // Out of descriptors, most likely: give others time to close some.
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

impl Allowed {
    async fn lets_in(&self, stream: &UnixStream) -> bool {
        let Ok(peer) = stream.peer_cred() else {
            return false;
        };
        if peer.uid() == 0 || self.uids.contains(&peer.uid()) {
            return true;
        }
        let Some(group) = self.group else {
            return self.refuse(peer.uid());
        };
        let (uid, gid) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
        let member = gid == group || crate::blocking::run(move || is_member(uid, gid, group)).await;
        member || self.refuse(peer.uid())
    }

    fn refuse(&self, uid: u32) -> bool {
        tracing::warn!(uid, "a user who may not use the socket was refused");
        false
    }
}

fn is_member(uid: Uid, gid: Gid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else {
        return false;
    };
    let Ok(name) = CString::new(user.name) else {
        return false;
    };
    getgrouplist(&name, gid).is_ok_and(|groups| groups.contains(&group))
}

fn group(configured: Option<&str>) -> Result<Option<Gid>, SocketError> {
    let find = |name: &str| Group::from_name(name).ok().flatten().map(|group| group.gid);
    match configured {
        Some(name) => find(name)
            .map(Some)
            .ok_or_else(|| SocketError::NoGroup(name.to_owned())),
        None => Ok(find(DEFAULT_GROUP)),
    }
}

/// Removes the socket of a daemon that is no more. One that is answered is left alone.
async fn remove_stale(path: &Path) -> Result<(), SocketError> {
    match UnixStream::connect(path).await {
        Ok(_) => Err(SocketError::Taken {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(_) => std::fs::remove_file(path).map_err(|source| SocketError::Io {
            action: "remove the left-over of",
            path: path.to_owned(),
            source,
        }),
    }
}
