//! The second owner of the descriptors: a process that lives as long as the container.
//!
//! When the last descriptor of a userfaultfd is closed, the kernel takes every page that is still missing for one of zeros, without
//! a word. So the filler gives each descriptor to a holder before it fills anything, and a holder whose filler ends before
//! the memory is complete ends the container, and only then closes them.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::wire::{FromHolder, ToHolder};
use crate::packet::{self, Packet};

/// Name of the filler's socket for its holder, in the directory where CRIU works.
pub(super) const SOCKET_NAME: &str = "holder.sock";

/// Where the memory of a container stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Memory {
    /// It is being filled, or not even restored.
    Filling,
    /// Every page is there.
    Complete,
    /// Nothing was restored.
    Aborted,
    /// It cannot be completed: the container must be killed, and the holder dropped afterwards.
    Lost(String),
}

/// Descriptors of a filler, held for it.
#[derive(Debug)]
pub struct Holder {
    socket: OwnedFd,
    held: HashMap<u32, OwnedFd>,
    memory: Memory,
}

impl Holder {
    /// Connects to the filler that works in `work_dir`. It does not answer CRIU before somebody has.
    ///
    /// # Errors
    /// There is no filler.
    pub fn connect(work_dir: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(work_dir.join(SOCKET_NAME))?;
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &address)?;
        Ok(Self {
            socket,
            held: HashMap::new(),
            memory: Memory::Filling,
        })
    }

    /// How it stands.
    #[must_use]
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How many descriptors are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes one message; call it when the socket is readable. Does nothing once the memory is complete or lost.
    pub fn turn(&mut self) -> &Memory {
        if self.memory == Memory::Filling {
            if let Err(error) = self.take() {
                self.memory = Memory::Lost(format!("the filler was lost: {error}"));
            }
            if matches!(self.memory, Memory::Complete | Memory::Aborted) {
                self.held.clear();
            }
        }
        &self.memory
    }

    fn take(&mut self) -> io::Result<()> {
        let Some(Packet { bytes, fds }) = packet::receive(&self.socket)? else {
            return Err(io::Error::other("it ended before the memory was complete"));
        };
        match serde_json::from_slice(&bytes)? {
            ToHolder::Keep(number) => {
                let descriptor = fds.into_iter().next();
                let descriptor = descriptor.ok_or_else(|| io::Error::other("a descriptor did not arrive"))?;
                self.held.insert(number, descriptor);
            }
            ToHolder::Release(number) => {
                self.held.remove(&number);
                let bytes = serde_json::to_vec(&FromHolder::Released(number))?;
                packet::send(
                    &self.socket,
                    &Packet {
                        bytes,
                        fds: Vec::new(),
                    },
                )?;
            }
            ToHolder::Complete => self.memory = Memory::Complete,
            ToHolder::Aborted => self.memory = Memory::Aborted,
            ToHolder::Failed(reason) => self.memory = Memory::Lost(reason),
        }
        Ok(())
    }
}

impl AsFd for Holder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// How long a holder may take to answer. It has nothing else to do but to read what the container writes.
const HOLDER_DEADLINE: Duration = Duration::from_secs(20);

/// The filler's side of it.
#[derive(Debug)]
pub(super) struct HolderLink {
    /// Nothing once the holder is gone: the container goes on, and so does the filling, as long as the filler lives.
    socket: Option<OwnedFd>,
}

impl HolderLink {
    pub(super) fn new(socket: OwnedFd) -> io::Result<Self> {
        rustix::net::sockopt::set_socket_timeout(
            &socket,
            rustix::net::sockopt::Timeout::Send,
            Some(HOLDER_DEADLINE),
        )?;
        Ok(Self { socket: Some(socket) })
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Gives a descriptor into its hands.
    pub(super) fn keep(&mut self, number: u32, descriptor: &OwnedFd) -> io::Result<()> {
        let fds = vec![descriptor.try_clone()?];
        self.tell(&ToHolder::Keep(number), fds)
    }

    pub(super) fn tell(&mut self, message: &ToHolder, fds: Vec<OwnedFd>) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let bytes = serde_json::to_vec(message)?;
        match packet::send(socket, &Packet { bytes, fds }) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                self.socket = None;
                Ok(())
            }
            sent => sent,
        }
    }

    /// What the holder says; nothing if it is gone.
    pub(super) fn receive(&mut self) -> io::Result<Option<FromHolder>> {
        let Some(socket) = &self.socket else {
            return Ok(None);
        };
        match packet::receive(socket)? {
            Some(packet) => Ok(Some(serde_json::from_slice(&packet.bytes)?)),
            None => {
                self.socket = None;
                Ok(None)
            }
        }
    }

    /// When an answer is overdue that is asked for now.
    pub(super) fn deadline() -> Instant {
        Instant::now() + HOLDER_DEADLINE
    }
}
