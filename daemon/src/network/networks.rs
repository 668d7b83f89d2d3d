//! The networks of this host, as the rest of the daemon sees them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tranship_proto::ids::{ContainerId, Name};
use tranship_proto::v1;

use super::address;
use super::again::Attempts;
use super::attachment::{Attachment, Interface, NetworkRequest};
use super::cable;
use super::cut::{self, Announcers};
use super::error::NetworkError;
use super::hold::Holds;
use super::links::{Link, Links, address_of};
use super::mac::MacAddr;
use super::neighbours::Neighbour;
use super::{arp, bridge, netns};
use crate::config::{L2Config, NetworkConfig};

/// Network with nothing but `lo`.
const NONE: &str = "none";
/// The host's own network.
const HOST: &str = "host";

/// The networks of this host. Clones share one connection to the kernel.
#[derive(Clone)]
pub struct Networks {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    config: BTreeMap<Name, NetworkConfig>,
    pub(super) links: Links,
    announcers: Announcers,
    pub(super) attempts: Attempts,
    pub(super) holds: Holds,
    /// Addresses that were chosen here, and for whom. Held while one is chosen and while a bridge is made: of two
    /// containers that start at once the second finds what the first has done.
    changes: Mutex<BTreeMap<Ipv4Addr, ContainerId>>,
}

/// What a name stands for.
pub(super) enum Place<'a> {
    L2(&'a str, &'a L2Config),
    None,
    Host,
}

impl Networks {
    /// The networks of the daemon's network namespace; `config` is its `networks`. Call inside a runtime.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn new(config: BTreeMap<Name, NetworkConfig>) -> Result<Self, NetworkError> {
        let shared = Shared {
            config,
            links: Links::open()?,
            announcers: Announcers::default(),
            attempts: Attempts::default(),
            holds: Holds::default(),
            changes: Mutex::default(),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Makes every bridge, with its uplink, as configured. Can be repeated; [`Self::attach`] does it too.
    ///
    /// # Errors
    /// [`NetworkError::NoLink`], [`NetworkError::NotABridge`], [`NetworkError::UplinkTaken`], or what the kernel says.
    pub async fn ensure(&self) -> Result<(), NetworkError> {
        for (name, NetworkConfig::L2(config)) in &self.shared.config {
            self.bridge(name.as_str(), config).await?;
        }
        if !self.shared.config.is_empty() {
            bridge::warn_of_br_netfilter();
        }
        Ok(())
    }

    /// Every network a container can be on.
    #[must_use]
    pub fn list(&self) -> Vec<v1::Network> {
        let built_in = [HOST, NONE].map(|name| v1::Network {
            name: name.to_owned(),
            kind: name.to_owned(),
            ..v1::Network::default()
        });
        let configured = self
            .shared
            .config
            .iter()
            .map(|(name, NetworkConfig::L2(config))| v1::Network {
                name: name.to_string(),
                kind: "l2".to_owned(),
                bridge: config.bridge.clone(),
                subnet: config.subnet.to_string(),
                gateway: config
                    .gateway
                    .map(|gateway| gateway.to_string())
                    .unwrap_or_default(),
            });
        let mut networks: Vec<_> = built_in.into_iter().chain(configured).collect();
        networks.sort_by(|a, b| a.name.cmp(&b.name));
        networks
    }

    /// Whether there is a network of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.place(name).is_ok()
    }

    /// Chooses the address of a container that is about to be made: the one asked for, if it is free, or the lowest
    /// free one of the range. It is nobody else's from then on, until [`Self::detach`]. None on `none` and `host`.
    ///
    /// # Errors
    /// [`NetworkError::Conflict`] when somebody answers for the address asked for, [`NetworkError::Exhausted`] when
    /// none is left, or what the kernel says.
    pub async fn choose_address(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
    ) -> Result<Option<(Ipv4Addr, MacAddr)>, NetworkError> {
        let mut changes = self.shared.changes.lock().await;
        let Place::L2(name, config) = self.place(&request.network)? else {
            return refuse_addresses(request).map(|()| None);
        };
        let bridge = self.ensure_bridge(name, config).await?;
        let mut request = request.clone();
        request.taken.extend(
            changes
                .iter()
                .filter(|(_, owner)| *owner != id)
                .map(|(ip, _)| *ip),
        );
        let ip = self.choose(name, config, &bridge, &request).await?;
        changes.insert(ip, id.clone());
        Ok(Some((
            ip,
            request.mac.unwrap_or_else(|| MacAddr::of_container(id)),
        )))
    }

    /// Gives a container, whose network namespace is at `netns`, its place in a network: cable, address, settings;
    /// plugged in and announced. Address and MAC must have been chosen.
    ///
    /// # Errors
    /// [`NetworkError::Incomplete`] without address or MAC on an `l2` network, or what the kernel says. Nothing is left
    /// behind then.
    pub async fn attach(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
        netns: &Path,
    ) -> Result<Attachment, NetworkError> {
        let attachment = self.prepare(id, request, netns, Vec::new()).await?;
        match self.plug(&attachment).await {
            Ok(_) => Ok(attachment),
            Err(error) => Err(self.undo(id, error).await),
        }
    }

    /// As [`Self::attach`], but does not plug it in: not a packet leaves, nobody is asked and nothing announced, until
    /// [`Self::plug`]. For a container that comes from another host, with the neighbours it knew there.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub async fn prepare(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
        netns: &Path,
        neighbours: Vec<Neighbour>,
    ) -> Result<Attachment, NetworkError> {
        let attachment = self.planned(id, request, netns)?;
        let mtu = match self.place(&request.network)? {
            Place::Host => return Ok(attachment),
            Place::None => 0,
            Place::L2(name, config) => {
                let bridge = self.bridge(name, config).await?;
                config.mtu.unwrap_or(bridge.mtu)
            }
        };
        // What another call has laid must not be undone by this one.
        if let Some(interface) = &attachment.interface
            && matches!(
                cable::is_laid(&self.shared.links, id, &interface.host_link).await,
                Ok(true)
            )
        {
            let what = format!(
                "container {} is on a network already: detach it first",
                id.short()
            );
            return Err(NetworkError::State { what });
        }
        match cable::lay(&self.shared.links, &attachment, mtu, neighbours).await {
            Ok(()) => Ok(attachment),
            Err(error) => Err(self.undo(id, error).await),
        }
    }

    /// Puts the container's link into its bridge, hands over what was held for it, and announces the address: once before
    /// this returns, twice within the next second. Also for a rollback. Answers how long the container was on its way into the bridge; nothing on
    /// `none` and `host`.
    ///
    /// # Errors
    /// When the network is no longer configured, its bridge is gone, or the kernel says so.
    pub async fn plug(&self, attachment: &Attachment) -> Result<Duration, NetworkError> {
        let Place::L2(name, config) = self.place(&attachment.network)? else {
            return Ok(Duration::ZERO);
        };
        let bridge = self
            .shared
            .links
            .find(&config.bridge)
            .await?
            .ok_or_else(|| NetworkError::NoLink {
                network: name.to_owned(),
                link: config.bridge.clone(),
            })?;
        let hold = self.shared.holds.of(&attachment.container);
        cut::plug(
            &self.shared.links,
            &self.shared.announcers,
            attachment,
            &bridge,
            hold,
        )
        .await
    }

    /// Takes the container's link out of its bridge, in one message to the kernel: nothing gets from the container to
    /// the network or back. Its own view does not change: the link is up, neighbours are known. Answers how long it took.
    ///
    /// # Errors
    /// When the link is gone, or the kernel says so.
    pub async fn unplug(&self, attachment: &Attachment) -> Result<Duration, NetworkError> {
        self.shared.attempts.stop(&attachment.container).await;
        cut::unplug(&self.shared.links, &self.shared.announcers, attachment).await
    }

    /// Who answers for an address on a network besides `expected`: a container that is still at its source answers too,
    /// and before another machine that has taken its address. None on `none` and `host`. Takes 200 ms when nobody else
    /// answers.
    ///
    /// # Errors
    /// When there is no such network, or what the kernel says.
    pub async fn probe_address(
        &self,
        network: &str,
        ip: Ipv4Addr,
        expected: Option<MacAddr>,
    ) -> Result<Option<MacAddr>, NetworkError> {
        let Place::L2(name, config) = self.place(network)? else {
            return Ok(None);
        };
        let bridge = self.bridge(name, config).await?;
        self.probe(&bridge, ip, expected).await
    }

    /// Takes away whatever there is of a container's attachment; nothing there is as good. What is inside its network
    /// namespace goes with its last process.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn detach(&self, id: &ContainerId) -> Result<(), NetworkError> {
        self.shared.attempts.stop(id).await;
        self.shared.announcers.stop(id);
        self.let_go(id).await;
        cable::take_away(&self.shared.links, id).await?;
        self.shared.changes.lock().await.retain(|_, owner| owner != id);
        Ok(())
    }

    /// The attachment of a container that is on a network: for a daemon that has started again. `request` is what the
    /// container was given, `netns` where its network namespace is now. None when its link is not there.
    ///
    /// # Errors
    /// [`NetworkError::State`] when the link is another container's, or what the kernel says.
    pub async fn find(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
        netns: &Path,
    ) -> Result<Option<Attachment>, NetworkError> {
        let attachment = self.planned(id, request, netns)?;
        let Some(interface) = &attachment.interface else {
            return Ok(Some(attachment));
        };
        let there = cable::is_laid(&self.shared.links, id, &interface.host_link).await?;
        Ok(there.then_some(attachment))
    }

    /// Whether the container's link is in a bridge.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn is_plugged(&self, attachment: &Attachment) -> Result<bool, NetworkError> {
        let Some(interface) = &attachment.interface else {
            return Ok(false);
        };
        let link = self.shared.links.find(&interface.host_link).await?;
        Ok(link.is_some_and(|link| link.master.is_some()))
    }

    pub(super) fn place<'a>(&'a self, name: &'a str) -> Result<Place<'a>, NetworkError> {
        let configured = self.shared.config.iter().find(|(key, _)| key.as_str() == name);
        match (name, configured) {
            (NONE, _) => Ok(Place::None),
            (HOST, _) => Ok(Place::Host),
            (_, Some((key, NetworkConfig::L2(config)))) => Ok(Place::L2(key.as_str(), config)),
            (_, None) => {
                let known: Vec<_> = self.list().into_iter().map(|network| network.name).collect();
                Err(NetworkError::Unknown {
                    name: name.to_owned(),
                    known: known.join(", "),
                })
            }
        }
    }

    /// The attachment as it will be, or is.
    pub(super) fn planned(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
        netns: &Path,
    ) -> Result<Attachment, NetworkError> {
        let interface = match self.place(&request.network)? {
            Place::None | Place::Host => {
                refuse_addresses(request)?;
                None
            }
            Place::L2(_, config) => {
                let (Some(ip), Some(mac)) = (request.ip, request.mac) else {
                    return Err(NetworkError::Incomplete);
                };
                address::check(config, ip, &request.taken)?;
                let (prefix_len, gateway) = (config.subnet.prefix(), config.gateway);
                Some(Interface {
                    ip,
                    prefix_len,
                    mac,
                    gateway,
                    host_link: cable::host_link(id),
                })
            }
        };
        let (container, network) = (id.clone(), request.network.clone());
        Ok(Attachment {
            container,
            network,
            netns: netns.to_owned(),
            interface,
        })
    }

    async fn undo(&self, id: &ContainerId, cause: NetworkError) -> NetworkError {
        match self.detach(id).await {
            Ok(()) => cause,
            Err(undo) => NetworkError::Undo {
                cause: cause.chain(),
                source: Box::new(undo),
            },
        }
    }

    pub(super) async fn bridge(&self, name: &str, config: &L2Config) -> Result<Link, NetworkError> {
        let _changes = self.shared.changes.lock().await;
        self.ensure_bridge(name, config).await
    }

    async fn ensure_bridge(&self, name: &str, config: &L2Config) -> Result<Link, NetworkError> {
        bridge::ensure(&self.shared.links, name, config).await
    }

    /// The address asked for, if it is free, or the lowest free one of the range.
    async fn choose(
        &self,
        name: &str,
        config: &L2Config,
        bridge: &Link,
        request: &NetworkRequest,
    ) -> Result<Ipv4Addr, NetworkError> {
        let mut taken = request.taken.clone();
        let own = self.shared.links.addresses(bridge.index).await?;
        let own = own.iter().filter_map(address_of).filter_map(|ip| match ip {
            std::net::IpAddr::V4(ip) => Some(ip),
            std::net::IpAddr::V6(_) => None,
        });
        let own: Vec<Ipv4Addr> = own.collect();
        if let Some(ip) = request.ip {
            address::check(config, ip, &taken)?;
            if own.contains(&ip) {
                return Err(NetworkError::Reserved {
                    ip,
                    owner: "this host",
                });
            }
            return match self.probe(bridge, ip, None).await? {
                None => Ok(ip),
                Some(mac) => Err(NetworkError::Conflict {
                    network: name.to_owned(),
                    ip,
                    mac,
                }),
            };
        }
        taken.extend(own);
        for ip in address::candidates(config, &taken) {
            if self.probe(bridge, ip, None).await?.is_none() {
                return Ok(ip);
            }
        }
        let (first, last) = (*config.range.start(), *config.range.end());
        Err(NetworkError::Exhausted {
            network: name.to_owned(),
            first,
            last,
        })
    }

    async fn probe(
        &self,
        bridge: &Link,
        ip: Ipv4Addr,
        expected: Option<MacAddr>,
    ) -> Result<Option<MacAddr>, NetworkError> {
        let link = bridge.name.clone();
        netns::within(None, "probe for an address", move || {
            arp::probe(&link, ip, expected).map_err(NetworkError::io(format!("ask on {link} who has {ip}")))
        })
        .await
    }
}

/// `none` and `host` have no addresses to give.
fn refuse_addresses(request: &NetworkRequest) -> Result<(), NetworkError> {
    if request.ip.is_some() || request.mac.is_some() {
        return Err(NetworkError::NoAddresses {
            network: request.network.clone(),
        });
    }
    Ok(())
}
