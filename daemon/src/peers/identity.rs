//! Who is at the other end: the one DNS name in a certificate, letter by letter.
//!
//! The certificate also names the incarnation of the host (see [`super::generation`]) in a URI,
//! `tranship://host/NAME/INCARNATION`. No wildcard, no second name, no common name counts.

use std::fmt;

use tranship_proto::ids::Name;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::names::host_name;

/// A host as its certificate names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerIdentity {
    /// The host's name.
    pub name: Name,
    /// Which host of that name, from 1.
    pub incarnation: u32,
}

/// Why a certificate names no host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdentityError {
    /// Not a certificate.
    #[error("the certificate cannot be read: {0}")]
    Unreadable(String),
    /// None or several, or other kinds of names.
    #[error("the certificate must name one host, it names: {0}")]
    Names(String),
}

impl PeerIdentity {
    /// The URI that stands in the certificate beside the DNS name.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("tranship://host/{}/{}", self.name, self.incarnation)
    }

    /// Reads who a certificate (DER) was made for. Says nothing about whether it is genuine.
    ///
    /// # Errors
    /// It does not name exactly one host.
    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let unreadable = |error: String| IdentityError::Unreadable(error);
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| unreadable(error.to_string()))?;
        let extension = certificate
            .subject_alternative_name()
            .map_err(|error| unreadable(error.to_string()))?;
        let names = extension
            .map(|names| names.value.general_names.as_slice())
            .unwrap_or_default();
        read(names).ok_or_else(|| {
            let shown: Vec<String> = names.iter().map(|name| name.to_string()).collect();
            IdentityError::Names(if shown.is_empty() {
                "nobody".to_owned()
            } else {
                shown.join(", ")
            })
        })
    }
}

fn read(names: &[GeneralName<'_>]) -> Option<PeerIdentity> {
    let (GeneralName::DNSName(dns), GeneralName::URI(uri)) = (names.first()?, names.get(1)?) else {
        return None;
    };
    let rest = uri
        .strip_prefix("tranship://host/")?
        .strip_prefix(dns)?
        .strip_prefix('/')?;
    let identity = PeerIdentity {
        name: host_name(dns).ok()?,
        incarnation: rest.parse().ok()?,
    };
    (names.len() == 2 && identity.uri() == *uri).then_some(identity)
}

impl fmt::Display for PeerIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}
