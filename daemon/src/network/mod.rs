//! Networks of containers: how one gets an address that can move to another host with it.
//!
//! ```text
//!   container's netns            host's netns
//!   eth0 10.77.0.50  <- veth ->  tr-0123456789ab --+
//!                                                  +-- br0 (the host's own address) -- uplink -- other hosts
//!                        another container's -----+
//! ```
//!
//! A network of kind `l2` is a bridge that the host's uplink is a port of: a container's address *and* MAC are then
//! seen by every host of the segment, and can be at any of them. `none` is a namespace with nothing but `lo`, `host`
//! no namespace at all.
//!
//! What moves a container's traffic is one bridge port: [`Networks::unplug`] takes it out of the bridge,
//! [`Networks::plug`] puts it in and announces the address. The host's end of the veth stays up throughout, so that
//! the container keeps its carrier and its neighbour entries, and the port forwards from the moment it is in the
//! bridge; while it is out, the host's own stack is deaf on it (no ARP answers, no IPv6, no forwarding).
//!
//! A container that is on its way has a tap in its place at the destination ([`Networks::hold`]): what is sent to it
//! meanwhile waits there. At its source another tap keeps what comes until the destination has announced the address
//! ([`Networks::settle`], [`Networks::cut`]). So there is no moment at which a frame finds nobody.
//!
//! A container that runs and cannot be plugged in is plugged in later ([`Networks::plug_until_it_is_in`]).
//!
//! Nothing is kept in files: the kernel is asked. The host's end of the veth carries the network and the container's id as
//! its alias, so a daemon that starts again finds everything by [`Networks::find`].
//!
//! Deliberately absent: IPv6 inside containers (an address that would not be announced when it moves is worse than none),
//! NAT, port mappings.

mod address;
mod again;
mod arp;
mod arrivals;
mod attachment;
mod bridge;
mod cable;
mod catch;
mod cut;
mod error;
mod hold;
mod inside;
mod links;
mod mac;
mod neighbours;
mod netns;
mod networks;
mod sockets;

pub use arrivals::{load_arrivals, save_arrivals};
pub use attachment::{Attachment, Interface, NetworkRequest};
pub use error::NetworkError;
pub use mac::MacAddr;
pub use neighbours::{Neighbour, load_neighbours, neighbours_of, save_neighbours};
pub use networks::Networks;
pub use sockets::Unowned;

#[cfg(test)]
mod tests;
