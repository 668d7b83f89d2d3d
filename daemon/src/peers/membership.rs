//! This host as a member of a cluster: who it is there, and what proves it.

use std::sync::{Mutex, PoisonError};

use rustls::pki_types::CertificateDer;
use tokio::net::TcpListener;

use super::identity::{IdentityError, PeerIdentity};
use super::pki::{Authority, Pki, ends_ms, fingerprint};
use super::tls::{TlsConfigs, TlsError};

/// The certificates do not make this host a member.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// They name nobody.
    #[error("this host's certificate names no host")]
    Identity(#[from] IdentityError),
    /// They do not work for TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// This host in its cluster.
pub struct Membership {
    /// Who this host is.
    pub identity: PeerIdentity,
    /// TLS with its certificate.
    pub tls: TlsConfigs,
    /// The key to let others in, where this host has it.
    pub authority: Option<Authority>,
    ca: CertificateDer<'static>,
    expires_ms: i64,
    listener: Mutex<Option<TcpListener>>,
}

impl Membership {
    /// Reads who this host is; `listener` is the port other hosts will connect to.
    ///
    /// # Errors
    /// The certificates do not go together.
    pub fn new(pki: Pki, listener: TcpListener) -> Result<Self, MembershipError> {
        Ok(Self {
            identity: PeerIdentity::of_certificate(&pki.host)?,
            tls: TlsConfigs::new(&pki)?,
            expires_ms: ends_ms(&pki.host).unwrap_or_default(),
            authority: pki.authority,
            ca: pki.ca,
            listener: Mutex::new(Some(listener)),
        })
    }

    /// What tells this cluster from any other.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.ca)
    }

    /// When this host's certificate ends.
    #[must_use]
    pub fn expires_ms(&self) -> i64 {
        self.expires_ms
    }

    /// The port that was bound for this membership, once.
    pub(super) fn take_listener(&self) -> Option<TcpListener> {
        self.listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }
}
