//! A server that counts the requests of each connection, and the words both sides use.
//!
//! A request is its own number, and the answer is how many there have been: 8 bytes each way, little endian. They are
//! equal as long as no request was lost or came twice; either side that sees something else says so.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fd::OwnedFd;

/// Bytes of a request and of an answer.
pub const MESSAGE_BYTES: usize = 8;

/// Events that are taken at once.
const EVENTS: usize = 256;
/// What the listener is called among the connections, which are called by their descriptors.
const LISTENER: u64 = u64::MAX;

/// The server: one thread, however many connections.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    poll: OwnedFd,
    peers: HashMap<u64, Peer>,
}

#[derive(Debug)]
struct Peer {
    stream: TcpStream,
    requests: u64,
    partial: Vec<u8>,
}

impl Server {
    /// Opens the port, on every address.
    ///
    /// # Errors
    /// It is in use.
    pub fn open(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .with_context(|| format!("cannot listen at port {port}"))?;
        listener.set_nonblocking(true)?;
        // The queue of one who accepts at once is long enough for a thousand who come together.
        rustix::net::listen(&listener, 2048)?;
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&poll, &listener, EventData::new_u64(LISTENER), EventFlags::IN)?;
        Ok(Self {
            listener,
            poll,
            peers: HashMap::new(),
        })
    }

    /// Answers for ever.
    ///
    /// # Errors
    /// A request was lost or came twice.
    pub fn run(mut self) -> Result<Infallible> {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(&self.poll, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for requests"),
            }
            for event in &events {
                match event.data.u64() {
                    LISTENER => self.accept()?,
                    peer => self.answer(peer)?,
                }
            }
        }
    }

    fn accept(&mut self) -> Result<()> {
        loop {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    eprintln!("a client went away: {error}");
                    continue;
                }
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let name = u64::try_from(stream.as_raw_fd()).context("a descriptor")?;
            epoll::add(
                &self.poll,
                stream.as_fd(),
                EventData::new_u64(name),
                EventFlags::IN,
            )?;
            let peer = Peer {
                stream,
                requests: 0,
                partial: Vec::new(),
            };
            self.peers.insert(name, peer);
        }
    }

    fn answer(&mut self, name: u64) -> Result<()> {
        let Some(peer) = self.peers.get_mut(&name) else {
            return Ok(());
        };
        if !peer.answer()? {
            self.peers.remove(&name);
        }
        Ok(())
    }
}

impl Peer {
    /// Answers what has come; false when the client has gone.
    fn answer(&mut self) -> Result<bool> {
        let mut bytes = [0; 512];
        match self.stream.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(count) => self.partial.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => {
                eprintln!("a connection broke after {} requests: {error}", self.requests);
                return Ok(false);
            }
        }
        while let Some((message, _)) = self.partial.split_first_chunk::<MESSAGE_BYTES>() {
            let number = u64::from_le_bytes(*message);
            self.requests += 1;
            ensure!(
                number == self.requests,
                "request {} was to come on a connection, {number} came",
                self.requests
            );
            self.partial.drain(..MESSAGE_BYTES);
            if let Err(error) = self.stream.write_all(&self.requests.to_le_bytes()) {
                eprintln!("a connection broke at answer {number}: {error}");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_and_a_gap_ends_the_server() {
        let server = Server::open(0).unwrap();
        let address = server.listener.local_addr().unwrap();
        let thread = std::thread::spawn(|| server.run().unwrap_err().to_string());
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).unwrap();
        let mut answer = [0; MESSAGE_BYTES];
        for number in 1..=3_u64 {
            client.write_all(&number.to_le_bytes()).unwrap();
            client.read_exact(&mut answer).unwrap();
            assert_eq!(u64::from_le_bytes(answer), number);
        }
        client.write_all(&5_u64.to_le_bytes()).unwrap();
        assert!(thread.join().unwrap().contains("request 4 was to come"));
    }
}
