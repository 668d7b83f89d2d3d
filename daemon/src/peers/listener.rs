//! The one port other hosts connect to.
//!
//! ```text
//!  TCP -> TLS 1.3 -> protocol -+- h2 ---------------+- host of the cluster -> gRPC, every call
//!                              |                    +- no certificate ------> gRPC, a short visit: Join only
//!                              +- tranship-data/1 --+- host of the cluster -> greeting -> who expects it
//!                              |                    +- no certificate ------> closed
//!                              +- anything else ----------------------------> closed
//! ```
//!
//! Until a host is known, its connection has a deadline and a seat among a limited number; everybody who is closed out is
//! counted and logged once, with the reason.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::connection::PeerStream;
use super::hosts::{HostTable, NotAdmitted};
use super::identity::PeerIdentity;
use super::refusal::{Refusal, Refusals};
use super::streams::DataStreams;
use super::tls::{ALPN_CONTROL, ALPN_DATA};

/// From the connection to the end of the handshake and of a data stream's greeting.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// Connections in their handshake at once.
const MAX_HANDSHAKES: usize = 128;

/// How long somebody without a certificate may stay: enough for a join.
const GUEST_VISIT: Duration = Duration::from_secs(30);

/// Connections without a certificate at once.
const MAX_GUESTS: usize = 16;

/// Control connections that wait for the gRPC server.
pub(super) const WAITING: usize = 16;

/// After a failed accept, in most cases for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Decides what becomes of each connection.
pub(super) struct Gate {
    tls: TlsAcceptor,
    hosts: Arc<HostTable>,
    streams: DataStreams,
    refusals: Arc<Refusals>,
    stranger: Arc<Notify>,
    guests: Arc<Semaphore>,
    control: mpsc::Sender<io::Result<PeerStream>>,
}

impl Gate {
    /// `control` takes the control connections; `stranger` is told when a genuine certificate names an unknown host.
    pub fn new(
        tls: Arc<ServerConfig>,
        hosts: Arc<HostTable>,
        streams: DataStreams,
        refusals: Arc<Refusals>,
        stranger: Arc<Notify>,
        control: mpsc::Sender<io::Result<PeerStream>>,
    ) -> Self {
        let guests = Arc::new(Semaphore::new(MAX_GUESTS));
        Self {
            tls: tls.into(),
            hosts,
            streams,
            refusals,
            stranger,
            guests,
            control,
        }
    }

    /// Accepts connections until `shutdown`.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) {
        let gate = Arc::new(self);
        let seats = Arc::new(Semaphore::new(MAX_HANDSHAKES));
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                Some(_) = handshakes.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let (tcp, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a peer connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match Arc::clone(&seats).try_acquire_owned() {
                Ok(seat) => {
                    handshakes.spawn(Arc::clone(&gate).judge(tcp, remote, seat));
                }
                Err(_) => gate.refusals.record(remote, &Refusal::Busy),
            }
        }
    }

    async fn judge(self: Arc<Self>, tcp: TcpStream, remote: SocketAddr, _seat: OwnedSemaphorePermit) {
        let let_in = timeout(HANDSHAKE_DEADLINE, self.let_in(tcp, remote)).await;
        if let Err(refusal) = let_in.unwrap_or(Err(Refusal::Slow(HANDSHAKE_DEADLINE))) {
            if matches!(refusal, Refusal::Host(NotAdmitted::Unknown(_))) {
                self.stranger.notify_one();
            }
            self.refusals.record(remote, &refusal);
        }
    }

    async fn let_in(&self, tcp: TcpStream, remote: SocketAddr) -> Result<(), Refusal> {
        tcp.set_nodelay(true).map_err(Refusal::Handshake)?;
        let tls = self.tls.accept(tcp).await.map_err(Refusal::Handshake)?;
        let identity = self.identify(&tls)?;
        match tls.get_ref().1.alpn_protocol() {
            Some(ALPN_CONTROL) => self.control(tls, identity, remote).await,
            Some(ALPN_DATA) => self.data(tls, identity.ok_or(Refusal::Anonymous)?).await,
            _ => Err(Refusal::Protocol),
        }
    }

    /// The host behind a certificate that the handshake found genuine.
    fn identify(&self, tls: &TlsStream<TcpStream>) -> Result<Option<PeerIdentity>, Refusal> {
        let Some(certificate) = tls
            .get_ref()
            .1
            .peer_certificates()
            .and_then(|chain| chain.first())
        else {
            return Ok(None);
        };
        let identity = PeerIdentity::of_certificate(certificate)?;
        self.hosts.check(&identity)?;
        Ok(Some(identity))
    }

    async fn control(
        &self,
        tls: TlsStream<TcpStream>,
        identity: Option<PeerIdentity>,
        remote: SocketAddr,
    ) -> Result<(), Refusal> {
        let stream = match identity {
            Some(identity) => PeerStream::of_host(tls, identity, remote),
            None => {
                let seat = Arc::clone(&self.guests)
                    .try_acquire_owned()
                    .map_err(|_| Refusal::Busy)?;
                PeerStream::of_guest(tls, seat, GUEST_VISIT, remote)
            }
        };
        self.control.send(Ok(stream)).await.map_err(|_| Refusal::Busy)
    }

    async fn data(&self, mut tls: TlsStream<TcpStream>, identity: PeerIdentity) -> Result<(), Refusal> {
        let hello = DataStreams::read_hello(&mut tls).await?;
        Ok(self.streams.hand_over(identity, &hello, tls.into())?)
    }
}
