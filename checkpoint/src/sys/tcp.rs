//! TCP repair: the state in which CRIU reads and writes a connection, and in which it is silent.
#![expect(unsafe_code, reason = "TCP_REPAIR has no safe wrapper")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// Whether a socket is a TCP connection in repair. Other sockets are not.
pub fn is_in_repair(socket: impl AsFd) -> io::Result<bool> {
    let mut value: libc::c_int = 0;
    let mut length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the length of the call; `value` and `length` are valid for writing, and
    // `length` says how large `value` is.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        return Ok(value != 0);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EINVAL) => Ok(false),
        _ => Err(error),
    }
}

/// Lets a connection speak again. It sends a window probe, as CRIU's own way out does.
pub fn leave_repair(socket: impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for the length of the call; `off` is valid for reading `length` bytes.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const off).cast(),
            length,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::{is_in_repair, leave_repair};
    use std::net::{TcpListener, UdpSocket};
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_tcp_is_ever_in_repair() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(!is_in_repair(&tcp).unwrap());
        assert!(!is_in_repair(UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap());
        let (unix, _other) = UnixStream::pair().unwrap();
        assert!(!is_in_repair(&unix).unwrap());
        assert!(leave_repair(&unix).is_err());
    }
}
