//! The source's side of a hand-over without a gap.
//!
//! ```text
//!   pass   the bridge sends everything for the container to the tap; a thread puts it into the cable, but for first
//!          packets of new connections, which wait: those under way can come to an end (before the freeze)
//!   keep   everything waits, and the cable is out of the bridge (from the cut on)
//!   stop   the destination has announced the address and nothing comes here any more
//! ```
//! What has waited travels to the destination; on a rollback it goes into the cable here.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::arrivals::{MOST_BYTES, MOST_FRAMES};
use super::attachment::Attachment;
use super::error::NetworkError;
use super::hold::{FRAME_BYTES, Trap};
use super::netns;
use super::networks::Networks;
use super::sockets::{self, Unowned};
use crate::sys::packet::{FrameSocket, HEADER_BYTES};

/// How long the thread sleeps at most before it looks whether it is to stop, in milliseconds.
const LOOK_UP: u8 = 1;

/// Bits of the mode; none is to let pass.
const PASS: u8 = 0;
const KEEP: u8 = 1;
const STOP: u8 = 2;

const ETHERTYPE_IPV4: [u8; 2] = [8, 0];
const PROTOCOL_TCP: u8 = 6;
const TCP_SYN: u8 = 0x02;
const TCP_ACK: u8 = 0x10;

/// Frames that wait in memory.
#[derive(Debug, Default)]
pub(super) struct Kept {
    pub frames: Vec<Vec<u8>>,
    bytes: usize,
    /// Frames there was no room for.
    pub lost: u64,
}

impl Kept {
    pub(super) fn add(&mut self, frame: &[u8]) {
        if self.frames.len() < MOST_FRAMES && self.bytes + frame.len() <= MOST_BYTES {
            self.bytes += frame.len();
            self.frames.push(frame.to_vec());
        } else {
            self.lost += 1;
        }
    }
}

/// The thread between the tap and the cable.
#[derive(Debug)]
pub(super) struct Relay {
    mode: Arc<AtomicU8>,
    thread: Option<thread::JoinHandle<Kept>>,
}

impl Relay {
    pub(super) fn start(trap: Arc<Trap>, cable: Arc<FrameSocket>) -> Result<Self, NetworkError> {
        let mode = Arc::new(AtomicU8::new(PASS));
        let told = Arc::clone(&mode);
        let thread = thread::Builder::new()
            .name("catch".to_owned())
            .spawn(move || relay(&trap, &cable, &told))
            .map_err(NetworkError::io("start a thread"))?;
        Ok(Self {
            mode,
            thread: Some(thread),
        })
    }

    pub(super) fn keep_all(&self) {
        self.mode.store(KEEP, Ordering::Relaxed);
    }

    /// Ends the thread; blocks for the millisecond that it may sleep. Of a container that was not cut off nothing is kept.
    pub(super) fn stop(mut self) -> Kept {
        self.mode.fetch_or(STOP, Ordering::Relaxed);
        let kept = self.thread.take().map(thread::JoinHandle::join);
        kept.and_then(Result::ok).unwrap_or_default()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.mode.fetch_or(STOP, Ordering::Relaxed);
    }
}

fn relay(trap: &Trap, cable: &FrameSocket, mode: &AtomicU8) -> Kept {
    let mut kept = Kept::default();
    let mut buffer = vec![0; FRAME_BYTES];
    loop {
        let stops = mode.load(Ordering::Relaxed) & STOP != 0;
        while let Ok(Some(frame)) = trap.next(&mut buffer) {
            if !trap.is_for(frame) {
                continue;
            }
            let passes = mode.load(Ordering::Relaxed) & KEEP == 0 && !is_first_packet(frame);
            if !passes {
                kept.add(frame);
            } else if cable.send(frame).is_err() {
                kept.lost += 1;
            }
        }
        if stops {
            if mode.load(Ordering::Relaxed) & KEEP == 0 {
                kept.frames.drain(..).for_each(|frame| drop(cable.send(&frame)));
            }
            return kept;
        }
        let mut waiting = [PollFd::new(trap.tap().as_fd(), PollFlags::POLLIN)];
        // Whatever it says, the next look at the tap tells more.
        let _ = nix::poll::poll(&mut waiting, PollTimeout::from(LOOK_UP));
    }
}

/// Whether a frame is the first packet of a new TCP connection.
fn is_first_packet(frame: &[u8]) -> bool {
    let Some((header, packet)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return false;
    };
    let is_tcp = header[12..] == ETHERTYPE_IPV4 && packet.get(9) == Some(&PROTOCOL_TCP);
    let words = packet.first().map_or(0, |byte| usize::from(byte & 0x0f));
    let flags = packet.get(words * 4 + 13).copied().unwrap_or(TCP_ACK);
    is_tcp && flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

impl Networks {
    /// Has connections that no process holds come to a process or to an end, for as long as until `deadline`: new ones wait
    /// from here on, all else goes on. Answers what is left. Until [`Self::cut`] or [`Self::plug`].
    ///
    /// # Errors
    /// What the kernel says; it may have no tap devices.
    pub async fn settle(&self, attachment: &Attachment, deadline: Instant) -> Result<Unowned, NetworkError> {
        let Some(interface) = &attachment.interface else {
            return Ok(Unowned::default());
        };
        if let Some(hold) = self.make_hold(attachment).await? {
            hold.catch(&self.shared.links, &interface.host_link).await?;
        }
        self.unowned(attachment, deadline).await
    }

    /// Waits until `deadline` for connections of the container that no process holds; answers what is left.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn unowned(&self, attachment: &Attachment, deadline: Instant) -> Result<Unowned, NetworkError> {
        if attachment.interface.is_none() {
            return Ok(Unowned::default());
        }
        let namespace = netns::open(&attachment.netns)?;
        netns::within(Some(namespace), "look for connections nobody holds", move || {
            sockets::settle(deadline).map_err(NetworkError::io("list the container's connections"))
        })
        .await
    }

    /// Takes a container that stands still off its network, as [`Self::unplug`]; what others send is kept from before that
    /// on, if [`Self::settle`] has been called.
    ///
    /// # Errors
    /// As [`Self::unplug`].
    pub async fn cut(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let hold = self.shared.holds.of(&attachment.container);
        if let Some(hold) = &hold {
            hold.keep_all();
        }
        self.unplug(attachment).await?;
        match hold {
            Some(hold) => hold.yield_to_others(&self.shared.links).await,
            None => Ok(()),
        }
    }

    /// What has been kept for a container since [`Self::settle`]. Nothing is kept any more.
    pub async fn caught(&self, attachment: &Attachment) -> Vec<Vec<u8>> {
        let Some(hold) = self.shared.holds.of(&attachment.container) else {
            return Vec::new();
        };
        crate::blocking::run(move || hold.caught()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(flags: u8, options: usize) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend_from_slice(&ETHERTYPE_IPV4);
        let mut packet = vec![0; 20 + 4 * options + 20];
        packet[0] = 0x40 | (5 + options as u8);
        packet[9] = PROTOCOL_TCP;
        packet[20 + 4 * options + 13] = flags;
        frame.extend_from_slice(&packet);
        frame
    }

    #[test]
    fn only_the_first_packet_of_a_connection_waits() {
        for options in [0, 1, 10] {
            assert!(is_first_packet(&tcp(TCP_SYN, options)));
            assert!(
                is_first_packet(&tcp(TCP_SYN | 0xc0, options)),
                "with ECN asked for"
            );
            for flags in [0x12, 0x10, 0x18, 0x11, 0x04] {
                assert!(!is_first_packet(&tcp(flags, options)), "{flags:#x}");
            }
        }
        let mut udp = tcp(TCP_SYN, 0);
        udp[14 + 9] = 17;
        assert!(!is_first_packet(&udp));
    }

    #[test]
    fn a_frame_cut_short_is_no_first_packet() {
        let whole = tcp(TCP_SYN, 0);
        for length in 0..14 + 20 + 14 {
            assert!(!is_first_packet(&whole[..length]), "{length} bytes");
        }
    }

    #[test]
    fn what_is_kept_has_bounds() {
        let mut kept = Kept::default();
        for _ in 0..MOST_FRAMES + 3 {
            kept.add(&[0; 60]);
        }
        assert_eq!((kept.frames.len(), kept.lost), (MOST_FRAMES, 3));
        let mut kept = Kept::default();
        for _ in 0..20 {
            kept.add(&vec![0; MOST_BYTES / 16]);
        }
        assert_eq!((kept.frames.len(), kept.lost), (16, 4));
    }
}
