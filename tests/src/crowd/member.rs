//! One client: a connection, what was asked on it, and what came.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::workload::counting::MESSAGE_BYTES;

/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// A client.
#[derive(Debug)]
pub struct Member {
    stream: TcpStream,
    period: Duration,
    next: Instant,
    /// Requests that were answered.
    answers: u64,
    /// When the request was sent that waits for its answer, and at which roll call.
    asked: Option<(Instant, u64)>,
    answered_call: u64,
    partial: Vec<u8>,
}

impl Member {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(address: SocketAddr, period: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, CONNECT)
            .with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            period,
            next: Instant::now(),
            answers: 0,
            asked: None,
            answered_call: 0,
            partial: Vec::new(),
        })
    }

    /// What is polled.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// The roll call after which it has asked something and been answered.
    #[must_use]
    pub fn answered_call(&self) -> u64 {
        self.answered_call
    }

    /// How long it has been waiting.
    #[must_use]
    pub fn waits(&self, now: Instant) -> Option<Duration> {
        self.asked.map(|(asked, _)| now.saturating_duration_since(asked))
    }

    /// Sends a request, if it is time and nothing is waited for.
    ///
    /// # Errors
    /// The connection is broken.
    pub fn ask(&mut self, now: Instant, call: u64) -> Result<()> {
        if self.asked.is_some() || now < self.next {
            return Ok(());
        }
        let number = self.answers + 1;
        // One request of 8 bytes always has room in the socket's buffer.
        self.stream
            .write_all(&number.to_le_bytes())
            .with_context(|| format!("cannot send request {number}"))?;
        self.asked = Some((Instant::now(), call));
        // Requests that a stall has swallowed are not made up for.
        self.next = now + self.period;
        Ok(())
    }

    /// Takes what has come; how long the answer took, if it is whole.
    ///
    /// # Errors
    /// The connection is broken, or the answer is not the one that was to come.
    pub fn take_answer(&mut self) -> Result<Option<Duration>> {
        let mut bytes = [0; 2 * MESSAGE_BYTES];
        match self.stream.read(&mut bytes) {
            Ok(0) => bail!("the server closed a connection after {} answers", self.answers),
            Ok(count) => self.partial.extend_from_slice(&bytes[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("a connection broke after {} answers", self.answers));
            }
        }
        let Some((message, rest)) = self.partial.split_first_chunk::<MESSAGE_BYTES>() else {
            return Ok(None);
        };
        let (number, expected) = (u64::from_le_bytes(*message), self.answers + 1);
        ensure!(
            number == expected && rest.is_empty(),
            "answer {expected} was to come, {number} came"
        );
        self.partial.clear();
        let (asked, call) = self.asked.take().context("an answer came to no question")?;
        (self.answers, self.answered_call) = (number, call);
        Ok(Some(asked.elapsed()))
    }
}
