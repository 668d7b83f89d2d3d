//! What can go wrong with an operator's wish.

use rustls::crypto::GetRandomFailed;
use tonic::Code;
use tranship_proto::ids::Name;

use crate::peers::address::PeerAddressError;
use crate::peers::connect::ConnectError;
use crate::peers::hosts::{HostTableError, NotAdmitted};
use crate::peers::invite::InviteError;
use crate::peers::join::JoinError;
use crate::peers::membership::MembershipError;
use crate::peers::names::HostNameError;
use crate::peers::pki::{IssueError, PkiFileError};
use crate::peers::refusal::chain;
use crate::peers::token::TokenError;

/// An operator's wish that could not be done. Nothing was changed unless it says so.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// There is a cluster already.
    #[error("this host is in a cluster already, as {0}: remove it there before it begins or joins another")]
    AlreadyMember(Name),
    /// There is no cluster yet.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// No usable name.
    #[error(transparent)]
    Name(#[from] HostNameError),
    /// Two names.
    #[error(
        "the configuration calls this host {configured}, not {wanted}: use that name, or change the configuration"
    )]
    NameConflict {
        /// In the configuration.
        configured: Name,
        /// In the request.
        wanted: Name,
    },
    /// No usable address.
    #[error("the address cannot be used: it {0}")]
    Address(#[from] PeerAddressError),
    /// Nobody said where other hosts reach this one.
    #[error(
        "other hosts need an address to reach this one: give --advertise ADDRESS[:PORT], or set peer.advertise"
    )]
    NoAddress,
    /// The port is taken, or the address is not this machine's.
    #[error("cannot listen for peers on {address}")]
    Listen {
        /// The configured address.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Certificates could not be made.
    #[error("cannot make this host's certificates")]
    Issue(#[from] IssueError),
    /// Certificates could not be written.
    #[error("cannot write this host's certificates")]
    Files(#[from] PkiFileError),
    /// Certificates cannot be used.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The store failed.
    #[error(transparent)]
    Table(#[from] HostTableError),
    /// The text is no token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// This host cannot invite.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// A token that would be good for too long.
    #[error("a token is good for at most {} days", super::MAX_TOKEN_VALID.as_secs() / 86400)]
    TokenValidity,
    /// No random numbers.
    #[error("the machine has no random numbers to make a token of")]
    Random,
    /// The other host did not let this one in.
    #[error("this host has not joined")]
    Join(#[from] JoinError),
    /// No such host.
    #[error("there is no host named {0} in the cluster")]
    NoSuchHost(String),
    /// Nobody could be invited any more.
    #[error("{0} has the cluster's key: without it no host can join any more; remove the other hosts first")]
    LastAuthority(Name),
}

impl From<GetRandomFailed> for AdminError {
    fn from(_: GetRandomFailed) -> Self {
        Self::Random
    }
}

impl AdminError {
    /// What kind of failure it is, for the API.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::AlreadyMember(_) => Code::AlreadyExists,
            Self::NoSuchHost(_) => Code::NotFound,
            Self::Name(_) | Self::Address(_) | Self::Token(_) | Self::TokenValidity | Self::NoAddress => {
                Code::InvalidArgument
            }
            Self::Connect(ConnectError::NotMember)
            | Self::NameConflict { .. }
            | Self::Invite(_)
            | Self::LastAuthority(_)
            | Self::Listen { .. } => Code::FailedPrecondition,
            Self::Join(error) => error.code(),
            Self::Connect(_) => Code::Unavailable,
            Self::Issue(_) | Self::Files(_) | Self::Membership(_) | Self::Table(_) | Self::Random => {
                Code::Internal
            }
        }
    }
}

impl From<AdminError> for tonic::Status {
    fn from(error: AdminError) -> Self {
        Self::new(error.code(), chain(&error))
    }
}

impl From<NotAdmitted> for AdminError {
    fn from(error: NotAdmitted) -> Self {
        Self::Connect(error.into())
    }
}
