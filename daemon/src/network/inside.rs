//! What is done inside a container's network namespace. Every function here runs on a thread that has entered it, with
//! a small runtime of its own for netlink.

use std::net::{IpAddr, Ipv4Addr};

use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{AddressMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::attachment::Interface;
use super::error::NetworkError;
use super::links::{Links, address_of, link_of};
use super::mac::MacAddr;

/// Name of a container's interface.
pub(super) const INNER_LINK: &str = "eth0";

/// What a container's interface looks like from inside.
pub(super) struct Inner {
    pub ip: Ipv4Addr,
    pub prefix_len: u8,
    pub mac: MacAddr,
    pub gateway: Option<Ipv4Addr>,
}

/// Brings up `lo`, and `eth0` with its address and default route if the container has one.
pub(super) fn configure(interface: Option<&Interface>) -> Result<(), NetworkError> {
    with_links(async |links| {
        bring_up(&links, "lo").await?;
        let Some(interface) = interface else { return Ok(()) };
        let index = bring_up(&links, INNER_LINK).await?;
        let address = AddressMessageBuilder::<Ipv4Addr>::new()
            .index(index)
            .address(interface.ip, interface.prefix_len);
        links.add_address(address.build()).await?;
        if let Some(gateway) = interface.gateway {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .output_interface(index)
                .gateway(gateway);
            links.append_route(route.build()).await?;
        }
        Ok(())
    })
}

/// What `eth0` has; none where there is none, or it has no address.
pub(super) fn inspect() -> Result<Option<Inner>, NetworkError> {
    with_links(async |links| {
        let Some(link) = links.find(INNER_LINK).await? else {
            return Ok(None);
        };
        let Some(mac) = link.mac else { return Ok(None) };
        let addresses = links.addresses(link.index).await?;
        let found = addresses.iter().find_map(|message| match address_of(message) {
            Some(IpAddr::V4(ip)) => Some((ip, message.header.prefix_len)),
            _ => None,
        });
        let Some((ip, prefix_len)) = found else {
            return Ok(None);
        };
        let gateway = default_gateway(&links, link.index).await?;
        Ok(Some(Inner {
            ip,
            prefix_len,
            mac: MacAddr::from_bytes(mac),
            gateway,
        }))
    })
}

fn with_links<T>(work: impl AsyncFnOnce(Links) -> Result<T, NetworkError>) -> Result<T, NetworkError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(NetworkError::io("start a runtime"))?;
    runtime.block_on(async { work(Links::open()?).await })
}

async fn bring_up(links: &Links, name: &str) -> Result<u32, NetworkError> {
    let missing = || NetworkError::State {
        what: format!("the container's namespace has no link {name}"),
    };
    let link = links.find(name).await?.ok_or_else(missing)?;
    let message = LinkUnspec::new_with_index(link.index).up().build();
    links
        .change(&format!("bring up the container's {name}"), message)
        .await?;
    Ok(link.index)
}

async fn default_gateway(links: &Links, index: u32) -> Result<Option<Ipv4Addr>, NetworkError> {
    let routes = links.routes().await?;
    Ok(routes
        .iter()
        .filter(|route| route.header.destination_prefix_length == 0 && link_of(route) == Some(index))
        .flat_map(|route| &route.attributes)
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
            _ => None,
        }))
}
