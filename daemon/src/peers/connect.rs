//! Connections to other hosts: control channels that are kept, data streams that are opened for one migration.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;
use tranship_proto::ids::Name;
use tranship_proto::limits::MAX_CONTROL_BYTES;
use tranship_proto::v1::peer_client::PeerClient;

use super::address::PeerAddress;
use super::dial::{DialError, dial};
use super::hosts::{HostTable, KnownHost, NotAdmitted};
use super::identity::{IdentityError, PeerIdentity};
use super::membership::Membership;

/// A quiet control connection is asked for a sign of life this often,
pub(super) const KEEPALIVE: Duration = Duration::from_secs(2);

/// and given up when none comes for so long.
pub(super) const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(6);

/// For a connection with its handshake; each of the two has a deadline of its own below it.
const CONNECT_DEADLINE: Duration = Duration::from_secs(12);

/// What a host does that does not let us in.
const CLOSED: &str = "the host closed the connection; it may have removed this host or not know it yet: its log has the reason";

/// Why there is no connection to a host.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// This host has no certificate to show.
    #[error(
        "this host is in no cluster: run `tranship host init` here, or `tranship host join` with a token"
    )]
    NotMember,
    /// It is not a host of the cluster.
    #[error(transparent)]
    Host(#[from] NotAdmitted),
    /// A host cannot connect to itself.
    #[error("host {0} is this host")]
    Oneself(Name),
    /// The connection failed.
    #[error("cannot connect to host {host}")]
    Dial {
        /// Which host.
        host: Name,
        /// Why not.
        #[source]
        source: DialError,
    },
    /// Its certificate names nobody.
    #[error("host {host} showed a certificate that names no host")]
    Identity {
        /// Which host.
        host: Name,
        /// What is wrong with it.
        #[source]
        source: IdentityError,
    },
}

/// The control channels that are kept, by host.
#[derive(Default)]
pub(super) struct Channels(Mutex<HashMap<Name, (PeerAddress, Channel)>>);

impl Channels {
    /// A client of a host's peer service. Connects when it is used, and again after a failure.
    pub fn client(
        &self,
        membership: &Membership,
        hosts: &Arc<HostTable>,
        name: &Name,
    ) -> Result<PeerClient<Channel>, ConnectError> {
        let host = target(membership, hosts, name)?;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match kept.get(name) {
            Some((address, channel)) if *address == host.address => channel.clone(),
            _ => {
                let channel = open_channel(&host, Arc::clone(&membership.tls.control), Arc::clone(hosts));
                kept.insert(name.clone(), (host.address, channel.clone()));
                channel
            }
        };
        Ok(peer_client(channel))
    }

    /// Gives up the channel to a host.
    pub fn forget(&self, name: &Name) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    /// Gives up all channels.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A client with the limits that hold between hosts.
pub(super) fn peer_client(channel: Channel) -> PeerClient<Channel> {
    PeerClient::new(channel)
        .max_decoding_message_size(MAX_CONTROL_BYTES)
        .max_encoding_message_size(MAX_CONTROL_BYTES)
}

/// Opens a data stream. The greeting is the caller's to send.
pub(super) async fn open_data(
    membership: &Membership,
    hosts: &HostTable,
    name: &Name,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let host = target(membership, hosts, name)?;
    connect(&host, Arc::clone(&membership.tls.data), hosts).await
}

fn target(membership: &Membership, hosts: &HostTable, name: &Name) -> Result<KnownHost, ConnectError> {
    if membership.identity.name == *name {
        return Err(ConnectError::Oneself(name.clone()));
    }
    let host = hosts
        .get(name)
        .ok_or_else(|| NotAdmitted::Unknown(name.clone()))?;
    if host.removed {
        Err(NotAdmitted::Removed(name.clone()).into())
    } else {
        Ok(host)
    }
}

fn open_channel(host: &KnownHost, tls: Arc<ClientConfig>, hosts: Arc<HostTable>) -> Channel {
    let host = host.clone();
    let connector = service_fn(move |_: Uri| {
        let (host, tls, hosts) = (host.clone(), Arc::clone(&tls), Arc::clone(&hosts));
        async move { connect(&host, tls, &hosts).await.map(TokioIo::new) }
    });
    endpoint().connect_with_connector_lazy(connector)
}

/// The settings of a control connection. Its address is a placeholder: the connector knows where to go.
pub(super) fn endpoint() -> Endpoint {
    Endpoint::from_static("http://peer.invalid")
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
        .keep_alive_while_idle(true)
}

async fn connect(
    host: &KnownHost,
    tls: Arc<ClientConfig>,
    hosts: &HostTable,
) -> Result<TlsStream<TcpStream>, ConnectError> {
    let failed = |source| ConnectError::Dial {
        host: host.name.clone(),
        source,
    };
    let name = server_name(&host.name).map_err(|source| identity_error(&host.name, source))?;
    let stream = dial(&host.address, name, tls).await.map_err(failed)?;
    let certificate = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first());
    let read = PeerIdentity::of_certificate(certificate.map(AsRef::as_ref).unwrap_or_default());
    // The handshake made sure of the name; whether it still belongs to the same host is ours to know.
    hosts.check(&read.map_err(|source| identity_error(&host.name, source))?)?;
    Ok(stream)
}

/// Why a call to another host failed, in one line: the host's own words, or what is wrong with the connection.
#[must_use]
pub fn explain(status: &Status) -> String {
    let mut parts = vec![status.message().to_owned()];
    let sources = std::iter::successors(std::error::Error::source(status), |error| error.source());
    for source in sources {
        if source
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
        {
            return CLOSED.to_owned();
        }
        parts.push(source.to_string());
    }
    parts.retain(|part| !part.is_empty() && part != "transport error");
    parts.dedup();
    parts.join(": ")
}

fn identity_error(host: &Name, source: IdentityError) -> ConnectError {
    ConnectError::Identity {
        host: host.clone(),
        source,
    }
}

fn server_name(name: &Name) -> Result<ServerName<'static>, IdentityError> {
    ServerName::try_from(name.to_string()).map_err(|_| IdentityError::Names(name.to_string()))
}
