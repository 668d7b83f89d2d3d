//! Clients of a web server that make a new connection for every request, ask, read to the end and compare.
//!
//! No visit may fail: not be refused, not be reset, not be cut short. One that takes long is fine; it says how long.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::namespace::enter_network;
use crate::testbed::Host;
use crate::tranship::wait_for;

/// For a connection, and for each piece of an answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two visits of one visitor.
const REST: Duration = Duration::from_millis(1);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visits {
    /// How many there were; all of them got their answer.
    pub count: u64,
    /// The longest of them.
    pub longest_us: u64,
}

/// Some visitors who come again and again.
#[derive(Debug)]
pub struct Visitors {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicBool,
    count: AtomicU64,
    longest_us: AtomicU64,
}

impl Visitors {
    /// Waits until the server gives the answer whose body is `body`, and then sends `count` visitors from `host`.
    ///
    /// # Errors
    /// It does not within 20 s.
    pub fn start(host: &Host, address: SocketAddr, count: usize, body: &'static str) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut visitors = Self {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        for _ in 0..count {
            let (shared, host) = (shared.clone(), host.clone());
            visitors.threads.push(std::thread::spawn(move || {
                enter_network(&host)?;
                wait_for("the server to answer", Duration::from_secs(20), || {
                    visit(address, body).map(|()| true)
                })?;
                come_again(address, body, &shared)
            }));
        }
        wait_for("the first visits", Duration::from_secs(25), || {
            Ok(shared.count.load(Ordering::Relaxed) > 100)
        })?;
        Ok(visitors)
    }

    /// Lets the last visits end.
    ///
    /// # Errors
    /// A visit has failed.
    pub fn finish(mut self) -> Result<Visits> {
        self.shared.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("a visitor panicked"))??;
        }
        Ok(Visits {
            count: self.shared.count.load(Ordering::Relaxed),
            longest_us: self.shared.longest_us.load(Ordering::Relaxed),
        })
    }
}

impl Drop for Visitors {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
    }
}

fn come_again(address: SocketAddr, body: &str, shared: &Shared) -> Result<()> {
    while !shared.end.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let visited = visit(address, body);
        let number = shared.count.fetch_add(1, Ordering::Relaxed);
        visited.with_context(|| format!("visit {number}, after {:?}", begun.elapsed()))?;
        let us = u64::try_from(begun.elapsed().as_micros())?;
        shared.longest_us.fetch_max(us, Ordering::Relaxed);
        std::thread::sleep(REST);
    }
    Ok(())
}

fn visit(address: SocketAddr, body: &str) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).context("no connection")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(REQUEST).context("cannot ask")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("no whole answer")?;
    ensure!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&format!("\r\n\r\n{body}")),
        "the answer is {answer:?}"
    );
    Ok(())
}
