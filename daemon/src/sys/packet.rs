//! Packet sockets (`AF_PACKET`): for ARP, and to put whole frames into a link.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::net::netdevice;

/// What an Ethernet frame that holds ARP calls itself.
pub const ETHERTYPE_ARP: u16 = 0x0806;

/// Of a socket that receives nothing.
const NO_ETHERTYPE: u16 = 0;

/// Of a socket that receives everything.
const EVERY_ETHERTYPE: u16 = libc::ETH_P_ALL as u16;

/// Bytes of frames that wait in a listener, with what the kernel adds to each: a thousand connections that speak at once.
const LISTENER_BYTES: usize = 8 << 20;

const _: () = assert!(
    mem::size_of::<libc::sockaddr_ll>() == 20,
    "as linux/if_packet.h has it"
);

/// Bytes of an Ethernet header.
pub const HEADER_BYTES: usize = 14;

/// A socket that sends and receives the ARP packets of one link.
#[derive(Debug)]
pub struct ArpSocket {
    fd: OwnedFd,
    link: libc::sockaddr_ll,
}

impl ArpSocket {
    /// A socket on the link of that name in the calling thread's network namespace; it stays there.
    ///
    /// # Errors
    /// When there is no such link, or without CAP_NET_RAW.
    pub fn open(link: &str) -> io::Result<Self> {
        let fd = bound(link, ETHERTYPE_ARP)?;
        let link = own_address(&fd)?;
        Ok(Self { fd, link })
    }

    /// The link's hardware address.
    #[must_use]
    pub fn hardware_address(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.link.sll_addr;
        [a, b, c, d, e, f]
    }

    /// Sends an ARP packet to everybody on the link, in a frame from `source`.
    ///
    /// # Errors
    /// When the link is down or gone.
    pub fn broadcast(&self, source: [u8; 6], payload: &[u8]) -> io::Result<()> {
        rustix::net::send(
            &self.fd,
            &to_everybody(source, payload),
            rustix::net::SendFlags::empty(),
        )?;
        Ok(())
    }

    /// What follows the Ethernet header of the next ARP frame, which is cut to the buffer's length; none when the deadline
    /// comes first.
    ///
    /// # Errors
    /// When the link goes down or away.
    pub fn receive<'b>(&self, buffer: &'b mut [u8], deadline: Instant) -> io::Result<Option<&'b [u8]>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that the last millisecond is not spun through.
            let timeout = PollTimeout::try_from(left.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX);
            let mut waiting = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
            match nix::poll::poll(&mut waiting, timeout) {
                Ok(0) if Instant::now() >= deadline => return Ok(None),
                Ok(0) | Err(nix::Error::EINTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(length) => return Ok(Some(buffer.get(HEADER_BYTES..length).unwrap_or_default())),
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A socket that puts whole frames into one link and receives nothing.
#[derive(Debug)]
pub struct FrameSocket {
    fd: OwnedFd,
}

impl FrameSocket {
    /// A socket on the link of that name in the calling thread's network namespace; it stays there.
    ///
    /// # Errors
    /// When there is no such link, or without CAP_NET_RAW.
    pub fn open(link: &str) -> io::Result<Self> {
        bound(link, NO_ETHERTYPE).map(|fd| Self { fd })
    }

    /// Sends one frame as it is, its Ethernet header included.
    ///
    /// # Errors
    /// The link is down or gone, takes no frame of that length, or has no room at present.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.fd, frame, rustix::net::SendFlags::empty())?;
        Ok(())
    }

    /// Sends an ARP packet to everybody on the link, in a frame from `source`.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn broadcast(&self, source: [u8; 6], payload: &[u8]) -> io::Result<()> {
        self.send(&to_everybody(source, payload))
    }
}

/// A socket that receives all that comes out of one link, and keeps it.
#[derive(Debug)]
pub struct FrameListener {
    fd: OwnedFd,
}

impl FrameListener {
    /// Listens to the link of that name in the calling thread's network namespace, from here on; it stays there.
    ///
    /// # Errors
    /// When there is no such link, or without CAP_NET_RAW or CAP_NET_ADMIN.
    pub fn open(link: &str) -> io::Result<Self> {
        let fd = raw_socket()?;
        // What is sent into the link is nobody's word.
        set_option(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1_i32)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, LISTENER_BYTES)?;
        bind_to(&fd, link, EVERY_ETHERTYPE)?;
        Ok(Self { fd })
    }

    /// Receives nothing more; what waits can still be read.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stop(&self) -> io::Result<()> {
        // One instruction: take no byte of any frame.
        let mut nothing = [libc::sock_filter {
            code: (libc::BPF_RET | libc::BPF_K) as u16,
            jt: 0,
            jf: 0,
            k: 0,
        }];
        let filter = libc::sock_fprog {
            len: 1,
            filter: nothing.as_mut_ptr(),
        };
        set_option(&self.fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
    }

    /// The next frame that waits, cut to the buffer's length; none when nothing does.
    ///
    /// # Errors
    /// When the link went down or away.
    pub fn next<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<&'b [u8]>> {
        loop {
            match rustix::io::read(&self.fd, &mut *buffer) {
                Ok(length) => return Ok(buffer.get(..length)),
                Err(rustix::io::Errno::AGAIN) => return Ok(None),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn set_option<T>(fd: &OwnedFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer is to a live value and the length is its size; the kernel only reads it, and what it points to.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const *value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn to_everybody(source: [u8; 6], payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source, &ETHERTYPE_ARP.to_be_bytes(), payload].concat()
}

/// A raw socket on the link of that name, which receives what is of this ethertype.
fn bound(link: &str, ethertype: u16) -> io::Result<OwnedFd> {
    let fd = raw_socket()?;
    bind_to(&fd, link, ethertype)?;
    Ok(fd)
}

/// A raw socket that is on no link yet.
fn raw_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the result is checked before it becomes an owned descriptor.
    let raw = unsafe {
        libc::socket(
            libc::AF_PACKET,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            0,
        )
    };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `raw` was just returned by the kernel and nobody else has it.
    Ok(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) })
}

fn bind_to(fd: &OwnedFd, link: &str, ethertype: u16) -> io::Result<()> {
    let asked = address(netdevice::name_to_index(fd, link)?, ethertype)?;
    // SAFETY: the pointer is to a live `sockaddr_ll` and the length is its size.
    let bound = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const asked).cast(),
            mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if bound < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn address(index: u32, ethertype: u16) -> io::Result<libc::sockaddr_ll> {
    Ok(libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    })
}

fn own_address(fd: &OwnedFd) -> io::Result<libc::sockaddr_ll> {
    let mut link = MaybeUninit::<libc::sockaddr_ll>::zeroed();
    let mut length = mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `link`, which has that many.
    let got = unsafe { libc::getsockname(fd.as_raw_fd(), link.as_mut_ptr().cast(), &raw mut length) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: every bit pattern is a `sockaddr_ll`, and it began as zeroes.
    Ok(unsafe { link.assume_init() })
}
