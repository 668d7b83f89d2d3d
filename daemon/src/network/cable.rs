//! The cable out of a container's network namespace: laid, found again, taken away. Putting its outer end into the bridge
//! is another file's job ([`super::cut`]).

use std::fs::File;
use std::os::fd::AsRawFd;

use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVeth};
use tranship_proto::ids::ContainerId;

use super::attachment::{Attachment, Interface};
use super::error::NetworkError;
use super::inside::{self, INNER_LINK};
use super::links::{Link, Links};
use super::neighbours::Neighbour;
use super::netns;

/// First word of the alias by which a host link is known as ours.
const ALIAS_MARK: &str = "tranship";

/// Name of the outer end of a container's cable: fifteen characters, the longest a link's name can be.
pub(super) fn host_link(id: &ContainerId) -> String {
    format!("tr-{}", id.short())
}

/// Sets up the container's network namespace, and with an interface lays the cable out of it, unplugged.
pub(super) async fn lay(
    links: &Links,
    attachment: &Attachment,
    mtu: u32,
    neighbours: Vec<Neighbour>,
) -> Result<(), NetworkError> {
    // Opened once: the process it is named after may end at any time.
    let namespace = netns::open(&attachment.netns)?;
    let entered = namespace
        .try_clone()
        .map_err(NetworkError::io("open a network namespace"))?;
    // Before there is a link: one takes its settings from the defaults when it is made.
    netns::within(Some(entered), "set up a network namespace", netns::apply_settings).await?;
    if let Some(interface) = &attachment.interface {
        make_pair(links, attachment, interface, &namespace, mtu).await?;
    }
    let interface = attachment.interface.clone();
    netns::within(Some(namespace), "set up a container's links", move || {
        inside::configure(interface.as_ref(), &neighbours)
    })
    .await
}

/// The pair of links; the outer one is up, so that the inner one has a carrier, and otherwise dead.
async fn make_pair(
    links: &Links,
    attachment: &Attachment,
    interface: &Interface,
    netns: &File,
    mtu: u32,
) -> Result<(), NetworkError> {
    let mut inner = LinkMessage::default();
    inner.attributes = vec![
        LinkAttribute::IfName(INNER_LINK.to_owned()),
        LinkAttribute::Address(interface.mac.bytes().to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
    ];
    let name = &interface.host_link;
    let what = format!("make the links {name} and {INNER_LINK}");
    let pair = LinkVeth::new(name, INNER_LINK)
        .mtu(mtu)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(inner)));
    links.add(&what, pair.build()).await?;
    // While the link is no port of a bridge the host's own stack gets what comes out of it: it must stay silent.
    netns::set(&format!("net/ipv6/conf/{name}/disable_ipv6"), "1")?;
    netns::set(&format!("net/ipv4/conf/{name}/arp_ignore"), "8")?;
    netns::set(&format!("net/ipv4/conf/{name}/forwarding"), "0")?;
    let alias = format!("{ALIAS_MARK} {} {}", attachment.container, attachment.network);
    let up = LinkUnspec::new_with_name(name).alias(alias).up().build();
    links.change(&what, up).await
}

/// Whether the outer end of a container's cable is there.
pub(super) async fn is_laid(links: &Links, id: &ContainerId, host_link: &str) -> Result<bool, NetworkError> {
    let Some(link) = links.find(host_link).await? else {
        return Ok(false);
    };
    match owner(&link) {
        Some((owner, _)) if owner == id.as_str() => Ok(true),
        _ => Err(NetworkError::State {
            what: format!("the link {host_link} is not container {id}'s"),
        }),
    }
}

/// Takes away the outer end of a container's cable, and the inner one with it.
pub(super) async fn take_away(links: &Links, id: &ContainerId) -> Result<(), NetworkError> {
    let Some(link) = links.find(&host_link(id)).await? else {
        return Ok(());
    };
    match owner(&link) {
        Some((owner, _)) if owner != id.as_str() => {
            let what = format!("the link {} belongs to container {owner}", link.name);
            Err(NetworkError::State { what })
        }
        _ => links.delete(link.index).await,
    }
}

/// Container and network of a host link.
fn owner(link: &Link) -> Option<(&str, &str)> {
    let mut words = link.alias.as_deref()?.splitn(3, ' ');
    (words.next()? == ALIAS_MARK).then_some(())?;
    Some((words.next()?, words.next()?))
}
