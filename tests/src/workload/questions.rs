//! A port at which a job can be asked one thing: a line comes, a line goes, the connection ends.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};

/// Longest question and answer.
const MAX_BYTES: u64 = 4096;
/// For one who has connected to say something. The job stands still meanwhile.
const PATIENCE: Duration = Duration::from_secs(2);

/// The port.
#[derive(Debug)]
pub struct Questions(TcpListener);

impl Questions {
    /// Opens the port, on every address.
    ///
    /// # Errors
    /// It is in use.
    pub fn open(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
            .with_context(|| format!("cannot listen at port {port}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self(listener))
    }

    /// Answers whoever has come meanwhile; returns at once when nobody has. One that goes away again is no error.
    ///
    /// # Errors
    /// `reply` has one; who asked is told of it.
    pub fn answer(&self, mut reply: impl FnMut(&str) -> Result<String>) -> Result<()> {
        loop {
            let stream = match self.0.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => {
                    eprintln!("a client went away: {error}");
                    continue;
                }
            };
            let Ok(question) = read_line(&stream) else {
                continue;
            };
            let answer = reply(&question);
            let text = match &answer {
                Ok(text) => text.clone(),
                Err(error) => format!("WRONG: {error:#}"),
            };
            // Who does not wait for his answer does not get it.
            let _ = (&stream).write_all(format!("{text}\n").as_bytes());
            answer?;
        }
    }
}

/// Asks and answers what came.
///
/// # Errors
/// Nobody answers there within `patience`.
pub fn ask(address: SocketAddr, question: &str, patience: Duration) -> Result<String> {
    let stream = TcpStream::connect_timeout(&address, patience)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(patience))?;
    (&stream).write_all(format!("{question}\n").as_bytes())?;
    let line = line(&stream).with_context(|| format!("no answer from {address}"))?;
    Ok(line)
}

fn read_line(stream: &TcpStream) -> Result<String> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    line(stream)
}

fn line(stream: &TcpStream) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream.take(MAX_BYTES)).read_line(&mut line)?;
    let line = line.strip_suffix('\n').context("the connection ended early")?;
    Ok(line.to_owned())
}
