//! The kernel's table of tracked connections, which CRIU reads for every network namespace that it dumps. There is one
//! table for all namespaces, and it has a quarter of a million places by default: to find nothing in it takes the kernel 10 to 20 ms.
//! Where the namespace's own count is zero, CRIU gets a socket that takes its question and has nothing to say.

#![expect(
    unsafe_code,
    reason = "functions of C, for a library without the standard library"
)]

use core::ffi::{c_char, c_int, c_void};

/// `AF_NETLINK`.
const NETLINK: c_int = 16;
/// `NETLINK_NETFILTER`.
const NETFILTER: c_int = 12;
const AF_UNIX: c_int = 1;
const SEQPACKET_CLOEXEC: c_int = 5 | 0o2_000_000;
const SHUT_WR: c_int = 1;
const O_RDONLY_CLOEXEC: c_int = 0o2_000_000;

/// Connections and expectations of the network namespace of whoever reads it; an expectation has a connection.
const COUNT: &core::ffi::CStr = c"/proc/sys/net/netfilter/nf_conntrack_count";

unsafe extern "C" {
    fn open(path: *const c_char, flags: c_int, ...) -> c_int;
    fn read(descriptor: c_int, into: *mut c_void, size: usize) -> isize;
    fn close(descriptor: c_int) -> c_int;
    fn socketpair(domain: c_int, kind: c_int, protocol: c_int, pair: *mut c_int) -> c_int;
    fn shutdown(descriptor: c_int, how: c_int) -> c_int;
}

/// Whether this is the socket for that question.
#[must_use]
pub fn is_asked_for(domain: c_int, protocol: c_int) -> bool {
    domain == NETLINK && protocol == NETFILTER
}

/// Whether nothing is tracked in this process's network namespace; false where that cannot be told.
#[must_use]
pub fn is_empty() -> bool {
    let mut text = [0_u8; 16];
    // SAFETY: the path ends with a zero byte, and no more is read than there is room for.
    let length = unsafe {
        let file = open(COUNT.as_ptr(), O_RDONLY_CLOEXEC);
        if file < 0 {
            return false;
        }
        let length = read(file, text.as_mut_ptr().cast(), text.len());
        close(file);
        length
    };
    usize::try_from(length).ok().and_then(|length| text.get(..length)) == Some(b"0\n".as_slice())
}

/// A socket on which everything can be sent, and nothing comes but the end. Its other end stays open: CRIU asks in a process
/// that ends soon.
#[must_use]
pub fn silent() -> Option<c_int> {
    let mut pair = [-1; 2];
    // SAFETY: there is room for two descriptors.
    let made = unsafe { socketpair(AF_UNIX, SEQPACKET_CLOEXEC, 0, pair.as_mut_ptr()) };
    let [ours, other] = pair;
    // SAFETY: a plain call on a descriptor that was made above.
    (made == 0 && unsafe { shutdown(other, SHUT_WR) } == 0).then_some(ours)
}

#[cfg(test)]
mod tests {
    use super::{is_asked_for, is_empty, silent};
    use crate::sys::view::preload::socket;
    use rustix::net::sockopt::socket_domain;
    use rustix::net::{RecvFlags, SendFlags, recv, send};
    use std::os::fd::{FromRawFd, OwnedFd};

    #[test]
    fn only_the_netfilter_socket_is_meant() {
        assert!(is_asked_for(libc::AF_NETLINK, libc::NETLINK_NETFILTER));
        assert!(!is_asked_for(libc::AF_NETLINK, libc::NETLINK_ROUTE));
        assert!(!is_asked_for(libc::AF_INET, libc::NETLINK_NETFILTER));
    }

    #[test]
    fn a_new_network_namespace_tracks_nothing() {
        let looked = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            is_empty()
        });
        assert!(looked.join().unwrap());
    }

    #[test]
    fn a_process_that_was_asked_nothing_gets_the_kernels_own_socket() {
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe {
            OwnedFd::from_raw_fd(socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER))
        };
        assert_eq!(
            socket_domain(&socket).unwrap(),
            rustix::net::AddressFamily::NETLINK
        );
    }

    #[test]
    fn a_silent_socket_takes_a_question_and_ends() {
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(silent().unwrap()) };
        assert_eq!(send(&socket, b"all of them?", SendFlags::NOSIGNAL).unwrap(), 12);
        let (length, _) = recv(&socket, &mut [0_u8; 64][..], RecvFlags::empty()).unwrap();
        assert_eq!(length, 0);
    }
}
