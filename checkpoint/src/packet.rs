//! Packets on a SOCK_SEQPACKET socket, with the descriptors that ride on them.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recv, recvmsg, sendmsg,
};

/// Largest packet that is taken. CRIU's and runc's messages are tens of KiB at most; the kernel's own limit for such a
/// socket is the send buffer, some hundred KiB.
const MAX_PACKET: usize = 4 << 20;

/// Most descriptors on one packet; CRIU sends one (a terminal's master).
const MAX_FDS: usize = 4;

/// One packet.
pub struct Packet {
    /// The message.
    pub bytes: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Waits for a packet. `None` is the end of the connection.
pub fn receive(socket: impl AsFd) -> io::Result<Option<Packet>> {
    let size = pending_size(&socket)?;
    if size == 0 {
        return Ok(None);
    }
    if size > MAX_PACKET {
        return Err(io::Error::other(format!(
            "a packet of {size} bytes is over the limit of {MAX_PACKET}"
        )));
    }
    let mut bytes = vec![0; size];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut control,
            RecvFlags::CMSG_CLOEXEC,
        )
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(Some(Packet { bytes, fds }))
}

/// The size of the next packet, without taking it; 0 at the end of the connection.
fn pending_size(socket: impl AsFd) -> io::Result<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC;
    let mut probe = [0_u8; 1];
    match rustix::io::retry_on_intr(|| recv(&socket, &mut probe[..], flags)) {
        Ok((_, size)) => Ok(size),
        Err(rustix::io::Errno::CONNRESET) => Ok(0),
        Err(errno) => Err(errno.into()),
    }
}

/// Sends a packet whole.
pub fn send(socket: impl AsFd, packet: &Packet) -> io::Result<()> {
    let borrowed: Vec<_> = packet.fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other(format!(
            "more than {MAX_FDS} descriptors on a packet"
        )));
    }
    let data = [IoSlice::new(&packet.bytes)];
    rustix::io::retry_on_intr(|| sendmsg(&socket, &data, &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{MAX_PACKET, Packet, receive, send};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_large_packet_arrives_whole_and_alone() {
        let (left, right) = pair();
        let bytes: Vec<u8> = (0..100_000_u32).map(|byte| byte as u8).collect();
        send(
            &left,
            &Packet {
                bytes: bytes.clone(),
                fds: Vec::new(),
            },
        )
        .unwrap();
        send(
            &left,
            &Packet {
                bytes: vec![1],
                fds: Vec::new(),
            },
        )
        .unwrap();
        assert_eq!(receive(&right).unwrap().unwrap().bytes, bytes);
        assert_eq!(receive(&right).unwrap().unwrap().bytes, [1]);
        const { assert!(100_000 < MAX_PACKET) };
    }

    #[test]
    fn the_end_of_the_connection_is_no_packet() {
        let (left, right) = pair();
        drop(left);
        assert!(receive(&right).unwrap().is_none());
    }

    #[test]
    fn descriptors_travel_with_their_packet() {
        let (left, right) = pair();
        let (mut reader, writer) = std::io::pipe().unwrap();
        send(
            &left,
            &Packet {
                bytes: vec![9],
                fds: vec![writer.into()],
            },
        )
        .unwrap();
        let mut packet = receive(&right).unwrap().unwrap();
        let mut sent = std::fs::File::from(packet.fds.remove(0));
        sent.write_all(b"through").unwrap();
        drop(sent);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }
}
