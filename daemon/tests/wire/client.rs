//! A client that does what no daemon would: any certificate, any protocol, any bytes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};
use tranship_daemon::peers::tls::provider;
use tranship_proto::v1::peer_client::PeerClient;

/// What the client shows.
pub type Shown = Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>;

/// Longest time a refusal may take.
pub const SOON: Duration = Duration::from_secs(10);

/// How the client behaves.
pub struct Client {
    pub shows: Shown,
    pub protocols: Vec<Vec<u8>>,
    pub version: &'static SupportedProtocolVersion,
}

impl Client {
    pub fn new(shows: Shown, protocol: &[u8]) -> Self {
        Self {
            shows,
            protocols: vec![protocol.to_vec()],
            version: &rustls::version::TLS13,
        }
    }

    pub async fn connect(self, address: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[self.version])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = match self.shows {
            Some((chain, key)) => builder.with_client_auth_cert(chain, key).unwrap(),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.protocols;
        let tcp = TcpStream::connect(address).await?;
        let name = ServerName::try_from("whoever").unwrap();
        tokio_rustls::TlsConnector::from(Arc::new(config))
            .connect(name, tcp)
            .await
    }

    /// Connects and reads until the server closes, which it must.
    pub async fn must_be_closed_out(self, address: SocketAddr) {
        let attempt = async {
            let Ok(mut stream) = self.connect(address).await else {
                return;
            };
            let mut bytes = Vec::new();
            // The server's own greeting (HTTP/2 settings) may come before the end, an answer may not.
            let _ = stream.read_to_end(&mut bytes).await;
        };
        tokio::time::timeout(SOON, attempt)
            .await
            .expect("the server kept the connection");
    }

    /// A client of the peer service over such a connection.
    pub async fn peer_client(self, address: SocketAddr) -> PeerClient<Channel> {
        let stream = Arc::new(Mutex::new(Some(TokioIo::new(
            self.connect(address).await.unwrap(),
        ))));
        let connector = tower::service_fn(move |_: http::Uri| {
            let stream = stream.lock().unwrap().take();
            async move { stream.ok_or(std::io::Error::other("used")) }
        });
        PeerClient::new(Endpoint::from_static("http://peer").connect_with_connector_lazy(connector))
    }
}

/// Sends bytes without any TLS; returns once the server has closed.
pub async fn send_raw(address: SocketAddr, bytes: &[u8]) {
    let attempt = async {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let _ = tcp.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = tcp.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"), "plain text was answered");
    };
    tokio::time::timeout(SOON, attempt)
        .await
        .expect("the server kept the connection");
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}
