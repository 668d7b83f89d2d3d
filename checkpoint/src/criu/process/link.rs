//! The relay's connection to the daemon.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::ProcessError;
use crate::criu::wire::{self, Decision, FromRelay};

/// A connection that is asked for decisions.
pub struct DaemonLink {
    stream: UnixStream,
}

impl DaemonLink {
    /// Connects to the daemon's socket. An operation that cannot be held must not start, so this failing is the end.
    pub fn connect(socket: &Path) -> Result<Self, ProcessError> {
        let stream = UnixStream::connect(socket).map_err(lost)?;
        Ok(Self { stream })
    }

    /// Tells the daemon.
    pub fn tell(&mut self, message: &FromRelay) -> Result<(), ProcessError> {
        let line = wire::line(message).map_err(|source| lost(source.into()))?;
        self.stream.write_all(&line).map_err(lost)
    }

    /// Reads the decision that is ready. Everything but a clear `go` is an abort: the end of the connection, an error,
    /// an unknown word.
    pub fn decision(&mut self) -> Decision {
        let mut line = Vec::new();
        let mut byte = [0_u8; 1];
        while line.len() < wire::MAX_LINE {
            match self.stream.read(&mut byte) {
                Ok(0) => return Decision::Abort,
                Ok(_) if byte[0] == b'\n' => return serde_json::from_slice(&line).unwrap_or(Decision::Abort),
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Decision::Abort,
            }
        }
        Decision::Abort
    }
}

impl AsFd for DaemonLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn lost(source: io::Error) -> ProcessError {
    ProcessError::Connection {
        peer: "the daemon",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::DaemonLink;
    use crate::criu::wire::Decision;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn decided(sent: &[u8]) -> Decision {
        let (stream, mut daemon) = UnixStream::pair().unwrap();
        daemon.write_all(sent).unwrap();
        drop(daemon);
        DaemonLink { stream }.decision()
    }

    #[test]
    fn only_a_whole_go_is_a_go() {
        assert_eq!(decided(b"\"go\"\n"), Decision::Go);
        for other in [
            &b"\"go\""[..],
            b"",
            b"go\n",
            b"\"abort\"\n",
            b"\"later\"\n",
            b"\n",
        ] {
            assert_eq!(decided(other), Decision::Abort, "{other:?}");
        }
    }
}
