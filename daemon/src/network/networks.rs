//! The networks of this host, as the rest of the daemon sees them.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tranship_proto::ids::{ContainerId, Name};
use tranship_proto::v1;

use super::address;
use super::attachment::{Attachment, Interface, NetworkRequest};
use super::cable::{self, Places};
use super::cut::{self, Announcers};
use super::error::NetworkError;
use super::links::{Link, Links, address_of};
use super::mac::MacAddr;
use super::{arp, bridge, netns};
use crate::config::{L2Config, NetworkConfig};

/// Network with nothing but `lo`.
const NONE: &str = "none";
/// The host's own network.
const HOST: &str = "host";

/// The networks of this host. Clones share one connection to the kernel.
#[derive(Clone)]
pub struct Networks {
    shared: Arc<Shared>,
}

struct Shared {
    run_dir: PathBuf,
    config: BTreeMap<Name, NetworkConfig>,
    links: Links,
    announcers: Announcers,
    /// Held from the choice of an address until the container answers for it, and while a bridge is made: of two
    /// containers that start at once the second finds what the first has done.
    changes: Mutex<()>,
}

/// What a name stands for.
enum Place<'a> {
    L2(&'a str, &'a L2Config),
    None,
    Host,
}

impl Networks {
    /// The networks of the daemon's network namespace; `config` is its `networks`, `run_dir` its run
    /// directory. Call inside a runtime.
    ///
    /// # Errors
    /// When the kernel gives no netlink socket.
    pub fn new(run_dir: &Path, config: BTreeMap<Name, NetworkConfig>) -> Result<Self, NetworkError> {
        let shared = Shared {
            run_dir: run_dir.to_owned(),
            config,
            links: Links::open()?,
            announcers: Announcers::default(),
            changes: Mutex::new(()),
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

    /// Gives a container its place in a network: namespace, cable, address; plugged in and announced.
    ///
    /// # Errors
    /// [`NetworkError::Conflict`] when somebody answers for the address asked for, [`NetworkError::Exhausted`] when
    /// none is left, or what the kernel says. Nothing is left behind then.
    pub async fn attach(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
    ) -> Result<Attachment, NetworkError> {
        let _changes = self.shared.changes.lock().await;
        let attachment = match self.place(&request.network)? {
            Place::L2(name, config) => {
                let bridge = self.ensure_bridge(name, config).await?;
                let ip = self.choose(name, config, &bridge, request).await?;
                let mac = request.mac.unwrap_or_else(|| MacAddr::of_container(id));
                let attachment = self.planned(id, name, Some((config, ip, mac)));
                self.lay(&attachment, config.mtu.unwrap_or(bridge.mtu)).await?;
                attachment
            }
            place => self.lay_without_interface(id, request, &place).await?,
        };
        match self.plug(&attachment).await {
            Ok(_) => Ok(attachment),
            Err(error) => Err(self.undo(id, error).await),
        }
    }

    /// Lays everything for a container that comes from another host with its address and MAC, but does not plug it
    /// in: not a packet leaves, nobody is asked and nothing announced, until [`Self::plug`].
    ///
    /// # Errors
    /// [`NetworkError::Incomplete`] without address or MAC on an `l2` network, or what the kernel says. Nothing is left
    /// behind then.
    pub async fn prepare(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
    ) -> Result<Attachment, NetworkError> {
        let _changes = self.shared.changes.lock().await;
        match self.place(&request.network)? {
            Place::L2(name, config) => {
                let (Some(ip), Some(mac)) = (request.ip, request.mac) else {
                    return Err(NetworkError::Incomplete);
                };
                address::check(config, ip, &request.taken)?;
                let bridge = self.ensure_bridge(name, config).await?;
                let attachment = self.planned(id, name, Some((config, ip, mac)));
                self.lay(&attachment, config.mtu.unwrap_or(bridge.mtu)).await?;
                Ok(attachment)
            }
            place => self.lay_without_interface(id, request, &place).await,
        }
    }

    /// Puts the container's link into its bridge and announces the address: once before this returns, twice within
    /// the next second. Also for a rollback. Answers how long the container was on its way into the bridge; nothing on
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
        cut::plug(
            &self.shared.links,
            &self.shared.announcers,
            attachment,
            bridge.index,
        )
        .await
    }

    /// Takes the container's link out of its bridge, in one message to the kernel: nothing gets from the container to
    /// the network or back. Its own view does not change: the link is up, neighbours are known. Answers how long it took.
    ///
    /// # Errors
    /// When the link is gone, or the kernel says so.
    pub async fn unplug(&self, attachment: &Attachment) -> Result<Duration, NetworkError> {
        cut::unplug(&self.shared.links, &self.shared.announcers, attachment).await
    }

    /// Who answers for an address on a network: for a container that is still at its source, the container. None on
    /// `none` and `host`. Takes 200 ms when nobody answers.
    ///
    /// # Errors
    /// When there is no such network, or what the kernel says.
    pub async fn probe_address(&self, network: &str, ip: Ipv4Addr) -> Result<Option<MacAddr>, NetworkError> {
        let Place::L2(name, config) = self.place(network)? else {
            return Ok(None);
        };
        let bridge = self.bridge(name, config).await?;
        self.probe(&bridge, ip).await
    }

    /// Takes away whatever there is of a container's attachment; nothing there is as good. The processes of the
    /// container should have ended before: their namespace lives as long as they do.
    ///
    /// # Errors
    /// What the kernel says.
    pub async fn detach(&self, id: &ContainerId) -> Result<(), NetworkError> {
        self.shared.announcers.stop(id);
        cable::take_away(&self.shared.links, &self.places(id), id).await
    }

    /// What there is of a container's attachment, asked of the kernel: for a daemon that has started again.
    ///
    /// # Errors
    /// [`NetworkError::State`] when parts of it are missing, or what the kernel says.
    pub async fn find(&self, id: &ContainerId) -> Result<Option<Attachment>, NetworkError> {
        cable::find(&self.shared.links, self.places(id), id).await
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

    fn place<'a>(&'a self, name: &'a str) -> Result<Place<'a>, NetworkError> {
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

    fn places(&self, id: &ContainerId) -> Places {
        Places::of(&self.shared.run_dir, id)
    }

    /// The attachment as it will be, with an interface or with none.
    fn planned(
        &self,
        id: &ContainerId,
        network: &str,
        interface: Option<(&L2Config, Ipv4Addr, MacAddr)>,
    ) -> Attachment {
        let places = self.places(id);
        Attachment {
            container: id.clone(),
            network: network.to_owned(),
            netns: (network != HOST).then_some(places.netns),
            sysfs: places.sysfs,
            interface: interface.map(|(config, ip, mac)| Interface {
                ip,
                prefix_len: config.subnet.prefix(),
                mac,
                gateway: config.gateway,
                host_link: places.host_link,
            }),
        }
    }

    async fn lay_without_interface(
        &self,
        id: &ContainerId,
        request: &NetworkRequest,
        place: &Place<'_>,
    ) -> Result<Attachment, NetworkError> {
        let network = if matches!(place, Place::Host) { HOST } else { NONE };
        if request.ip.is_some() || request.mac.is_some() {
            return Err(NetworkError::NoAddresses {
                network: network.to_owned(),
            });
        }
        let attachment = self.planned(id, network, None);
        self.lay(&attachment, 0).await?;
        Ok(attachment)
    }

    async fn lay(&self, attachment: &Attachment, mtu: u32) -> Result<(), NetworkError> {
        let id = &attachment.container;
        if self.places(id).netns.exists() || self.places(id).sysfs.exists() {
            let what = format!(
                "container {} is on a network already: detach it first",
                id.short()
            );
            return Err(NetworkError::State { what });
        }
        match cable::lay(&self.shared.links, attachment, mtu).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.undo(id, error).await),
        }
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

    async fn bridge(&self, name: &str, config: &L2Config) -> Result<Link, NetworkError> {
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
            return match self.probe(bridge, ip).await? {
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
            if self.probe(bridge, ip).await?.is_none() {
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

    async fn probe(&self, bridge: &Link, ip: Ipv4Addr) -> Result<Option<MacAddr>, NetworkError> {
        let link = bridge.name.clone();
        netns::within(None, "probe for an address", move || {
            arp::probe(&link, ip).map_err(NetworkError::io(format!("ask on {link} who has {ip}")))
        })
        .await
    }
}
