//! What is sent to a container while it is on its way here: kept, and handed over in order when it is plugged in.
//!
//! ```text
//!   others -- uplink -- br0 --+-- th-0123456789ab   a tap: the bridge believes the container to be behind it, and what
//!                             |                      it forwards there waits in the tap's queue
//!                             `-- tr-0123456789ab   the container's cable, a port from the commit on
//! ```
//!
//! The tap is made while the container still runs at its source and stays deaf until [`Networks::hold`]: it is a port that
//! nothing is flooded to. Nothing ever comes out of it, so a container that is held says nothing. At the end the cable
//! becomes a port, what the container has said since its tasks were let go is passed on ([`Networks::listen`]), what has
//! waited is put into the cable, the bridge is told that the container is there, and what came in between follows.
//!
//! The queue is the kernel's: it is bounded, what does not fit is dropped and counted, and it is gone with the daemon.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rtnetlink::packet_route::link::InfoBridgePort;
use rtnetlink::{LinkBridgePort, LinkUnspec};
use tranship_proto::ids::ContainerId;

use super::attachment::{Attachment, Interface, NetworkRequest};
use super::catch::{Kept, Relay};
use super::error::NetworkError;
use super::links::{Link, Links};
use super::mac::MacAddr;
use super::networks::{Networks, Place};
use super::{arp, netns};
use crate::sys::packet::{ETHERTYPE_ARP, FrameListener, FrameSocket, HEADER_BYTES};
use crate::sys::tap::Tap;

/// Most frames that wait for one container: what eight thousand busy clients have under way.
const MOST_FRAMES: u32 = 8192;

/// Most bytes that wait for one container, where its frames are long.
const MOST_BYTES: u32 = 16 << 20;

/// Longest frame there can be.
pub(super) const FRAME_BYTES: usize = 1 << 16;

/// What has been handed over to a container, and what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    /// Frames.
    pub frames: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Frames that did not fit, or that the cable did not take.
    pub lost: u64,
}

/// The containers that are awaited.
#[derive(Default)]
pub(super) struct Holds {
    by_container: Mutex<HashMap<ContainerId, Arc<Hold>>>,
}

impl Holds {
    pub(super) fn of(&self, id: &ContainerId) -> Option<Arc<Hold>> {
        self.lock().get(id).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, Arc<Hold>>> {
        lock(&self.by_container)
    }
}

/// The tap of one container.
#[derive(Debug)]
pub(super) struct Trap {
    tap: Tap,
    name: String,
    mac: MacAddr,
    ip: Ipv4Addr,
}

impl Trap {
    pub(super) fn tap(&self) -> &Tap {
        &self.tap
    }

    pub(super) fn next<'b>(&self, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>, NetworkError> {
        self.tap
            .next(buffer)
            .map_err(NetworkError::io(format!("read from the tap {}", self.name)))
    }

    pub(super) fn is_for(&self, frame: &[u8]) -> bool {
        is_for(frame, self.mac, self.ip)
    }
}

/// What waits for one container. Sockets are kept until its end: the kernel takes milliseconds to close one.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) trap: Arc<Trap>,
    link: u32,
    /// Into the bridge.
    voice: FrameSocket,
    /// Into the cable.
    cable: Mutex<Option<Arc<FrameSocket>>>,
    /// To the cable.
    listener: Mutex<Option<FrameListener>>,
    relay: Mutex<Option<Relay>>,
    /// What came before all that is in the tap.
    early: Mutex<Kept>,
    /// Frames the tap had dropped before anything was meant for it.
    dropped_before: u64,
}

impl Networks {
    /// Makes ready to hold what arrives for a container that may come to this host: does what costs time, and changes
    /// nothing for anybody. Until [`Self::let_go`]. Nothing on `none` and `host`; again is as good.
    ///
    /// # Errors
    /// [`NetworkError::Incomplete`] without address or MAC on an `l2` network, or what the kernel says: it may have no tap
    /// devices. Nothing is left behind then.
    pub async fn expect(&self, id: &ContainerId, request: &NetworkRequest) -> Result<(), NetworkError> {
        if self.shared.holds.of(id).is_some() {
            return Ok(());
        }
        let Place::L2(name, config) = self.place(&request.network)? else {
            return Ok(());
        };
        let Some(interface) = self.planned(id, request, Path::new(""))?.interface else {
            return Ok(());
        };
        let bridge = self.bridge(name, config).await?;
        let hold = Hold::make(&self.shared.links, id, &interface, &bridge).await?;
        self.shared.holds.lock().insert(id.clone(), Arc::new(hold));
        Ok(())
    }

    /// As [`Self::expect`], for a container of this host.
    pub(super) async fn make_hold(&self, attachment: &Attachment) -> Result<Option<Arc<Hold>>, NetworkError> {
        let interface = attachment.interface.as_ref();
        let request = NetworkRequest {
            network: attachment.network.clone(),
            ip: interface.map(|interface| interface.ip),
            mac: interface.map(|interface| interface.mac),
            taken: Vec::new(),
        };
        self.expect(&attachment.container, &request).await?;
        Ok(self.shared.holds.of(&attachment.container))
    }

    /// Announces the address of a container that its source has cut off, and keeps what arrives for it until
    /// [`Self::plug`]. Not a packet of the container leaves.
    ///
    /// # Errors
    /// As [`Self::expect`], which this does where it was not done before.
    pub async fn hold(&self, id: &ContainerId, request: &NetworkRequest) -> Result<(), NetworkError> {
        self.expect(id, request).await?;
        match self.shared.holds.of(id) {
            Some(hold) => hold.begin(&self.shared.links).await,
            None => Ok(()),
        }
    }

    /// Keeps what a container says whose cable is laid and no port yet, until [`Self::plug`] passes it on: its first words
    /// would otherwise have to be said again, after a retransmission's time. Only where frames are held for it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn listen(&self, attachment: &Attachment) -> Result<(), NetworkError> {
        let hold = self.shared.holds.of(&attachment.container);
        let (Some(hold), Some(interface)) = (hold, &attachment.interface) else {
            return Ok(());
        };
        let cable = &interface.host_link;
        let listener = FrameListener::open(cable).map_err(NetworkError::io(format!("listen to {cable}")))?;
        *lock(&hold.listener) = Some(listener);
        Ok(())
    }

    /// Adds frames that another host has kept for a container that is held here; they are handed over first.
    pub fn add_early(&self, id: &ContainerId, frames: &[Vec<u8>]) {
        if let Some(hold) = self.shared.holds.of(id) {
            let mut early = lock(&hold.early);
            frames.iter().for_each(|frame| early.add(frame));
        }
    }

    /// Holds nothing any more for this container; what still waits is lost, unless the container is still connected.
    /// Nothing held is as good.
    pub async fn let_go(&self, id: &ContainerId) {
        let hold = self.shared.holds.lock().remove(id);
        let Some(hold) = hold else { return };
        let link = hold.link;
        // The kernel takes its time to remove a link.
        crate::blocking::run(move || {
            hold.stop_relay();
            drop(hold);
        })
        .await;
        // A program that is just being started has the tap open too, until it is executed: the link would outlive this
        // call, and the next tap of that name could not be made.
        if let Err(error) = self.shared.links.delete(link).await {
            tracing::warn!(container = %id, error = %error.chain(), "a tap is left behind; it goes with this daemon");
        }
    }
}

impl Hold {
    async fn make(
        links: &Links,
        id: &ContainerId,
        interface: &Interface,
        bridge: &Link,
    ) -> Result<Self, NetworkError> {
        let name = format!("th-{}", id.short());
        let what = format!("make the tap {name}");
        let made = netns::within(None, "make a tap", {
            let (name, what) = (name.clone(), what.clone());
            move || Tap::make(&name).map_err(NetworkError::io(what))
        });
        let tap = made.await?;
        netns::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
        let gone = || NetworkError::State {
            what: format!("the tap {name} went away"),
        };
        let link = links.find(&name).await?.ok_or_else(gone)?.index;
        let message = LinkUnspec::new_with_index(link)
            .mtu(bridge.mtu)
            .txqueuelen(most_frames(bridge.mtu))
            .controller(bridge.index)
            .up();
        links.change(&what, message.build()).await?;
        let deaf = LinkBridgePort::new(link)
            .append_info_data(InfoBridgePort::Learning(false))
            .append_info_data(InfoBridgePort::UnicastFlood(false))
            .append_info_data(InfoBridgePort::MulticastFlood(false))
            .append_info_data(InfoBridgePort::BroadcastFlood(false));
        links.change(&what, deaf.build()).await?;
        let voice = FrameSocket::open(&bridge.name)
            .map_err(NetworkError::io(format!("open a socket on {}", bridge.name)))?;
        let trap = Trap {
            tap,
            name,
            mac: interface.mac,
            ip: interface.ip,
        };
        // What was flooded there before it was deaf.
        let mut buffer = vec![0; FRAME_BYTES];
        while trap.next(&mut buffer)?.is_some() {}
        let dropped_before = links.find(&trap.name).await?.map_or(0, |tap| tap.dropped);
        Ok(Self {
            trap: Arc::new(trap),
            link,
            voice,
            cable: Mutex::default(),
            listener: Mutex::default(),
            relay: Mutex::default(),
            early: Mutex::default(),
            dropped_before,
        })
    }

    async fn begin(&self, links: &Links) -> Result<(), NetworkError> {
        let Trap { mac, ip, .. } = *self.trap;
        self.yield_to_others(links).await?;
        // Once: of a container that its source takes back nothing may follow.
        arp::announce(&self.voice, mac, ip).map_err(NetworkError::io(format!("announce the address {ip}")))
    }

    /// Sends what is meant for a connected container past the tap on its way.
    pub(super) async fn catch(&self, links: &Links, cable: &str) -> Result<(), NetworkError> {
        let socket = self.open_cable(cable)?;
        *lock(&self.relay) = Some(Relay::start(Arc::clone(&self.trap), socket)?);
        // Whatever the container says meanwhile, it is here that it is heard.
        links.pin(self.link, self.trap.mac).await
    }

    pub(super) fn keep_all(&self) {
        if let Some(relay) = &*lock(&self.relay) {
            relay.keep_all();
        }
    }

    /// Has the bridge bring everything here until the address is announced elsewhere. Who asks for it is answered when the
    /// container is.
    pub(super) async fn yield_to_others(&self, links: &Links) -> Result<(), NetworkError> {
        links.learn(self.link, self.trap.mac).await?;
        let listens = LinkBridgePort::new(self.link).append_info_data(InfoBridgePort::BroadcastFlood(true));
        let what = format!("open the tap {}", self.trap.name);
        links.change(&what, listens.build()).await
    }

    /// Everything that has been kept so far; blocks for a millisecond.
    pub(super) fn caught(&self) -> Vec<Vec<u8>> {
        self.stop_relay();
        lock(&self.early).frames.clone()
    }

    fn stop_relay(&self) {
        let relay = lock(&self.relay).take();
        if let Some(relay) = relay {
            let kept = relay.stop();
            let mut early = lock(&self.early);
            kept.frames.iter().for_each(|frame| early.add(frame));
            early.lost += kept.lost;
        }
    }

    /// Passes on what the container has said until its cable became a port. A frame of the moment in between may come
    /// twice, none is missed.
    pub(super) fn pass_on(&self) -> Result<(), NetworkError> {
        let listener = lock(&self.listener);
        let Some(listener) = &*listener else {
            return Ok(());
        };
        let listening = || NetworkError::io(format!("listen to what {} says", self.trap.mac));
        listener.stop().map_err(listening())?;
        let mut buffer = vec![0; FRAME_BYTES];
        while let Some(frame) = listener.next(&mut buffer).map_err(listening())? {
            // The network may lose a frame, and so may this.
            let _ = self.voice.send(frame);
        }
        Ok(())
    }

    /// Hands over what has waited to the container at the other end of `cable`, which is a port of the bridge already.
    /// From then on the bridge knows it to be there.
    pub(super) async fn hand_over(
        self: &Arc<Self>,
        links: &Links,
        cable: &Link,
    ) -> Result<Delivered, NetworkError> {
        let socket = self.open_cable(&cable.name)?;
        // The container's own answers must not call the frames that come now past those that have waited.
        links.pin(self.link, self.trap.mac).await?;
        let mut delivered = self.deliver(&socket).await?;
        links.learn(cable.index, self.trap.mac).await?;
        let rest = self.deliver(&socket).await?;
        delivered.frames += rest.frames;
        delivered.bytes += rest.bytes;
        delivered.lost += rest.lost;
        let tap = links.find(&self.trap.name).await?;
        delivered.lost += tap.map_or(0, |tap| tap.dropped.saturating_sub(self.dropped_before));
        Ok(delivered)
    }

    async fn deliver(self: &Arc<Self>, socket: &Arc<FrameSocket>) -> Result<Delivered, NetworkError> {
        let (hold, socket) = (Arc::clone(self), Arc::clone(socket));
        crate::blocking::run(move || {
            hold.stop_relay();
            let early = std::mem::take(&mut *lock(&hold.early));
            let mut delivered = Delivered {
                lost: early.lost,
                ..Delivered::default()
            };
            let frames = early.frames.iter().filter(|frame| hold.trap.is_for(frame));
            frames.for_each(|frame| delivered.send(&socket, frame));
            let mut buffer = vec![0; FRAME_BYTES];
            while let Some(frame) = hold.trap.next(&mut buffer)? {
                if hold.trap.is_for(frame) {
                    delivered.send(&socket, frame);
                }
            }
            Ok(delivered)
        })
        .await
    }

    fn open_cable(&self, name: &str) -> Result<Arc<FrameSocket>, NetworkError> {
        let opened = FrameSocket::open(name).map_err(NetworkError::io(format!("open a socket on {name}")))?;
        let socket = Arc::new(opened);
        *lock(&self.cable) = Some(Arc::clone(&socket));
        Ok(socket)
    }
}

impl Delivered {
    fn send(&mut self, socket: &FrameSocket, frame: &[u8]) {
        match socket.send(frame) {
            Ok(()) => {
                self.frames += 1;
                self.bytes += frame.len() as u64;
            }
            Err(_) => self.lost += 1,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frames that may wait, so that both bounds are kept.
fn most_frames(mtu: u32) -> u32 {
    (MOST_BYTES / mtu.saturating_add(HEADER_BYTES as u32).max(1)).clamp(1, MOST_FRAMES)
}

/// Whether a frame is the container's: sent to it, or to everybody in order to find it.
fn is_for(frame: &[u8], mac: MacAddr, ip: Ipv4Addr) -> bool {
    let Some((header, payload)) = frame.split_first_chunk::<HEADER_BYTES>() else {
        return false;
    };
    let destination = &header[..6];
    if destination == mac.bytes() {
        return true;
    }
    destination == MacAddr::BROADCAST.bytes()
        && header[12..] == ETHERTYPE_ARP.to_be_bytes()
        && arp::Packet::decode(payload).is_some_and(|packet| packet.target_ip == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: MacAddr = MacAddr::from_bytes([2, 0, 0, 0, 0, 7]);
    const IP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 7);

    fn frame(destination: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
        [&destination, &[2; 6][..], &ethertype.to_be_bytes(), payload].concat()
    }

    #[test]
    fn neither_bound_is_passed_whatever_the_mtu() {
        for mtu in [0, 68, 1500, 9000, 65535, u32::MAX] {
            let frames = most_frames(mtu);
            assert!((1..=MOST_FRAMES).contains(&frames), "{mtu}: {frames}");
            let bytes = u64::from(frames) * (u64::from(mtu) + HEADER_BYTES as u64);
            assert!(frames == 1 || bytes <= u64::from(MOST_BYTES), "{mtu}: {bytes}");
        }
    }

    #[test]
    fn a_container_gets_what_is_sent_to_it_and_questions_for_its_address() {
        let everybody = MacAddr::BROADCAST.bytes();
        let asks = |ip| arp::Packet::announcements(MAC, ip)[0].encode();
        assert!(is_for(&frame(MAC.bytes(), 0x0800, b"data"), MAC, IP));
        assert!(is_for(&frame(everybody, ETHERTYPE_ARP, &asks(IP)), MAC, IP));
        let other = Ipv4Addr::new(10, 99, 0, 8);
        assert!(!is_for(&frame(everybody, ETHERTYPE_ARP, &asks(other)), MAC, IP));
        assert!(!is_for(&frame(everybody, 0x0800, &asks(IP)), MAC, IP));
        assert!(!is_for(&frame([4; 6], 0x0800, b"data"), MAC, IP));
        assert!(!is_for(b"short", MAC, IP));
    }
}
