//! Cutting a container off and connecting it: one port of a bridge, and the announcement that comes with it.
//!
//! A container that moves is muted first: its port is locked, and the bridge forgets the one address that may pass it. What
//! others send still arrives, by flooding, until the destination announces the address from where it is; so there is no
//! moment at which a frame finds nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rtnetlink::packet_route::link::InfoBridgePort;
use rtnetlink::{LinkBridgePort, LinkUnspec};
use tokio::task::AbortHandle;
use tranship_proto::ids::ContainerId;

use super::arp;
use super::attachment::{Attachment, Interface};
use super::error::NetworkError;
use super::hold::Hold;
use super::links::{Link, Links};
use crate::sys::packet::ArpSocket;

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

    fn start(&self, id: &ContainerId, socket: ArpSocket, interface: &Interface) {
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
    let socket = ArpSocket::open(&bridge.name).map_err(announcing())?;
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
    if link.master.is_some() {
        set_lock(links, &link, false).await?;
    }
    match hold {
        Some(hold) => {
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

/// Lets nothing that comes from the container pass the bridge, while it still gets what others send. A kernel older than
/// 5.18 cannot lock a port; nothing changes there. One that is in no bridge is mute already.
pub(super) async fn mute(
    links: &Links,
    announcers: &Announcers,
    attachment: &Attachment,
) -> Result<(), NetworkError> {
    let Some(interface) = &attachment.interface else {
        return Ok(());
    };
    announcers.stop(&attachment.container);
    let link = links.find(&interface.host_link).await?;
    let Some(link) = link.filter(|link| link.master.is_some()) else {
        return Ok(());
    };
    match set_lock(links, &link, true).await {
        Ok(()) => links.unlearn(link.index, interface.mac).await,
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether only stations that the bridge knows to be behind this port may send through it.
async fn set_lock(links: &Links, port: &Link, locked: bool) -> Result<(), NetworkError> {
    let message = LinkBridgePort::new(port.index).append_info_data(InfoBridgePort::Locked(locked));
    let what = format!("set the lock of the bridge port {}", port.name);
    links.change(&what, message.build()).await
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
