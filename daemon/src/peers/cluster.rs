//! This host's part of the cluster, held together: who it is, whom it knows, who is connected.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio_rustls::TlsStream;
use tonic::transport::Channel;
use tranship_proto::ids::Name;
use tranship_proto::v1::HostRecord;
use tranship_proto::v1::peer_client::PeerClient;

use super::connect::{self, Channels, ConnectError};
use super::hosts::{HostTable, HostTableError, KnownHost, NotAdmitted};
use super::identity::PeerIdentity;
use super::membership::{Membership, MembershipError};
use super::pki::{self, Pki, PkiFileError};
use super::refusal::{Refusals, chain};
use super::store::HostStore;
use super::streams::DataStreams;
use crate::clock::now_ms;
use crate::config::{Config, EtcdConfig, PeerConfig};

/// What is left of a certificate when it is renewed, or worth a line in the log where it cannot be.
pub(super) const RENEWAL_MS: i64 = 30 * 24 * 3600 * 1000;

/// What the cluster's part is told by the configuration.
#[derive(Clone, Debug)]
pub struct PeerSettings {
    /// Folder of the certificates.
    pub pki: PathBuf,
    /// The host's name where the operator chose one.
    pub name: Option<Name>,
    /// Where to listen, and where others reach it.
    pub peer: PeerConfig,
    /// Where hosts are found besides.
    pub etcd: Option<EtcdConfig>,
}

/// The cluster's part cannot be opened or served.
#[derive(Debug, thiserror::Error)]
pub enum PeersError {
    /// The files cannot be used.
    #[error("cannot use this host's certificates")]
    Files(#[from] PkiFileError),
    /// The certificates cannot be used.
    #[error("cannot use this host's certificates")]
    Membership(#[from] MembershipError),
    /// The hosts cannot be read.
    #[error("cannot open the table of hosts")]
    Table(#[from] HostTableError),
    /// The configuration renames a member.
    #[error(
        "this host is {joined} in its cluster but the configuration calls it {configured}: set name = \"{joined}\", \
         or remove the host from the cluster and join again"
    )]
    Renamed {
        /// The name in the certificate.
        joined: Name,
        /// The name in the configuration.
        configured: Name,
    },
    /// The registry is not the one this host joined its cluster with.
    #[error(
        "this host has the certificate of host {host} but its registry does not know that host: bring the registry \
         back, or remove {host} from the cluster on another host, put {} away and join again", pki.display()
    )]
    Forgotten {
        /// The name in the certificate.
        host: Name,
        /// Where the certificate is.
        pki: PathBuf,
    },
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen for peers on {address}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The server stopped by itself.
    #[error("the peer listener failed")]
    Serve(#[from] tonic::transport::Error),
}

/// The cluster, as this host takes part in it. Clones are the same.
#[derive(Clone)]
pub struct Peers {
    pub(super) inner: Arc<Inner>,
}

/// What the parts of this module share.
pub(super) struct Inner {
    pub settings: PeerSettings,
    pub hosts: Arc<HostTable>,
    pub channels: Channels,
    pub streams: DataStreams,
    pub refusals: Arc<Refusals>,
    pub sync_now: Arc<Notify>,
    pub membership: watch::Sender<Option<Arc<Membership>>>,
}

impl PeerSettings {
    /// What a configuration says of the cluster.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        Self {
            pki: config.state_dir.join("pki"),
            name: config.name.clone(),
            peer: config.peer.clone(),
            etcd: config.etcd.clone(),
        }
    }
}

impl Peers {
    /// Reads the certificates and the hosts, and binds the port if this host is in a cluster.
    ///
    /// # Errors
    /// What is there cannot be used as it is, or the port is taken; nothing was changed.
    pub async fn open(settings: PeerSettings, store: Arc<dyn HostStore>) -> Result<Self, PeersError> {
        let hosts = Arc::new(HostTable::open(store).await?);
        let membership = match load(&settings.pki)? {
            Some(pki) => Some(Arc::new(Membership::new(pki, bind(settings.peer.listen).await?)?)),
            None => None,
        };
        if let Some(member) = &membership {
            check_member(&settings, &hosts, member.identity.name.clone())?;
        }
        let inner = Inner {
            settings,
            hosts,
            channels: Channels::default(),
            streams: DataStreams::default(),
            refusals: Arc::default(),
            sync_now: Arc::default(),
            membership: watch::Sender::new(membership),
        };
        inner.announce_moved_address().await?;
        inner.leave_if_removed()?;
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Who this host is in its cluster; `None` before it is in one.
    #[must_use]
    pub fn identity(&self) -> Option<PeerIdentity> {
        self.inner.member().map(|member| member.identity.clone())
    }

    /// Where this host is reached; `None` while it is in no cluster.
    #[must_use]
    pub fn address(&self) -> Option<String> {
        let host = self.inner.hosts.get(&self.identity()?.name)?;
        Some(host.address.to_string())
    }

    /// The hosts of the cluster, this one among them, without those that were removed.
    #[must_use]
    pub fn hosts(&self) -> Vec<KnownHost> {
        self.inner
            .hosts
            .all()
            .into_iter()
            .filter(|host| !host.removed)
            .collect()
    }

    /// A client of another host's peer service. It connects when it is used; a call fails with `UNAVAILABLE` where that
    /// does not work.
    ///
    /// # Errors
    /// There is no such host in the cluster.
    pub fn control(&self, host: &Name) -> Result<PeerClient<Channel>, ConnectError> {
        self.inner.client(host)
    }

    /// Gives up the connection to a host that does not answer. Calls under way on it go on; the next one has a connection of its own.
    pub fn hang_up(&self, host: &Name) {
        self.inner.channels.forget(host);
    }

    /// Opens a bulk data stream to another host, whose greeting is the caller's to send.
    ///
    /// # Errors
    /// There is no such host, it does not answer in time, or somebody else answers in its place.
    pub async fn open_data(&self, host: &Name) -> Result<TlsStream<TcpStream>, ConnectError> {
        let member = self.inner.member().ok_or(ConnectError::NotMember)?;
        connect::open_data(&member, &self.inner.hosts, host)
            .await
            .map(Into::into)
    }

    /// The data streams that are expected here.
    #[must_use]
    pub fn data_streams(&self) -> &DataStreams {
        &self.inner.streams
    }

    /// Connections that were not let in.
    #[must_use]
    pub fn refusals(&self) -> &Refusals {
        &self.inner.refusals
    }
}

pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, PeersError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| PeersError::Listen { address, source })
}

/// Reads the certificates; where the authority's key is at hand, the host's own is renewed before it ends.
fn load(folder: &Path) -> Result<Option<Pki>, PeersError> {
    let Some(pki) = Pki::load(folder)? else {
        return Ok(None);
    };
    let (Some(authority), Some(ends_ms)) = (&pki.authority, pki::ends_ms(&pki.host)) else {
        return Ok(Some(pki));
    };
    if ends_ms - now_ms() >= RENEWAL_MS {
        return Ok(Some(pki));
    }
    let host = PeerIdentity::of_certificate(&pki.host).map_err(MembershipError::Identity)?;
    pki::renew(folder, authority, &host)?;
    tracing::info!(%host, "this host's certificate was renewed");
    Ok(Pki::load(folder)?)
}

fn check_member(settings: &PeerSettings, hosts: &HostTable, joined: Name) -> Result<(), PeersError> {
    match &settings.name {
        Some(configured) if *configured != joined => Err(PeersError::Renamed {
            joined,
            configured: configured.clone(),
        }),
        _ if hosts.get(&joined).is_none() => Err(PeersError::Forgotten {
            host: joined,
            pki: settings.pki.clone(),
        }),
        _ => Ok(()),
    }
}

impl Inner {
    /// This host in its cluster, if it is in one.
    pub fn member(&self) -> Option<Arc<Membership>> {
        self.membership.borrow().clone()
    }

    /// A client of another host's peer service.
    pub fn client(&self, host: &Name) -> Result<PeerClient<Channel>, ConnectError> {
        let member = self.member().ok_or(ConnectError::NotMember)?;
        self.channels.client(&member, &self.hosts, host)
    }

    /// The other hosts of the cluster; none while this host is in no cluster.
    pub fn others(&self) -> Vec<KnownHost> {
        let Some(member) = self.member() else {
            return Vec::new();
        };
        let other = |host: &KnownHost| !host.removed && host.name != member.identity.name;
        self.hosts.all().into_iter().filter(other).collect()
    }

    /// Takes what another host knows of the hosts; leaves the cluster when it says that this host was removed.
    pub async fn take_records(&self, records: Vec<HostRecord>) -> Result<(), HostTableError> {
        self.hosts.merge(records).await?;
        if let Err(error) = self.leave_if_removed() {
            tracing::error!(
                error = chain(&error),
                "this host was removed from the cluster but cannot leave it"
            );
        }
        Ok(())
    }

    /// Puts the certificates aside when this host was removed, so that it can join again.
    pub fn leave_if_removed(&self) -> Result<(), PkiFileError> {
        let Some(member) = self.member() else {
            return Ok(());
        };
        if !matches!(self.hosts.check(&member.identity), Err(NotAdmitted::Removed(_))) {
            return Ok(());
        }
        let aside = pki::move_aside(&self.settings.pki, now_ms())?;
        self.membership.send_replace(None);
        self.channels.clear();
        tracing::warn!(
            host = %member.identity, certificates = %aside.display(),
            "this host was removed from its cluster; its containers go on, its certificates were put aside"
        );
        Ok(())
    }

    /// Tells the others a new address, where the configuration has one.
    async fn announce_moved_address(&self) -> Result<(), HostTableError> {
        let Some(member) = self.member() else {
            return Ok(());
        };
        let known = self.hosts.get(&member.identity.name).filter(|host| !host.removed);
        let (Some(known), Some(address)) = (known, &self.settings.peer.advertise) else {
            return Ok(());
        };
        if known.address == *address {
            return Ok(());
        }
        let generation = known.generation.changed();
        let moved = KnownHost {
            address: address.clone(),
            generation,
            ..known
        };
        self.hosts.merge(vec![moved.record()]).await
    }
}
