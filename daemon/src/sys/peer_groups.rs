//! `SO_PEERGROUPS`: the supplementary groups a unix socket's other end had when it connected.
//!
//! Asking the user database instead would miss groups a process got from elsewhere, and wait for whatever answers it.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd};

/// Most groups of a process, by `NGROUPS_MAX`.
const MAX_GROUPS: usize = 65536;

/// The groups, without the effective one (which `SO_PEERCRED` has).
///
/// # Errors
/// It is no unix stream socket.
pub fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0_u32; 32];
    loop {
        let room = groups.len() * size_of::<u32>();
        let mut length = libc::socklen_t::try_from(room).map_err(io::Error::other)?;
        // SAFETY: `groups` is writable memory of `length` bytes, both pointers live until the call returns, and the
        // kernel writes at most `length` bytes of whole gid_t, which are u32 and valid in any bit pattern.
        let done = unsafe {
            libc::getsockopt(
                socket.as_fd().as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        let needed = usize::try_from(length).map_err(io::Error::other)? / size_of::<u32>();
        if done == 0 {
            groups.truncate(needed);
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        // The kernel says how much it needs.
        if error.raw_os_error() != Some(libc::ERANGE) || needed <= groups.len() || needed > MAX_GROUPS {
            return Err(error);
        }
        groups.resize(needed, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn ones_own_groups_are_those_of_a_pair_one_made() {
        let (near, _far) = UnixStream::pair().unwrap();
        let mut own: Vec<u32> = nix::unistd::getgroups()
            .unwrap()
            .iter()
            .map(|gid| gid.as_raw())
            .collect();
        let mut seen = peer_groups(&near).unwrap();
        own.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, own);
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(peer_groups(&file).is_err());
    }
}
