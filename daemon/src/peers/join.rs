//! Joins a cluster: the side of the host that has only a token.
//!
//! The other host proves first that it belongs to the token's cluster; only then is the secret sent. What comes back is
//! checked before it is believed: the authority against the fingerprint, the certificate against our key and name.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::time::timeout;
use tonic::Code;
use tower::service_fn;
use tranship_proto::ids::Name;
use tranship_proto::v1::{HostRecord, JoinReply, JoinRequest};

use super::address::PeerAddress;
use super::admin::certificate;
use super::connect::{endpoint, peer_client};
use super::dial::{DialError, dial};
use super::hosts::KnownHost;
use super::identity::PeerIdentity;
use super::pki::{HostKey, IssueError, fingerprint};
use super::tls::{TlsError, join_config};
use super::token::JoinToken;

/// For the other host's answer.
const DEADLINE: Duration = Duration::from_secs(15);

/// Why the other host did not let this one in.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// It cannot be reached, or is of another cluster. The token is still good.
    #[error("the host that made the token cannot be asked; the token was not used")]
    Dial(#[from] DialError),
    /// TLS cannot be set up here.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The request could not be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// It said no.
    #[error("{address} says: {message}")]
    Refused {
        /// Who.
        address: PeerAddress,
        /// What kind of no.
        code: Code,
        /// Its words.
        message: String,
    },
    /// It took the secret and did not answer.
    #[error(
        "{address} did not answer; it may have let this host in: if a new token is refused because the name is taken, \
         remove the host there first"
    )]
    Unanswered {
        /// Who.
        address: PeerAddress,
    },
    /// What it sent is not what a host of the cluster sends.
    #[error("the answer of {address} cannot be used: {problem}")]
    Answer {
        /// Who.
        address: PeerAddress,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl JoinError {
    /// What kind of failure it is, for the API.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Dial(DialError::WrongCluster { .. }) => Code::PermissionDenied,
            Self::Dial(_) | Self::Unanswered { .. } => Code::Unavailable,
            Self::Refused { code, .. } => *code,
            Self::Tls(_) | Self::Issue(_) | Self::Answer { .. } => Code::Internal,
        }
    }
}

/// What a new host brings home.
pub(super) struct Welcome {
    pub ca_pem: String,
    pub certificate_pem: String,
    pub hosts: Vec<HostRecord>,
}

/// Shows a token to the host that made it.
pub(super) async fn ask_to_join(
    token: &JoinToken,
    name: &Name,
    address: &PeerAddress,
    key: &HostKey,
) -> Result<Welcome, JoinError> {
    let request = JoinRequest {
        secret: token.secret.reveal().to_owned(),
        name: name.to_string(),
        address: address.to_string(),
        certificate_request: key.request()?,
    };
    let tls = Arc::new(join_config(&token.fingerprint)?);
    // The verifier goes by the fingerprint; nobody has told us a name.
    let stream = dial(
        &token.address,
        ServerName::IpAddress(Ipv4Addr::UNSPECIFIED.into()),
        tls,
    )
    .await?;
    let reply = call(&token.address, stream, request).await?;
    check(token, name, key, reply)
}

async fn call<S>(address: &PeerAddress, stream: S, request: JoinRequest) -> Result<JoinReply, JoinError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let unanswered = || JoinError::Unanswered {
        address: address.clone(),
    };
    let once = Arc::new(Mutex::new(Some(TokioIo::new(stream))));
    let connector = service_fn(move |_: Uri| {
        let stream = once.lock().unwrap_or_else(PoisonError::into_inner).take();
        async move { stream.ok_or(std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let mut client = peer_client(endpoint().connect_with_connector_lazy(connector));
    match timeout(DEADLINE, client.join(request))
        .await
        .map_err(|_| unanswered())?
    {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
            Err(unanswered())
        }
        Err(status) => Err(JoinError::Refused {
            address: address.clone(),
            code: status.code(),
            message: status.message().to_owned(),
        }),
    }
}

fn check(token: &JoinToken, name: &Name, key: &HostKey, reply: JoinReply) -> Result<Welcome, JoinError> {
    let wrong = |problem| JoinError::Answer {
        address: token.address.clone(),
        problem,
    };
    let ca = certificate(&reply.ca_certificate).ok_or_else(|| wrong("it has no authority"))?;
    if fingerprint(&ca) != token.fingerprint {
        return Err(wrong("its authority is not the token's"));
    }
    let own = certificate(&reply.certificate).ok_or_else(|| wrong("it has no certificate"))?;
    let identity = PeerIdentity::of_certificate(&own).map_err(|_| wrong("its certificate names no host"))?;
    if identity.name != *name || !key.is_of(&own) {
        return Err(wrong("its certificate is not for this host"));
    }
    let mut hosts = reply
        .hosts
        .iter()
        .filter_map(|record| KnownHost::read(record).ok());
    let listed = |host: KnownHost| {
        host.name == identity.name && host.generation.incarnation() == identity.incarnation && !host.removed
    };
    if !hosts.any(listed) {
        return Err(wrong("its list of hosts does not have this host"));
    }
    Ok(Welcome {
        ca_pem: reply.ca_certificate,
        certificate_pem: reply.certificate,
        hosts: reply.hosts,
    })
}
