//! Lets new hosts in: the side of a join that has the authority's key.

use tonic::Status;
use tranship_proto::v1::{JoinReply, JoinRequest};

use super::address::PeerAddressError;
use super::cluster::Inner;
use super::generation::Generation;
use super::hosts::{HostTableError, KnownHost};
use super::identity::PeerIdentity;
use super::membership::Membership;
use super::names::{HostNameError, host_name};
use super::pki::{Authority, IssueError};
use super::refusal::chain;
use super::store::{Admission, Admitted};
use super::token::Secret;
use crate::clock::now_ms;

/// Why a host was not let in. Its token is good as before, unless it says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum InviteError {
    /// The certificates of the cluster are not made here.
    #[error(
        "this host cannot let others in: the cluster's key is on the host where `tranship host init` was run"
    )]
    NoAuthority,
    /// The name is none.
    #[error(transparent)]
    Name(#[from] HostNameError),
    /// The address is none.
    #[error("the address of the new host cannot be used: it {0}")]
    Address(#[from] PeerAddressError),
    /// A host of that name is there.
    #[error(
        "a host named {0} is in the cluster already: join with another --name, or remove that host first"
    )]
    NameTaken(String),
    /// Not a token of this cluster.
    #[error("this token is not known: make one with `tranship host token`")]
    UnknownToken,
    /// Too late.
    #[error("this token has expired: make a new one with `tranship host token`")]
    ExpiredToken,
    /// Used before.
    #[error(
        "this token was used before, a token is good for one host: make a new one with `tranship host token`"
    )]
    SpentToken,
    /// The certificate could not be made.
    #[error("the new host's certificate could not be signed")]
    Issue(#[from] IssueError),
    /// The store failed.
    #[error("the new host could not be recorded")]
    Table(#[from] HostTableError),
}

impl From<InviteError> for Status {
    fn from(error: InviteError) -> Self {
        let text = chain(&error);
        match error {
            InviteError::NoAuthority => Self::failed_precondition(text),
            InviteError::Name(_) | InviteError::Address(_) | InviteError::Issue(_) => {
                Self::invalid_argument(text)
            }
            InviteError::NameTaken(_) => Self::already_exists(text),
            InviteError::UnknownToken | InviteError::ExpiredToken | InviteError::SpentToken => {
                Self::permission_denied(text)
            }
            InviteError::Table(_) => Self::internal(text),
        }
    }
}

/// Answers a host that shows a token: with a certificate and the hosts of the cluster.
///
/// The certificate is signed first; it leaves this host only when the token and the name have been taken, in one step.
pub(super) async fn admit(
    inner: &Inner,
    membership: &Membership,
    request: JoinRequest,
) -> Result<JoinReply, InviteError> {
    let authority = membership.authority.as_ref().ok_or(InviteError::NoAuthority)?;
    let host = newcomer(inner, &request)?;
    let certificate = sign(authority, &host, &request.certificate_request)?;
    let admission = Admission {
        token_hash: Secret::shown(request.secret).hash(),
        now_ms: now_ms(),
        record: host.record(),
    };
    match inner.hosts.admit(admission).await? {
        Admitted::Accepted => {}
        Admitted::UnknownToken => return Err(InviteError::UnknownToken),
        Admitted::ExpiredToken => return Err(InviteError::ExpiredToken),
        Admitted::SpentToken => return Err(InviteError::SpentToken),
        Admitted::NameTaken => return Err(InviteError::NameTaken(request.name)),
    }
    inner.channels.forget(&host.name);
    inner.sync_now.notify_one();
    Ok(JoinReply {
        certificate,
        ca_certificate: authority.certificate_pem().to_owned(),
        hosts: inner.hosts.records(),
    })
}

fn newcomer(inner: &Inner, request: &JoinRequest) -> Result<KnownHost, InviteError> {
    let name = host_name(&request.name)?;
    let address = request.address.parse()?;
    let before = inner.hosts.get(&name).map(|host| host.generation);
    let generation = before.map_or(Generation::FIRST, Generation::reborn);
    Ok(KnownHost {
        name,
        address,
        generation,
        removed: false,
    })
}

fn sign(authority: &Authority, host: &KnownHost, request: &str) -> Result<String, IssueError> {
    let identity = PeerIdentity {
        name: host.name.clone(),
        incarnation: host.generation.incarnation(),
    };
    authority.issue(&identity, request)
}
