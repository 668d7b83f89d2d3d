//! Tells the service manager how the daemon is, by systemd's protocol: a datagram to `$NOTIFY_SOCKET`.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// A stage of the daemon's life that a service manager waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Calls are answered.
    Ready,
    /// The daemon is on its way out.
    Stopping,
}

/// Says so to the service manager, if there is one. A manager that does not listen is only worth a line in the log.
pub fn tell(stage: Stage) {
    let Some(address) = env::var_os("NOTIFY_SOCKET").filter(|address| !address.is_empty()) else {
        return;
    };
    if let Err(error) = send(&address, stage) {
        tracing::warn!(%error, ?address, "the service manager was not told that the daemon is {stage:?}");
    }
}

fn send(address: &OsStr, stage: Stage) -> io::Result<()> {
    let message: &[u8] = match stage {
        Stage::Ready => b"READY=1",
        Stage::Stopping => b"STOPPING=1",
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    let sent = match address.as_bytes() {
        [b'@', name @ ..] => socket.send_to_addr(message, &SocketAddr::from_abstract_name(name)?)?,
        path => socket.send_to(message, OsStr::from_bytes(path))?,
    };
    if sent == message.len() {
        Ok(())
    } else {
        Err(io::ErrorKind::WriteZero.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> Vec<u8> {
        let mut bytes = [0; 64];
        let length = socket.recv(&mut bytes).unwrap();
        bytes[..length].to_vec()
    }

    #[test]
    fn both_kinds_of_address_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n.sock");
        let on_disk = UnixDatagram::bind(&path).unwrap();
        send(path.as_os_str(), Stage::Ready).unwrap();
        assert_eq!(received(&on_disk), b"READY=1");

        let name = format!("tranship-notify-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let in_memory = UnixDatagram::bind_addr(&address).unwrap();
        send(OsStr::new(&format!("@{name}")), Stage::Stopping).unwrap();
        assert_eq!(received(&in_memory), b"STOPPING=1");
        assert!(send(OsStr::new("/nonexistent/n.sock"), Stage::Ready).is_err());
    }
}
