//! The daemon's unix socket: who may connect, and who stays connected.
//!
//! The file lets in root, the group and the users of `allowed_uids`. The credentials of each connection are checked as
//! well, because a mode can be changed by anybody who tidies up.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{Gid, Group};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::acl;
use crate::config::Config;
use crate::sys::peer_groups::peer_groups;

/// Group that is used when it exists and none is configured.
const DEFAULT_GROUP: &str = "tranship";

/// Root's user and group.
const ROOT: u32 = 0;

/// Connections between the kernel and the server.
const WAITING: usize = 16;

/// After a failed accept, in most cases for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error("another transhipd answers on {}: stop it first, or give this one a socket of its own", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there; it was left alone.
    #[error("{} is in the way of the socket: it is no socket, and was left alone", path.display())]
    InTheWay {
        /// The path.
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

/// Who may use the API, besides root.
#[derive(Clone, Debug)]
struct Allowed {
    uids: Vec<u32>,
    group: u32,
}

/// Binds the socket of the configuration; answers with the connections of those who may use it. Call inside a runtime.
///
/// # Errors
/// [`SocketError`].
pub async fn listen(config: &Config) -> Result<ReceiverStream<io::Result<UnixStream>>, SocketError> {
    let path = &config.socket;
    let group = find_group(config.socket_group.as_deref())?;
    let failed = |action| {
        move |source| SocketError::Io {
            action,
            path: path.clone(),
            source,
        }
    };
    if let Some(parent) = path.parent() {
        // Those who may use the socket need not see what else is there.
        let made = DirBuilder::new().recursive(true).mode(0o711).create(parent);
        made.map_err(failed("make the directory of"))?;
    }
    make_room(path).await?;
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    chown(path, Some(ROOT), Some(group)).map_err(failed("give away"))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed("open"))?;
    if !config.allowed_uids.is_empty() {
        acl::let_in(path, &config.allowed_uids).map_err(failed("open to allowed_uids"))?;
    }
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
            Ok((stream, _)) if allowed.lets_in(&stream) => {
                if connections.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "a connection to the socket was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Allowed {
    fn lets_in(&self, stream: &UnixStream) -> bool {
        let peer = match stream.peer_cred() {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "a connection to the socket does not say whose it is; it was refused");
                return false;
            }
        };
        let by_uid = peer.uid() == ROOT || self.uids.contains(&peer.uid());
        let by_group = || peer.gid() == self.group || self.has_member(stream);
        if by_uid || by_group() {
            return true;
        }
        tracing::warn!(
            uid = peer.uid(),
            gid = peer.gid(),
            "a user who may not use the socket was refused"
        );
        false
    }

    fn has_member(&self, stream: &UnixStream) -> bool {
        peer_groups(stream).is_ok_and(|groups| groups.contains(&self.group))
    }
}

fn find_group(configured: Option<&str>) -> Result<u32, SocketError> {
    let find = |name: &str| {
        Group::from_name(name)
            .ok()
            .flatten()
            .map(|group| group.gid)
            .map(Gid::as_raw)
    };
    match configured {
        Some(name) => find(name).ok_or_else(|| SocketError::NoGroup(name.to_owned())),
        None => Ok(find(DEFAULT_GROUP).unwrap_or(ROOT)),
    }
}

/// Removes the socket of a daemon that is no more. One that is answered, or no socket, is left alone.
async fn make_room(path: &Path) -> Result<(), SocketError> {
    let failed = |action| {
        move |source| SocketError::Io {
            action,
            path: path.to_owned(),
            source,
        }
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("look for")(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::InTheWay {
                path: path.to_owned(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(SocketError::Taken {
            path: path.to_owned(),
        }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(failed("remove the left-over of"))
        }
        Err(error) => Err(failed("look who answers on")(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::process::Stdio;

    use tokio::io::AsyncWriteExt;
    use tokio::process::Command;
    use tokio_stream::StreamExt;

    use super::*;

    /// Connects with other credentials and waits for a byte: 0 it came, 3 the connection was closed, else no connection.
    const CONNECT: &str = "socket(S, PF_UNIX, SOCK_STREAM, 0) or exit 4; \
         connect(S, sockaddr_un($ARGV[0])) or exit 5; exit(sysread(S, $b, 1) ? 0 : 3)";

    fn config(dir: &tempfile::TempDir, more: &str) -> Config {
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        let socket = dir.path().join("t.sock");
        Config::parse(Path::new("t"), &format!("socket = {socket:?}\n{more}")).unwrap()
    }

    /// What a process of that user and these groups gets from a daemon that sends a byte to everybody it lets in.
    async fn outcome(config: &Config, uid: u32, gid: u32, groups: &str, mode: Option<u32>) -> Option<i32> {
        let _ = std::fs::remove_file(&config.socket);
        let mut connections = listen(config).await.unwrap();
        if let Some(mode) = mode {
            std::fs::set_permissions(&config.socket, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let serving = tokio::spawn(async move {
            while let Some(Ok(mut stream)) = connections.next().await {
                stream.write_all(b"!").await.unwrap();
            }
        });
        let groups = if groups.is_empty() {
            "--clear-groups".to_owned()
        } else {
            format!("--groups={groups}")
        };
        let status = Command::new("setpriv")
            .args([format!("--reuid={uid}"), format!("--regid={gid}"), groups])
            .args(["perl", "-MSocket", "-e", CONNECT])
            .arg(&config.socket)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .status();
        let status = tokio::time::timeout(Duration::from_secs(20), status)
            .await
            .unwrap()
            .unwrap();
        serving.abort();
        let _ = serving.await;
        status.code()
    }

    #[tokio::test]
    async fn root_the_group_and_allowed_users_are_let_in() {
        let dir = tempfile::tempdir().unwrap();
        let daemon_group = config(&dir, "socket_group = 'daemon'");
        let gid = find_group(Some("daemon")).unwrap();
        assert_eq!(outcome(&daemon_group, 0, 0, "", None).await, Some(0));
        assert_eq!(outcome(&daemon_group, 4242, gid, "", None).await, Some(0));
        assert_eq!(
            outcome(&daemon_group, 4242, 4242, &format!("{gid},77"), None).await,
            Some(0)
        );
        let mode = std::fs::metadata(&daemon_group.socket).unwrap();
        assert_eq!((mode.mode() & 0o777, mode.uid(), mode.gid()), (0o660, 0, gid));
        let users = config(&dir, "socket_group = 'daemon'\nallowed_uids = [4243, 4242]");
        assert_eq!(outcome(&users, 4242, 4242, "", None).await, Some(0));
        assert_eq!(std::fs::metadata(&users.socket).unwrap().mode() & 0o777, 0o660);
    }

    #[tokio::test]
    async fn everybody_else_is_refused_even_where_the_file_lets_them_in() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir, "socket_group = 'daemon'\nallowed_uids = [4243]");
        assert_eq!(outcome(&config, 4242, 4242, "", None).await, Some(5));
        assert_eq!(outcome(&config, 4242, 4242, "", Some(0o666)).await, Some(3));
        assert_eq!(outcome(&config, 4242, 4242, "77,78", Some(0o666)).await, Some(3));
    }

    #[tokio::test]
    async fn a_left_over_socket_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir, "");
        drop(std::os::unix::net::UnixListener::bind(&config.socket).unwrap());
        let first = listen(&config).await.unwrap();
        assert!(matches!(listen(&config).await, Err(SocketError::Taken { .. })));
        drop(first);
        std::fs::remove_file(&config.socket).unwrap();
        std::fs::write(&config.socket, "precious").unwrap();
        assert!(matches!(listen(&config).await, Err(SocketError::InTheWay { .. })));
        assert_eq!(std::fs::read(&config.socket).unwrap(), b"precious");
        let nobody = Config {
            socket_group: Some("no-such-group".into()),
            ..config
        };
        assert!(matches!(listen(&nobody).await, Err(SocketError::NoGroup(_))));
    }
}
