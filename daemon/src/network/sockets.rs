//! Connections of a network namespace that no process holds: a dump does not see them, so they must not be there.

use std::io;
use std::mem::size_of;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rustix::net::{RecvFlags, SendFlags};

/// How often they are looked for.
const EVERY: Duration = Duration::from_micros(500);

/// The kernel answers at once; this long means that it will not.
const LIMIT: nix::sys::time::TimeVal = nix::sys::time::TimeVal::new(2, 0);

/// linux/sock_diag.h, linux/netlink.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const REQUEST_DUMP: u16 = 0x301;
const DONE: u16 = 3;
const ERROR: u16 = 2;

/// Bytes of `struct nlmsghdr`, and of `struct inet_diag_req_v2` and `inet_diag_msg`.
const HEADER_BYTES: usize = 16;
const QUESTION_BYTES: usize = 56;
const ANSWER_BYTES: usize = 72;

const _: () = assert!(
    QUESTION_BYTES == 8 + 48 && size_of::<u32>() == 4,
    "as linux/inet_diag.h has it"
);

/// States of net/tcp_states.h.
const FIN_WAIT1: u8 = 4;
const LAST_ACK: u8 = 9;
const LISTEN: u8 = 10;
const CLOSING: u8 = 11;
const SYN_RECV: u8 = 3;

/// How many connections no process holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unowned {
    /// That are being set up, or are and wait to be accepted.
    pub new: u32,
    /// That were closed here, and whose last data the other side has not confirmed.
    pub closing: u32,
}

impl Unowned {
    /// Whether there are none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    fn note(&mut self, answer: &[u8; ANSWER_BYTES]) {
        let number =
            |at: usize| u32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
        let (state, queue, inode) = (answer[1], number(56), number(68));
        match state {
            LISTEN => self.new = self.new.saturating_add(queue),
            SYN_RECV => self.new += 1,
            FIN_WAIT1 | LAST_ACK | CLOSING if inode == 0 => self.closing += 1,
            _ => {}
        }
    }
}

/// Waits in the calling thread's network namespace until there is no such connection, and answers what is left at the
/// deadline.
///
/// # Errors
/// What the kernel says.
pub(super) fn settle(deadline: Instant) -> io::Result<Unowned> {
    loop {
        let left = unowned()?;
        if left.is_none() || Instant::now() >= deadline {
            return Ok(left);
        }
        std::thread::sleep(EVERY);
    }
}

fn unowned() -> io::Result<Unowned> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        flags,
        SockProtocol::NetlinkSockDiag,
    )?;
    nix::sys::socket::setsockopt(&fd, nix::sys::socket::sockopt::ReceiveTimeout, &LIMIT)?;
    let mut found = Unowned::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        rustix::net::send(&fd, &question(family as u8), SendFlags::empty())?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, _) = rustix::net::recv(&fd, &mut buffer[..], RecvFlags::empty())?;
            if take(buffer.get(..length).unwrap_or_default(), &mut found)? {
                break;
            }
        }
    }
    Ok(found)
}

/// Asks for every TCP socket of a family.
fn question(family: u8) -> [u8; HEADER_BYTES + QUESTION_BYTES] {
    let mut bytes = [0; HEADER_BYTES + QUESTION_BYTES];
    bytes[..4].copy_from_slice(&((HEADER_BYTES + QUESTION_BYTES) as u32).to_ne_bytes());
    bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    bytes[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    bytes[16] = family;
    bytes[17] = libc::IPPROTO_TCP as u8;
    bytes[20..24].copy_from_slice(&u32::MAX.to_ne_bytes());
    bytes
}

/// Counts what a datagram of answers says; true when it was the last.
fn take(mut datagram: &[u8], found: &mut Unowned) -> io::Result<bool> {
    while let Some((header, payload)) = datagram.split_first_chunk::<HEADER_BYTES>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match u16::from_ne_bytes([header[4], header[5]]) {
            DONE => return Ok(true),
            ERROR => {
                let errno = payload
                    .first_chunk::<4>()
                    .map_or(0, |bytes| i32::from_ne_bytes(*bytes));
                return Err(io::Error::from_raw_os_error(errno.saturating_neg()));
            }
            _ => {
                if let Some(answer) = payload.first_chunk::<ANSWER_BYTES>() {
                    found.note(answer);
                }
            }
        }
        let step = length.max(HEADER_BYTES).next_multiple_of(4);
        datagram = datagram.get(step..).unwrap_or_default();
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// In a network namespace of its own, on a thread that ends with it.
    fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("these tests need root");
                let up = std::process::Command::new("ip")
                    .args(["link", "set", "lo", "up"])
                    .status();
                assert!(up.unwrap().success());
                work()
            });
            thread.join().unwrap()
        })
    }

    #[test]
    fn a_connection_that_nobody_has_accepted_is_seen_until_somebody_does() {
        alone(|| {
            let soon = || Instant::now() + Duration::from_millis(20);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            assert!(settle(soon()).unwrap().is_none());
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let began = Instant::now();
            assert_eq!(settle(soon()).unwrap(), Unowned { new: 1, closing: 0 });
            assert!(began.elapsed() >= Duration::from_millis(20), "it waited for it");
            let _server = listener.accept().unwrap();
            assert!(settle(soon()).unwrap().is_none());
        });
    }

    #[test]
    fn an_answer_that_is_cut_short_ends_nothing_and_breaks_nothing() {
        let mut found = Unowned::default();
        let question = question(2);
        for length in 0..question.len() {
            assert!(!take(&question[..length], &mut found).unwrap());
        }
        assert!(found.is_none());
    }
}
