//! Connects to a peer listener.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{CertificateError, ClientConfig, OtherError};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::address::PeerAddress;
use super::tls::{WrongCluster, WrongHost};

/// For the connection, and again for the handshake.
const DEADLINE: Duration = Duration::from_secs(5);

/// No connection came about.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens there, or the network says no.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Where to.
        address: PeerAddress,
        /// What the network says.
        #[source]
        source: io::Error,
    },
    /// No answer.
    #[error("{address} did not answer within {} s", DEADLINE.as_secs())]
    Silent {
        /// Where to.
        address: PeerAddress,
    },
    /// A host of the cluster, but another one.
    #[error("at {address} answers the wrong host")]
    WrongHost {
        /// Where to.
        address: PeerAddress,
        /// Who.
        #[source]
        source: WrongHost,
    },
    /// A host of another cluster.
    #[error("at {address} answers a host of another cluster")]
    WrongCluster {
        /// Where to.
        address: PeerAddress,
        /// Which.
        #[source]
        source: WrongCluster,
    },
    /// What answers does not speak TLS as we do, or its certificate is not genuine.
    #[error("{address} answers, but not as a host of this cluster")]
    Handshake {
        /// Where to.
        address: PeerAddress,
        /// What TLS says.
        #[source]
        source: io::Error,
    },
    /// What answers speaks another protocol.
    #[error("{address} answers in another protocol")]
    Protocol {
        /// Where to.
        address: PeerAddress,
    },
}

/// Opens a connection and finishes its handshake; the first (only) protocol of `tls` was agreed on.
///
/// # Errors
/// [`DialError`]; nothing stays open.
pub(super) async fn dial(
    address: &PeerAddress,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, DialError> {
    let silent = || DialError::Silent {
        address: address.clone(),
    };
    let unreachable = |source| DialError::Unreachable {
        address: address.clone(),
        source,
    };
    let connecting = TcpStream::connect((address.host(), address.port()));
    let tcp = timeout(DEADLINE, connecting)
        .await
        .map_err(|_| silent())?
        .map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    let wanted = tls.alpn_protocols.first().cloned();
    let shaking = TlsConnector::from(tls).connect(name, tcp);
    let stream = timeout(DEADLINE, shaking)
        .await
        .map_err(|_| silent())?
        .map_err(|error| handshake_error(address, error))?;
    if stream.get_ref().1.alpn_protocol() == wanted.as_deref() {
        Ok(stream)
    } else {
        Err(DialError::Protocol {
            address: address.clone(),
        })
    }
}

fn handshake_error(address: &PeerAddress, source: io::Error) -> DialError {
    let address = address.clone();
    match own_reason(&source) {
        Some(Reason::Host(source)) => DialError::WrongHost { address, source },
        Some(Reason::Cluster(source)) => DialError::WrongCluster { address, source },
        None => DialError::Handshake { address, source },
    }
}

enum Reason {
    Host(WrongHost),
    Cluster(WrongCluster),
}

/// The reason that our own verifier gave, out of the wrappings of the library.
fn own_reason(error: &io::Error) -> Option<Reason> {
    let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(reason))) =
        error.get_ref()?.downcast_ref::<rustls::Error>()?
    else {
        return None;
    };
    let (host, cluster) = (
        reason.downcast_ref::<WrongHost>(),
        reason.downcast_ref::<WrongCluster>(),
    );
    match (host, cluster) {
        (Some(host), _) => Some(Reason::Host(WrongHost {
            wanted: host.wanted.clone(),
            found: host.found.clone(),
        })),
        (_, Some(cluster)) => Some(Reason::Cluster(WrongCluster {
            wanted: cluster.wanted.clone(),
        })),
        _ => None,
    }
}
