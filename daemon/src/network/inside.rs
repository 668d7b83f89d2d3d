//! What is done inside a container's network namespace. Every function here runs on a thread that has entered it, with
//! a small runtime of its own for netlink.

use std::net::Ipv4Addr;

use rtnetlink::{AddressMessageBuilder, LinkUnspec, RouteMessageBuilder};

use super::attachment::Interface;
use super::error::NetworkError;
use super::links::Links;
use super::neighbours::Neighbour;

/// Name of a container's interface.
pub(super) const INNER_LINK: &str = "eth0";

/// Brings up `lo`, and `eth0` with its address, default route and neighbours if the container has one.
pub(super) fn configure(interface: Option<&Interface>, neighbours: &[Neighbour]) -> Result<(), NetworkError> {
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
        for neighbour in neighbours {
            links.remember(index, neighbour).await?;
        }
        Ok(())
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
