//! Cutting a container off and connecting it: one port of a bridge, and the announcement that comes with it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rtnetlink::LinkUnspec;
use tokio::task::AbortHandle;
use tranship_proto::ids::ContainerId;

use super::arp;
use super::attachment::{Attachment, Interface};
use super::error::NetworkError;
use super::hold::Hold;
use super::links::{Link, Links};
use crate::sys::packet::FrameSocket;

/// When an address is announced: a switch or a neighbour that misses one, during the turmoil of a move, gets another.
const ANNOUNCEMENTS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(1)];

/// The announcements under way: of a container that is cut off again none may follow.
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

    fn start(&self, id: &ContainerId, socket: FrameSocket, interface: &Interface) {
        let (container, mac, ip) = (id.clone(), interface.mac, interface.ip);
        let task = tokio::spawn(async move {
            for pair in ANNOUNCEMENTS.windows(2) {
                tokio::time::sleep(pair[1] - pair[0]).await;
                if let Err(error) = arp::announce(&socket, mac, ip) {
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
/// Answers how long it took until the port was one. What was held for it is handed over before it is announced.
///
/// The bridge may still believe that the container is behind the uplink, where it came from, and would drop what arrives
/// for it from there; it is told better.
pub(super) async fn plug(
    links: &Links,
    announcers: &Announcers,
    attachment: &Attachment,
    bridge: &Link,
    hold: Option<Arc<Hold>>,
) -> Result<Duration, NetworkError> {
    let Some(interface) = &attachment.interface else {
        return Ok(Duration::ZERO);
    };
    let name = &interface.host_link;
    let announcing = || NetworkError::io(format!("announce the address {}", interface.ip));
    let socket = FrameSocket::open(&bridge.name).map_err(announcing())?;
    let begin = Instant::now();
    let link = links.find(name).await?.ok_or_else(|| NetworkError::NoLink {
        network: attachment.network.clone(),
        link: name.clone(),
    })?;
    let message = LinkUnspec::new_with_index(link.index)
        .controller(bridge.index)
        .build();
    links
        .change(&format!("put {name} into its bridge"), message)
        .await?;
    match hold {
        Some(hold) => {
            hold.pass_on()?;
            let delivered = hold.hand_over(links, &link).await?;
            let (frames, bytes, lost) = (delivered.frames, delivered.bytes, delivered.lost);
            let container = attachment.container.short();
            tracing::info!(container, frames, bytes, lost, "handed over what was held");
        }
        None => links.learn(link.index, interface.mac).await?,
    }
    let took = begin.elapsed();
    arp::announce(&socket, interface.mac, interface.ip).map_err(announcing())?;
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
