//! Cutting a container off and connecting it: one port of a bridge, and the announcement that comes with it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rtnetlink::LinkUnspec;
use tokio::task::AbortHandle;
use tranship_proto::ids::ContainerId;

use super::arp::Packet;
use super::attachment::{Attachment, Interface};
use super::error::NetworkError;
use super::inside::INNER_LINK;
use super::links::Links;
use super::netns;
use crate::sys::packet::ArpSocket;

/// When an address is announced: a switch or a neighbour that misses one, during the turmoil of a move, gets another.
const ANNOUNCEMENTS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(1)];

/// The announcements under way. Each holds its container's namespace, so they end with the attachment.
#[derive(Default)]
pub(super) struct Announcers {
    tasks: Mutex<HashMap<ContainerId, AbortHandle>>,
}

impl Announcers {
    pub(super) fn stop(&self, id: &ContainerId) {
        if let Some(task) = self.lock().remove(id) {
            task.abort();
        }
    }

    fn start(&self, id: &ContainerId, socket: ArpSocket, interface: &Interface) {
        let packets = Packet::announcements(interface.mac, interface.ip);
        let container = id.clone();
        let task = tokio::spawn(async move {
            for pair in ANNOUNCEMENTS.windows(2) {
                tokio::time::sleep(pair[1] - pair[0]).await;
                if let Err(error) = announce(&socket, &packets) {
                    tracing::warn!(container = container.short(), %error, "an announcement was not sent");
                }
            }
        });
        if let Some(former) = self.lock().insert(id.clone(), task.abort_handle()) {
            former.abort();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the container's link a port of the bridge and announces its address: once before this returns, twice later.
/// Answers how long it took until the port was one.
pub(super) async fn plug(
    links: &Links,
    announcers: &Announcers,
    attachment: &Attachment,
    bridge: u32,
) -> Result<Duration, NetworkError> {
    let Some(interface) = &attachment.interface else {
        return Ok(Duration::ZERO);
    };
    let link = interface.host_link.clone();
    // Inside the namespace: what announces must come in by the port that is announced.
    let socket = netns::within(attachment.netns.clone(), "open a packet socket", || {
        ArpSocket::open(INNER_LINK).map_err(NetworkError::io(
            "open a packet socket in the container's network",
        ))
    })
    .await?;
    let begin = Instant::now();
    let message = LinkUnspec::new_with_name(&link).controller(bridge).build();
    links
        .change(&format!("put {link} into its bridge"), message)
        .await?;
    let took = begin.elapsed();
    announce(&socket, &Packet::announcements(interface.mac, interface.ip))
        .map_err(NetworkError::io(format!("announce the address {}", interface.ip)))?;
    announcers.start(&attachment.container, socket, interface);
    Ok(took)
}

/// Takes the container's link out of the bridge: nothing from it reaches the network any more, nor the other way.
/// Answers how long that took.
pub(super) async fn unplug(
    links: &Links,
    announcers: &Announcers,
    attachment: &Attachment,
) -> Result<Duration, NetworkError> {
    let Some(interface) = &attachment.interface else {
        return Ok(Duration::ZERO);
    };
    let link = &interface.host_link;
    let begin = Instant::now();
    announcers.stop(&attachment.container);
    let message = LinkUnspec::new_with_name(link).nocontroller().build();
    links
        .change(&format!("take {link} out of its bridge"), message)
        .await?;
    Ok(begin.elapsed())
}

fn announce(socket: &ArpSocket, packets: &[Packet]) -> std::io::Result<()> {
    packets
        .iter()
        .try_for_each(|packet| socket.broadcast(&packet.encode()))
}
