//! The least that moving memory can take: so many bytes out of memory, over one TLS connection, into memory.
//!
//! The connection is what an operator would get from the same library with its defaults: TLS 1.3 with the cipher that
//! Tranship's hosts use between themselves, one sender, one receiver, nothing else.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, Stream};

use super::subject::{Moved, Subject};
use crate::namespace::enter_network;
use crate::testbed::{Host, Testbed, layout};

const PORT: u16 = 8731;
const NAME: &str = "destination";
/// For any step of it.
const PATIENCE: Duration = Duration::from_secs(60);
/// What is written and read at once.
const PIECE_BYTES: usize = 256 << 10;

/// A copy of as many bytes as the last move by Tranship has sent.
#[derive(Debug)]
pub struct TlsCopy {
    hosts: [Host; 2],
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// What is sent; random, so that no page is like another.
    source: Arc<Vec<u8>>,
    /// How many bytes Tranship has sent.
    bytes: Arc<AtomicU64>,
}

impl TlsCopy {
    /// Prepares certificates.
    ///
    /// # Errors
    /// The testbed has no two hosts, or TLS does not take the certificate.
    pub fn start(bed: &Testbed, bytes: Arc<AtomicU64>) -> Result<Self> {
        let [here, there, ..] = bed.hosts() else {
            anyhow::bail!("copying needs two hosts");
        };
        let identity = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions = &[&rustls::version::TLS13];
        let server = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_single_cert(vec![identity.cert.der().clone()], key)?;
        let mut roots = RootCertStore::empty();
        roots.add(identity.cert.der().clone())?;
        let client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            hosts: [here.clone(), there.clone()],
            server: Arc::new(server),
            client: Arc::new(client),
            source: Arc::default(),
            bytes,
        })
    }

    /// As many bytes as are to be sent; made once, outside of what is measured.
    fn prepare(&mut self) -> Result<Arc<Vec<u8>>> {
        let wanted = usize::try_from(self.bytes.load(Ordering::Relaxed))?;
        ensure!(wanted > 0, "Tranship has to move first: it says how many bytes");
        if self.source.len() != wanted {
            self.source = Arc::default();
            let mut bytes = vec![0; wanted];
            blake3::Hasher::new()
                .update(b"copy")
                .finalize_xof()
                .fill(&mut bytes);
            self.source = Arc::new(bytes);
        }
        Ok(self.source.clone())
    }
}

impl Subject for TlsCopy {
    fn name(&self) -> &'static str {
        "plain TLS"
    }

    fn address(&self) -> Option<SocketAddr> {
        None
    }

    fn move_over(&mut self) -> Result<Moved> {
        let source = self.prepare()?;
        let [from, to] = &self.hosts;
        let address: SocketAddr = (layout::address(to.name()).context("a host has an address")?, PORT).into();
        let (listens, is_ready) = mpsc::channel();
        let (host, config, length) = (to.clone(), self.server.clone(), source.len());
        let receiver = std::thread::spawn(move || receive(&host, address, config, length, &listens));
        // One that does not listen has ended, with the reason.
        let _ = is_ready.recv_timeout(PATIENCE);
        let (host, config) = (from.clone(), self.client.clone());
        let sender = std::thread::spawn(move || send(&host, address, config, &source));
        let sent = joined(sender);
        joined(receiver)?;
        let total_us = u64::try_from(sent?.as_micros())?;
        let moved = Moved {
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            blackout_us: None,
            total_us,
            before_freeze_us: 0,
            bytes: length as u64,
            daemons_peak_bytes: Vec::new(),
            spans: Vec::new(),
        };
        self.hosts.reverse();
        Ok(moved)
    }
}

fn joined<T>(thread: JoinHandle<Result<T>>) -> Result<T> {
    thread
        .join()
        .map_err(|_| anyhow!("one end of the copy panicked"))?
}

/// Takes everything into fresh memory and says so.
fn receive(
    host: &Host,
    address: SocketAddr,
    config: Arc<ServerConfig>,
    length: usize,
    listens: &mpsc::Sender<()>,
) -> Result<()> {
    enter_network(host)?;
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen at {address}"))?;
    listens.send(()).ok();
    let (mut socket, _) = listener.accept()?;
    prepare(&socket)?;
    let mut connection = ServerConnection::new(config)?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    let mut memory = vec![0; length];
    for piece in memory.chunks_mut(PIECE_BYTES) {
        stream.read_exact(piece).context("the copy ended early")?;
    }
    stream.write_all(b"!")?;
    stream.flush()?;
    // The sender closes the connection when it has read that.
    let _ = stream.read(&mut [0]);
    Ok(())
}

/// From the first packet to the receiver's word that it has everything.
fn send(host: &Host, address: SocketAddr, config: Arc<ClientConfig>, bytes: &[u8]) -> Result<Duration> {
    enter_network(host)?;
    let begun = Instant::now();
    let mut socket = TcpStream::connect_timeout(&address, PATIENCE)?;
    prepare(&socket)?;
    let mut connection = ClientConnection::new(config, ServerName::try_from(NAME)?)?;
    let mut stream = Stream::new(&mut connection, &mut socket);
    for piece in bytes.chunks(PIECE_BYTES) {
        stream.write_all(piece)?;
    }
    stream.flush()?;
    stream
        .read_exact(&mut [0])
        .context("the receiver has not got everything")?;
    Ok(begun.elapsed())
}

fn prepare(socket: &TcpStream) -> Result<()> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok(())
}
