//! TLS between hosts: version 1.3, both ends show a certificate of the cluster's authority, no session is resumed and no
//! data is sent early.
//!
//! A host that connects accepts exactly the host it meant, not any host with a genuine certificate. A host that is
//! connected to lets a client without a certificate finish the handshake, because a new host has none yet; what such a
//! client may do is decided by the listener and the service.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientConfig, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, ServerConfig, VerifierBuilderError, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme};

use super::identity::PeerIdentity;
use super::pki::{Pki, fingerprint};

/// Protocol of the control connections.
pub const ALPN_CONTROL: &[u8] = b"h2";

/// Protocol of the bulk data streams.
pub const ALPN_DATA: &[u8] = b"tranship-data/1";

/// TLS as this host speaks it with its certificate.
pub struct TlsConfigs {
    /// For the listener.
    pub server: Arc<ServerConfig>,
    /// To open a control connection.
    pub control: Arc<ClientConfig>,
    /// To open a data stream.
    pub data: Arc<ClientConfig>,
}

/// The certificates on disk cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The certificate does not go with the key, or is none.
    #[error("the certificates cannot be used for TLS")]
    Certificate(#[from] Error),
    /// The authority's certificate is no authority's.
    #[error("the authority's certificate cannot be used for TLS")]
    Authority(#[from] VerifierBuilderError),
}

/// The server showed a certificate of another cluster than the token's.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the host belongs to another cluster than the token: no certificate it shows has the fingerprint {wanted}"
)]
pub struct WrongCluster {
    /// The fingerprint in the token.
    pub wanted: String,
}

/// The server is a host of the cluster, but not the one that was meant.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the host that answers is {found}, not {wanted}")]
pub struct WrongHost {
    /// Who was meant.
    pub wanted: String,
    /// Who answered.
    pub found: String,
}

/// The cryptography everything here uses.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl TlsConfigs {
    /// Prepares TLS with a host's certificate.
    ///
    /// # Errors
    /// The certificates do not go together.
    pub fn new(pki: &Pki) -> Result<Self, TlsError> {
        Ok(Self {
            server: Arc::new(server_config(pki)?),
            control: Arc::new(client_config(pki, ALPN_CONTROL)?),
            data: Arc::new(client_config(pki, ALPN_DATA)?),
        })
    }
}

fn server_config(pki: &Pki) -> Result<ServerConfig, TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&pki.ca)?), provider())
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(pki), pki.host_key.clone_key())?;
    config.alpn_protocols = vec![ALPN_CONTROL.to_vec(), ALPN_DATA.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn client_config(pki: &Pki, protocol: &[u8]) -> Result<ClientConfig, TlsError> {
    let verifier = ExactHost {
        chain: chain_verifier(&pki.ca)?,
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain(pki), pki.host_key.clone_key())?;
    finish(&mut config, protocol);
    Ok(config)
}

/// TLS for a host that has only a token: nobody's certificate is shown, and any host of the token's cluster is accepted.
///
/// # Errors
/// The library refuses its own defaults.
pub fn join_config(wanted: &str) -> Result<ClientConfig, TlsError> {
    let verifier = TokenCluster {
        wanted: wanted.to_owned(),
        provider: provider(),
    };
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    finish(&mut config, ALPN_CONTROL);
    Ok(config)
}

fn finish(config: &mut ClientConfig, protocol: &[u8]) {
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
}

fn chain(pki: &Pki) -> Vec<CertificateDer<'static>> {
    // The authority's certificate goes along for hosts that know no more than its fingerprint.
    vec![pki.host.clone(), pki.ca.clone()]
}

fn roots(ca: &CertificateDer<'_>) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(roots)
}

fn chain_verifier(ca: &CertificateDer<'_>) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    Ok(WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca)?), provider()).build()?)
}

fn refuse(reason: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(reason))))
}

/// Accepts the host whose name is asked for, letter by letter.
#[derive(Debug)]
struct ExactHost {
    chain: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ExactHost {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        wanted: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = PeerIdentity::of_certificate(end_entity).map_err(refuse)?;
        let own_name = ServerName::try_from(found.name.as_str()).map_err(refuse)?;
        // First whether it is genuine: a stranger who calls himself something else is a stranger.
        self.chain
            .verify_server_cert(end_entity, intermediates, &own_name, ocsp, now)?;
        if wanted.to_str() == found.name.as_str() {
            return Ok(ServerCertVerified::assertion());
        }
        Err(refuse(WrongHost {
            wanted: wanted.to_str().into_owned(),
            found: found.to_string(),
        }))
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// Accepts any host of the cluster whose authority has the fingerprint.
#[derive(Debug)]
struct TokenCluster {
    wanted: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for TokenCluster {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates
            .iter()
            .find(|certificate| fingerprint(certificate) == self.wanted);
        let ca = ca.ok_or_else(|| {
            refuse(WrongCluster {
                wanted: self.wanted.clone(),
            })
        })?;
        let found = PeerIdentity::of_certificate(end_entity).map_err(refuse)?;
        let own_name = ServerName::try_from(found.name.as_str()).map_err(refuse)?;
        let chain = chain_verifier(ca).map_err(refuse)?;
        chain.verify_server_cert(end_entity, intermediates, &own_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
