//! A container's namespace and the cable out of it: laid, found again, taken away. Putting its outer end into the bridge
//! is another file's job ([`super::cut`]).

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{LinkUnspec, LinkVeth};
use tranship_proto::ids::ContainerId;

use super::attachment::{Attachment, Interface};
use super::error::NetworkError;
use super::inside::{self, INNER_LINK};
use super::links::{Link, Links};
use super::netns;

/// First word of the alias by which a host link is known as ours.
const ALIAS_MARK: &str = "tranship";

/// Where the parts of a container's attachment are.
pub(super) struct Places {
    pub netns: PathBuf,
    pub sysfs: PathBuf,
    pub host_link: String,
}

impl Places {
    pub(super) fn of(run_dir: &Path, id: &ContainerId) -> Self {
        Self {
            netns: run_dir.join("netns").join(id.as_str()),
            sysfs: run_dir.join("containers").join(id.as_str()).join("sys"),
            // Fifteen characters, the longest a link's name can be.
            host_link: format!("tr-{}", id.short()),
        }
    }
}

/// Makes the namespace, and with an interface the cable out of it, unplugged.
pub(super) async fn lay(links: &Links, attachment: &Attachment, mtu: u32) -> Result<(), NetworkError> {
    if let Some(netns) = attachment.netns.clone() {
        netns::create(netns.clone()).await?;
        if let Some(interface) = &attachment.interface {
            make_pair(links, attachment, interface, &netns, mtu).await?;
        }
        let interface = attachment.interface.clone();
        netns::within(Some(netns), "set up a container's links", move || {
            inside::configure(interface.as_ref())
        })
        .await?;
    }
    let sysfs = attachment.sysfs.clone();
    netns::within(attachment.netns.clone(), "mount a sysfs", move || {
        netns::mount_sysfs(sysfs)
    })
    .await
}

/// The pair of links; the outer one is up, so that the inner one has a carrier, and otherwise dead.
async fn make_pair(
    links: &Links,
    attachment: &Attachment,
    interface: &Interface,
    netns: &Path,
    mtu: u32,
) -> Result<(), NetworkError> {
    let file = std::fs::File::open(netns).map_err(|source| NetworkError::File {
        what: "open the namespace",
        path: netns.to_owned(),
        source,
    })?;
    let mut inner = LinkMessage::default();
    inner.attributes = vec![
        LinkAttribute::IfName(INNER_LINK.to_owned()),
        LinkAttribute::Address(interface.mac.bytes().to_vec()),
        LinkAttribute::Mtu(mtu),
        LinkAttribute::NetNsFd(file.as_raw_fd()),
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

/// What is there of a container's attachment; none when there is nothing.
pub(super) async fn find(
    links: &Links,
    places: Places,
    id: &ContainerId,
) -> Result<Option<Attachment>, NetworkError> {
    if !places.netns.exists() {
        let on_host = Attachment {
            container: id.clone(),
            network: "host".to_owned(),
            netns: None,
            sysfs: places.sysfs.clone(),
            interface: None,
        };
        return Ok(places.sysfs.exists().then_some(on_host));
    }
    let netns = Some(places.netns);
    let inner = netns::within(netns.clone(), "look at a container's links", inside::inspect).await?;
    let outer = links.find(&places.host_link).await?;
    let network = match (&inner, outer.as_ref().map(owner)) {
        (Some(_), Some(Some((owner, network)))) if owner == id.as_str() => network.to_owned(),
        (None, None) => "none".to_owned(),
        _ => {
            let what = format!(
                "the link {} of container {} is not as it was made: remove the container",
                places.host_link,
                id.short()
            );
            return Err(NetworkError::State { what });
        }
    };
    let interface = inner.map(|inner| Interface {
        ip: inner.ip,
        prefix_len: inner.prefix_len,
        mac: inner.mac,
        gateway: inner.gateway,
        host_link: places.host_link,
    });
    Ok(Some(Attachment {
        container: id.clone(),
        network,
        netns,
        sysfs: places.sysfs,
        interface,
    }))
}

/// Takes away everything that is there.
pub(super) async fn take_away(links: &Links, places: &Places, id: &ContainerId) -> Result<(), NetworkError> {
    if let Some(link) = links.find(&places.host_link).await? {
        match owner(&link) {
            Some((owner, _)) if owner != id.as_str() => {
                let what = format!("the link {} belongs to container {owner}", link.name);
                return Err(NetworkError::State { what });
            }
            _ => links.delete(link.index).await?,
        }
    }
    netns::remove_sysfs(&places.sysfs)?;
    netns::remove(&places.netns)
}

/// Container and network of a host link.
fn owner(link: &Link) -> Option<(&str, &str)> {
    let mut words = link.alias.as_deref()?.splitn(3, ' ');
    (words.next()? == ALIAS_MARK).then_some(())?;
    Some((words.next()?, words.next()?))
}
