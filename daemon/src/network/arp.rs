//! ARP: asking whether an address is in use, and saying where one is now.
//!
//! Probes (RFC 5227) are sent from the bridge with the *bridge's* MAC: with the container's they would teach every switch on
//! the way that the container is here while it still runs elsewhere. Announcements are sent from the container's own end of
//! its cable, because that is what a switch must learn, this host's bridge included.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::mac::MacAddr;
use crate::sys::packet::{ArpSocket, FrameSocket, HEADER_BYTES};

/// Bytes of an ARP packet for IPv4 over Ethernet.
const PACKET_BYTES: usize = 28;

/// Bytes of the frame it comes in.
pub(super) const FRAME_BYTES: usize = HEADER_BYTES + PACKET_BYTES;

/// When the probes of one address are sent. RFC 5227 spreads three over seconds, for links that come up while
/// people plug them in; on a bridge that is up an answer takes less than a millisecond.
const PROBES: [Duration; 3] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(100),
];

/// How long an answer to the last probe is waited for.
const PROBE_WAIT: Duration = Duration::from_millis(100);

/// Whether a packet asks or answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Request,
    Reply,
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packet {
    pub operation: Operation,
    pub sender_mac: MacAddr,
    pub sender_ip: Ipv4Addr,
    pub target_mac: MacAddr,
    pub target_ip: Ipv4Addr,
}

impl Packet {
    fn probe(from: MacAddr, ip: Ipv4Addr) -> Self {
        Self {
            operation: Operation::Request,
            sender_mac: from,
            sender_ip: Ipv4Addr::UNSPECIFIED,
            target_mac: MacAddr::from_bytes([0; 6]),
            target_ip: ip,
        }
    }

    /// Both forms of a gratuitous ARP: some systems take note of the one, some of the other.
    pub(super) fn announcements(mac: MacAddr, ip: Ipv4Addr) -> [Self; 2] {
        let request = Self {
            operation: Operation::Request,
            sender_mac: mac,
            sender_ip: ip,
            target_mac: MacAddr::from_bytes([0; 6]),
            target_ip: ip,
        };
        [
            request,
            Self {
                operation: Operation::Reply,
                target_mac: MacAddr::BROADCAST,
                ..request
            },
        ]
    }

    pub(super) fn encode(&self) -> [u8; PACKET_BYTES] {
        let mut bytes = [0; PACKET_BYTES];
        // Ethernet, IPv4, six bytes and four bytes of address.
        bytes[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        bytes[7] = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        bytes[8..14].copy_from_slice(&self.sender_mac.bytes());
        bytes[14..18].copy_from_slice(&self.sender_ip.octets());
        bytes[18..24].copy_from_slice(&self.target_mac.bytes());
        bytes[24..].copy_from_slice(&self.target_ip.octets());
        bytes
    }

    /// What the bytes say, if they are such a packet. Ethernet pads short frames, so more bytes may follow.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (packet, _) = bytes.split_first_chunk::<PACKET_BYTES>()?;
        let [0, 1, 8, 0, 6, 4, 0, operation, a @ ..] = *packet else {
            return None;
        };
        let operation = match operation {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return None,
        };
        Some(Self {
            operation,
            sender_mac: MacAddr::from_bytes([a[0], a[1], a[2], a[3], a[4], a[5]]),
            sender_ip: Ipv4Addr::new(a[6], a[7], a[8], a[9]),
            target_mac: MacAddr::from_bytes([a[10], a[11], a[12], a[13], a[14], a[15]]),
            target_ip: Ipv4Addr::new(a[16], a[17], a[18], a[19]),
        })
    }

    /// Who has or is about to take the address that `own` probes for, if this packet says so. Of two that probe at the
    /// same time the one with the lower MAC goes on.
    fn claims(&self, ip: Ipv4Addr, own: MacAddr) -> Option<MacAddr> {
        let uses = self.sender_ip == ip;
        let probes = self.operation == Operation::Request
            && self.sender_ip.is_unspecified()
            && self.target_ip == ip
            && self.sender_mac.bytes() < own.bytes();
        (self.sender_mac != own && (uses || probes)).then_some(self.sender_mac)
    }
}

/// Asks on the link of that name, in the calling thread's network namespace, who else than `expected` has the address.
/// Blocks for 200 ms at most, less when somebody else answers.
///
/// # Errors
/// When the link is down or gone.
pub(super) fn probe(link: &str, ip: Ipv4Addr, expected: Option<MacAddr>) -> std::io::Result<Option<MacAddr>> {
    let socket = ArpSocket::open(link)?;
    let own = MacAddr::from_bytes(socket.hardware_address());
    let begin = Instant::now();
    for (number, at) in PROBES.iter().enumerate() {
        socket.broadcast(own.bytes(), &Packet::probe(own, ip).encode())?;
        let until = PROBES.get(number + 1).copied().unwrap_or(*at + PROBE_WAIT);
        let mut buffer = [0; FRAME_BYTES];
        while let Some(bytes) = socket.receive(&mut buffer, begin + until)? {
            let claim = Packet::decode(bytes).and_then(|packet| packet.claims(ip, own));
            if claim.is_some() && claim != expected {
                return Ok(claim);
            }
        }
    }
    Ok(None)
}

/// Says to everybody on the socket's link that `mac` has the address, in both forms that neighbours listen to.
///
/// # Errors
/// When the link is down or gone.
pub(super) fn announce(socket: &FrameSocket, mac: MacAddr, ip: Ipv4Addr) -> std::io::Result<()> {
    let packets = Packet::announcements(mac, ip);
    packets
        .iter()
        .try_for_each(|packet| socket.broadcast(mac.bytes(), &packet.encode()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
    const LOW: MacAddr = MacAddr::from_bytes([2, 0, 0, 0, 0, 1]);
    const HIGH: MacAddr = MacAddr::from_bytes([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_gratuitous_arp_has_these_bytes() {
        let [request, reply] = Packet::announcements(LOW, IP);
        let head = [0, 1, 8, 0, 6, 4, 0];
        let sender = [2, 0, 0, 0, 0, 1, 10, 77, 0, 50];
        let golden = [&head[..], &[1], &sender, &[0; 6], &[10, 77, 0, 50]].concat();
        assert_eq!(request.encode()[..], golden);
        let golden = [&head[..], &[2], &sender, &[0xff; 6], &[10, 77, 0, 50]].concat();
        assert_eq!(reply.encode()[..], golden);
    }

    #[test]
    fn who_answers_for_an_address_has_it() {
        let [_, reply] = Packet::announcements(HIGH, IP);
        assert_eq!(reply.claims(IP, LOW), Some(HIGH));
        assert_eq!(reply.claims(Ipv4Addr::new(10, 77, 0, 51), LOW), None);
        assert_eq!(reply.claims(IP, HIGH), None, "one's own packet is no conflict");
    }

    #[test]
    fn of_two_that_probe_at_once_exactly_one_goes_on() {
        assert_eq!(Packet::probe(LOW, IP).claims(IP, HIGH), Some(LOW));
        assert_eq!(Packet::probe(HIGH, IP).claims(IP, LOW), None);
    }

    #[test]
    fn a_request_by_somebody_else_is_no_claim() {
        let asks = Packet {
            sender_ip: Ipv4Addr::new(10, 77, 0, 9),
            ..Packet::probe(LOW, IP)
        };
        assert_eq!(asks.claims(IP, HIGH), None);
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same_bytes(bytes: [u8; PACKET_BYTES], request: bool) {
            let mut bytes = bytes;
            bytes[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, if request { 1 } else { 2 }]);
            let packet = Packet::decode(&bytes);
            prop_assert_eq!(packet.map(|packet| packet.encode()), Some(bytes));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Some(packet) = Packet::decode(&bytes) {
                prop_assert_eq!(&packet.encode()[..], &bytes[..PACKET_BYTES]);
            }
        }
    }
}
