//! Makes keys, requests and certificates.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, string::Ia5String,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::peers::identity::PeerIdentity;

const AUTHORITY_VALID: Duration = Duration::days(3653);
const HOST_VALID: Duration = Duration::days(366);

/// Certificates begin in the past, for hosts whose clock is behind.
const CLOCK_SKEW: Duration = Duration::hours(1);

/// Longest request that is looked at; one for an ECDSA key has 500 bytes.
const MAX_REQUEST_BYTES: usize = 8 << 10;

/// A key or certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The library refuses, in most cases for what it was given.
    #[error("cannot {operation}")]
    Library {
        /// What was being done.
        operation: &'static str,
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate request beyond all measure.
    #[error("a certificate request of {0} bytes, the longest that is looked at has {MAX_REQUEST_BYTES}")]
    RequestTooLong(usize),
}

fn failed(operation: &'static str) -> impl FnOnce(rcgen::Error) -> IssueError {
    move |source| IssueError::Library { operation, source }
}

/// The cluster's authority with its private key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

impl Authority {
    /// A new authority; `host` is where it was made, for people who look at the certificate.
    ///
    /// # Errors
    /// No key could be made.
    pub fn generate(host: &str) -> Result<Self, IssueError> {
        let key = KeyPair::generate().map_err(failed("make the authority's key"))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = named(&format!("tranship cluster of {host}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, AUTHORITY_VALID);
        let certificate = params
            .self_signed(&key)
            .map_err(failed("sign the authority's certificate"))?;
        Ok(Self {
            certificate_pem: certificate.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The authority that was written to disk.
    ///
    /// # Errors
    /// The texts are no certificate and key.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, IssueError> {
        let key = KeyPair::from_pem(key_pem).map_err(failed("read the authority's key"))?;
        let issuer = Issuer::from_ca_cert_pem(certificate_pem, key)
            .map_err(failed("read the authority's certificate"))?;
        Ok(Self {
            issuer,
            certificate_pem: certificate_pem.to_owned(),
        })
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Its private key.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a certificate (PEM) for `host` and the key in the request. What else the request asks for is ignored.
    ///
    /// # Errors
    /// The request cannot be read or is not signed with its key.
    pub fn issue(&self, host: &PeerIdentity, request_pem: &str) -> Result<String, IssueError> {
        if request_pem.len() > MAX_REQUEST_BYTES {
            return Err(IssueError::RequestTooLong(request_pem.len()));
        }
        let request = CertificateSigningRequestParams::from_pem(request_pem)
            .map_err(failed("read the certificate request"))?;
        let mut params = host_params(host)?;
        set_validity(&mut params, HOST_VALID);
        let signed = params.signed_by(&request.public_key, &self.issuer);
        Ok(signed.map_err(failed("sign the host's certificate"))?.pem())
    }
}

/// A host's own key.
pub struct HostKey(KeyPair);

impl HostKey {
    /// A new one.
    ///
    /// # Errors
    /// No key could be made.
    pub fn generate() -> Result<Self, IssueError> {
        KeyPair::generate()
            .map(Self)
            .map_err(failed("make the host's key"))
    }

    /// The key that was written to disk.
    ///
    /// # Errors
    /// The text is no key.
    pub fn load(pem: &str) -> Result<Self, IssueError> {
        KeyPair::from_pem(pem)
            .map(Self)
            .map_err(failed("read the host's key"))
    }

    /// The private key.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.serialize_pem()
    }

    /// A request (PEM) for a certificate of this key. The authority decides what will stand in it.
    ///
    /// # Errors
    /// It could not be signed.
    pub fn request(&self) -> Result<String, IssueError> {
        let request = CertificateParams::default().serialize_request(&self.0);
        request
            .and_then(|request| request.pem())
            .map_err(failed("make a certificate request"))
    }

    /// Whether a certificate (DER) is one of this key.
    #[must_use]
    pub fn is_of(&self, certificate: &CertificateDer<'_>) -> bool {
        X509Certificate::from_der(certificate).is_ok_and(|(_, read)| {
            read.public_key().subject_public_key.data.as_ref() == self.0.public_key_raw()
        })
    }
}

/// When a certificate (DER) ends, in milliseconds since the Unix epoch; `None` where it cannot be read.
#[must_use]
pub fn ends_ms(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, read) = X509Certificate::from_der(certificate).ok()?;
    Some(read.validity().not_after.timestamp().saturating_mul(1000))
}

/// The SHA-256 of a certificate (DER) in hexadecimal digits.
#[must_use]
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    Sha256::digest(certificate)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn host_params(host: &PeerIdentity) -> Result<CertificateParams, IssueError> {
    let text = |text: String| Ia5String::try_from(text).map_err(failed("write the host's name"));
    let mut params = CertificateParams::default();
    params.distinguished_name = named(host.name.as_str());
    params.subject_alt_names = vec![
        SanType::DnsName(text(host.name.to_string())?),
        SanType::URI(text(host.uri())?),
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // X.520 ends a common name after 64 letters.
    name.push(
        DnType::CommonName,
        common_name.chars().take(64).collect::<String>(),
    );
    name
}

fn set_validity(params: &mut CertificateParams, valid: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - CLOCK_SKEW;
    params.not_after = now + valid;
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    fn host(name: &str, incarnation: u32) -> PeerIdentity {
        PeerIdentity {
            name: name.parse().unwrap(),
            incarnation,
        }
    }

    #[test]
    fn a_certificate_names_its_host_and_key() {
        let authority = Authority::generate("a").unwrap();
        let key = HostKey::generate().unwrap();
        let pem = authority
            .issue(&host("b.rack-2", 7), &key.request().unwrap())
            .unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(PeerIdentity::of_certificate(&der), Ok(host("b.rack-2", 7)));
        assert!(key.is_of(&der));
        assert!(!HostKey::generate().unwrap().is_of(&der));
    }

    #[test]
    fn an_authority_read_from_disk_signs_as_before() {
        let authority = Authority::generate("a").unwrap();
        let again = Authority::load(authority.certificate_pem(), &authority.key_pem()).unwrap();
        assert!(
            again
                .issue(&host("b", 1), &HostKey::generate().unwrap().request().unwrap())
                .is_ok()
        );
        assert!(Authority::load("nothing", "nothing").is_err());
    }

    #[test]
    fn a_request_that_its_key_did_not_sign_is_refused() {
        let authority = Authority::generate("a").unwrap();
        let request = HostKey::generate().unwrap().request().unwrap();
        let at = request.len() / 2;
        let flipped = if request.as_bytes()[at] == b'A' { "B" } else { "A" };
        let spoiled = format!("{}{flipped}{}", &request[..at], &request[at + 1..]);
        assert!(authority.issue(&host("b", 1), &spoiled).is_err());
        assert!(
            authority
                .issue(&host("b", 1), &"x".repeat(MAX_REQUEST_BYTES + 1))
                .is_err()
        );
    }

    #[test]
    fn the_authority_itself_is_nobody() {
        let authority = Authority::generate("a").unwrap();
        let der = CertificateDer::from_pem_slice(authority.certificate_pem().as_bytes()).unwrap();
        assert!(matches!(
            PeerIdentity::of_certificate(&der),
            Err(crate::peers::identity::IdentityError::Names(_))
        ));
    }
}
