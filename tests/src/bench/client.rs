//! The one who waits: a client that increments a counter 1,000 times a second on one connection, all the time, and knows
//! its longest wait.
//!
//! The time between two answers is what counts: it holds whatever happens to a request, also that it was lost and sent
//! again. The client rests while the other mover has its turn, with its connection open.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::load;
use super::watcher::{Course, Noticed, Watcher};
use crate::namespace::enter_network;
use crate::resp::{Answer, Connection};
use crate::testbed::Host;
use crate::tranship::wait_for;

/// Between two requests.
const PERIOD: Duration = Duration::from_millis(1);
/// For one answer: far above the longest move.
const PATIENCE: Duration = Duration::from_secs(180);
/// Answers before a move begins and after it has ended: a stall that comes late is one too.
const STEADY: u64 = 500;

/// A running client.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: AtomicU64,
    longest_us: AtomicU64,
    resting: AtomicBool,
    end: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Client {
    /// Connects from `host`, fills Redis, and begins to count.
    ///
    /// # Errors
    /// Redis does not answer or does not take the data.
    pub fn start(host: &Host, address: SocketAddr, mib: usize) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (theirs, host) = (shared.clone(), host.clone());
        let thread = std::thread::spawn(move || {
            let outcome = enter_network(&host).and_then(|()| {
                let mut redis = connect(address)?;
                load::fill(&mut redis, mib)?;
                count(&mut redis, &theirs)
            });
            if let Err(error) = outcome {
                *theirs.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        let client = Self {
            shared,
            thread: Some(thread),
        };
        client.wait_for_answers(1)?;
        client.rest();
        Ok(client)
    }

    fn rest(&self) {
        self.shared.resting.store(true, Ordering::Relaxed);
    }

    fn wait_for_answers(&self, more: u64) -> Result<()> {
        let answers = || self.shared.answers.load(Ordering::Relaxed);
        let wanted = answers() + more;
        let mut failure = None;
        wait_for("the client's answers", PATIENCE, || {
            failure = self
                .shared
                .failure
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            Ok(failure.is_some() || answers() >= wanted)
        })?;
        failure.map_or(Ok(()), |error| {
            Err(error.context("the client did not get through"))
        })
    }
}

impl Watcher for Client {
    fn begin(&mut self) -> Result<()> {
        self.shared.resting.store(false, Ordering::Relaxed);
        self.wait_for_answers(STEADY)?;
        self.shared.longest_us.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// The longest time between two answers.
    fn finish(&mut self, _: &Course) -> Result<Noticed> {
        self.wait_for_answers(STEADY)?;
        self.rest();
        Ok(Noticed::stall(self.shared.longest_us.load(Ordering::Relaxed)))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        // One that waits for an answer ends with the testbed or its own deadline; nobody waits for it here.
        if let Some(thread) = self.thread.take().filter(JoinHandle::is_finished) {
            drop(thread.join());
        }
    }
}

/// The server was started a moment ago.
pub(super) fn connect(address: SocketAddr) -> Result<Connection> {
    let mut connection = None;
    wait_for("redis to answer", Duration::from_secs(20), || {
        let mut fresh = Connection::open(address, PATIENCE.min(Duration::from_secs(2)))?;
        fresh.ask(&["PING"])?;
        connection = Some(fresh);
        Ok(true)
    })?;
    drop(connection);
    Connection::open(address, PATIENCE)
}

fn count(redis: &mut Connection, shared: &Shared) -> Result<()> {
    let mut last = Instant::now();
    let mut next = last;
    let mut expected = 1;
    while !shared.end.load(Ordering::Relaxed) {
        if shared.resting.load(Ordering::Relaxed) {
            std::thread::sleep(PERIOD);
            (last, next) = (Instant::now(), Instant::now());
            continue;
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        match redis.ask(&["INCR", "bench"])? {
            Answer::Number(got) if got == expected => expected += 1,
            Answer::Number(got) => {
                bail!("an increment was lost or done twice: {expected} was to come, {got} came")
            }
            other => return Err(anyhow!("{other:?} is no answer to INCR")),
        }
        let now = Instant::now();
        let gap = u64::try_from((now - last).as_micros()).unwrap_or(u64::MAX);
        shared.longest_us.fetch_max(gap, Ordering::Relaxed);
        shared.answers.fetch_add(1, Ordering::Relaxed);
        // Requests that a stall has swallowed are not made up for.
        (last, next) = (now, now.max(next + PERIOD));
    }
    Ok(())
}
