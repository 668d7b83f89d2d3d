//! The bridge of an `l2` network: there, up, with the uplink as a port and the uplink's addresses and routes as its own.
//!
//! Every step can be repeated, and the order keeps the host reachable throughout: the uplink becomes a port first (the
//! kernel then hands what arrives for the host to the bridge, which has the same MAC), each address is on the bridge
//! before it leaves the uplink, and so is each route. The bridge stays when the daemon ends: containers run on.
//!
//! The bridge keeps the uplink's MAC; one that is not set would change with each port that comes or goes, and with it
//! the address others know the host by. No spanning tree and no forward delay: a port forwards as soon as it is there.
//! No multicast snooping: there is no querier whose absence it would survive.
//!
//! Where `br_netfilter` is loaded with `net.bridge.bridge-nf-call-iptables` on, bridged frames go through the host's
//! iptables rules, and Docker's drop them; nothing here can undo that, so it is logged.

use std::fs;
use std::net::IpAddr;

use rtnetlink::packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope,
};
use rtnetlink::packet_route::link::BridgeStpState;
use rtnetlink::packet_route::route::{RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType};
use rtnetlink::{LinkBridge, LinkUnspec};

use super::error::NetworkError;
use super::links::{Link, Links, link_of};
use crate::config::L2Config;

/// Table of the kernel's own local routes.
const LOCAL_TABLE: u8 = 255;

/// Makes things so, as far as they are not; answers with the bridge.
pub(super) async fn ensure(links: &Links, network: &str, config: &L2Config) -> Result<Link, NetworkError> {
    let uplink = match &config.uplink {
        Some(name) => Some(require(links, network, name).await?),
        None => None,
    };
    let name = config.bridge.as_str();
    let bridge = match links.find(name).await? {
        Some(link) if !link.is_bridge => {
            return Err(NetworkError::NotABridge {
                link: name.to_owned(),
            });
        }
        Some(link) => link,
        None => make(links, network, name, uplink.as_ref()).await?,
    };
    if !bridge.up {
        let message = LinkUnspec::new_with_index(bridge.index).up().build();
        links
            .change(&format!("bring up the bridge {name}"), message)
            .await?;
    }
    if let Some(uplink) = uplink {
        adopt(links, &uplink, &bridge).await?;
    }
    Ok(bridge)
}

/// Tells an operator, once, about what a bridge cannot do anything about.
pub(super) fn warn_of_br_netfilter() {
    let file = "/proc/sys/net/bridge/bridge-nf-call-iptables";
    if fs::read_to_string(file).is_ok_and(|value| value.trim() == "1") {
        tracing::warn!(
            file,
            "bridged frames pass through this host's iptables rules: those of Docker drop them, set the file to 0 \
             or allow them in FORWARD"
        );
    }
}

async fn require(links: &Links, network: &str, name: &str) -> Result<Link, NetworkError> {
    let missing = || NetworkError::NoLink {
        network: network.to_owned(),
        link: name.to_owned(),
    };
    links.find(name).await?.ok_or_else(missing)
}

async fn make(links: &Links, network: &str, name: &str, uplink: Option<&Link>) -> Result<Link, NetworkError> {
    let what = format!("make the bridge {name}");
    let message = LinkBridge::new(name)
        .stp_state(BridgeStpState::Disabled)
        .forward_delay(0)
        .mcast_snooping(false);
    links.add(&what, message.build()).await?;
    let bridge = require(links, network, name).await?;
    if let Some(mac) = uplink.map_or(bridge.mac, |uplink| uplink.mac) {
        let message = LinkUnspec::new_with_index(bridge.index)
            .address(mac.to_vec())
            .build();
        links.change(&what, message).await?;
    }
    tracing::info!(network, bridge = name, "made the bridge");
    Ok(bridge)
}

async fn adopt(links: &Links, uplink: &Link, bridge: &Link) -> Result<(), NetworkError> {
    match uplink.master {
        Some(master) if master == bridge.index => {}
        Some(_) => {
            return Err(NetworkError::UplinkTaken {
                uplink: uplink.name.clone(),
            });
        }
        None => {
            let message = LinkUnspec::new_with_index(uplink.index)
                .up()
                .controller(bridge.index)
                .build();
            links
                .change(
                    &format!("make {} a port of {}", uplink.name, bridge.name),
                    message,
                )
                .await?;
            tracing::info!(
                uplink = uplink.name,
                bridge = bridge.name,
                "the uplink is a port of the bridge"
            );
        }
    }
    let addresses: Vec<_> = links
        .addresses(uplink.index)
        .await?
        .into_iter()
        .filter(moves)
        .collect();
    for address in &addresses {
        links.add_address(on_bridge(address, bridge.index)).await?;
    }
    let mut routes: Vec<_> = links
        .routes()
        .await?
        .into_iter()
        .filter(|route| is_of(route, uplink.index))
        .collect();
    // A gateway must be reachable by a route that is there already.
    routes.sort_by_key(|route| {
        route
            .attributes
            .iter()
            .any(|a| matches!(a, RouteAttribute::Gateway(_)))
    });
    for route in &routes {
        links.append_route(by_bridge(route, bridge.index)).await?;
    }
    for route in routes.into_iter().rev() {
        links.delete_route(route).await?;
    }
    for address in addresses {
        links.delete_address(address).await?;
    }
    Ok(())
}

fn moves(address: &AddressMessage) -> bool {
    address.header.scope != AddressScope::Link
}

/// The same address as the bridge's. Its label names the uplink, and it has been checked for duplicates already.
fn on_bridge(address: &AddressMessage, bridge: u32) -> AddressMessage {
    let mut moved = address.clone();
    moved.header.index = bridge;
    moved.attributes.retain(|attribute| {
        matches!(
            attribute,
            AddressAttribute::Address(_)
                | AddressAttribute::Local(_)
                | AddressAttribute::Broadcast(_)
                | AddressAttribute::CacheInfo(_)
        )
    });
    moved.header.flags = AddressHeaderFlags::empty();
    if matches!(super::links::address_of(address), Some(IpAddr::V6(_))) {
        moved
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    moved
}

/// Whether somebody, not the kernel by itself, set this route over the uplink.
fn is_of(route: &RouteMessage, uplink: u32) -> bool {
    link_of(route) == Some(uplink)
        && route.header.protocol != RouteProtocol::Kernel
        && route.header.table != LOCAL_TABLE
        && route.header.kind == RouteType::Unicast
}

fn by_bridge(route: &RouteMessage, bridge: u32) -> RouteMessage {
    let mut moved = route.clone();
    moved.header.flags = RouteFlags::empty();
    moved
        .attributes
        .retain(|attribute| !matches!(attribute, RouteAttribute::CacheInfo(_)));
    for attribute in &mut moved.attributes {
        if let RouteAttribute::Oif(index) = attribute {
            *index = bridge;
        }
    }
    moved
}
