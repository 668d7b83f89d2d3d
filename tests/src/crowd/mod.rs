//! Many clients at once: each has one connection to a server that counts, sends the next request when its period is over
//! and the last one was answered, and checks each answer.
//!
//! They live in one thread on a host of the testbed. What is kept is the longest time that anybody waited for an answer;
//! who is reset, gets another number than the next one, or gets none, is a failure that ends them all.

mod member;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use crate::namespace::enter_network;
use crate::testbed::Host;
use crate::tranship::wait_for;
use member::Member;

/// For an answer: far above the longest move.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at who is to send.
const TICK: Duration = Duration::from_micros(500);
/// Time before a move begins and after it has ended: a stall that comes late is one too.
const STEADY: Duration = Duration::from_millis(500);

/// The clients, as those see them who wait for them.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    answers: AtomicU64,
    longest_us: AtomicU64,
    /// Whoever asks for an answer of each member takes the next number; who was answered after that has it.
    roll_call: AtomicU64,
    answered_call: AtomicU64,
    resting: AtomicBool,
    end: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Crowd {
    /// Connects `count` clients from `host`, each of which sends a request every `period`, and waits until each has had an
    /// answer.
    ///
    /// # Errors
    /// The server does not answer all of them.
    pub fn start(host: &Host, address: SocketAddr, count: usize, period: Duration) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let (theirs, host) = (shared.clone(), host.clone());
        let thread = std::thread::spawn(move || {
            let live = || -> Result<()> {
                enter_network(&host)?;
                wait_for("the server to listen", Duration::from_secs(20), || {
                    Member::connect(address, period).map(|_| true)
                })?;
                let connect = |_| Member::connect(address, period);
                let members = (0..count).map(connect).collect::<Result<Vec<_>>>()?;
                converse(members, &theirs)
            };
            if let Err(error) = live() {
                *theirs.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        });
        let crowd = Self {
            shared,
            thread: Some(thread),
        };
        crowd.call_the_roll()?;
        Ok(crowd)
    }

    /// Everybody goes on, and the longest wait begins to count.
    ///
    /// # Errors
    /// Somebody was not answered.
    pub fn begin(&self) -> Result<()> {
        self.shared.resting.store(false, Ordering::Relaxed);
        self.call_the_roll()?;
        std::thread::sleep(STEADY);
        self.call_the_roll()?;
        self.shared.longest_us.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// Everybody gets one more answer and rests. Answers the longest wait since [`Crowd::begin`], in microseconds.
    ///
    /// # Errors
    /// Somebody was not answered.
    pub fn finish(&self) -> Result<u64> {
        std::thread::sleep(STEADY);
        self.call_the_roll()?;
        self.shared.resting.store(true, Ordering::Relaxed);
        Ok(self.shared.longest_us.load(Ordering::Relaxed))
    }

    /// How many requests were answered.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.shared.answers.load(Ordering::Relaxed)
    }

    /// Waits until each has had an answer to something asked from now on.
    fn call_the_roll(&self) -> Result<()> {
        let call = self.shared.roll_call.fetch_add(1, Ordering::Relaxed) + 1;
        let mut failure = None;
        wait_for("everybody's answer", PATIENCE, || {
            let mut kept = self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure = kept.take();
            Ok(failure.is_some() || self.shared.answered_call.load(Ordering::Relaxed) >= call)
        })?;
        failure.map_or(Ok(()), |error| Err(error.context("a client did not get through")))
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        // It looks at this every tick.
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn converse(mut members: Vec<Member>, shared: &Shared) -> Result<()> {
    let poll = epoll::create(CreateFlags::CLOEXEC)?;
    for (index, member) in members.iter().enumerate() {
        epoll::add(
            &poll,
            member.socket(),
            EventData::new_u64(index as u64),
            EventFlags::IN,
        )?;
    }
    let tick = Timespec::try_from(TICK)?;
    let mut events = Vec::with_capacity(members.len().clamp(1, 1024));
    while !shared.end.load(Ordering::Relaxed) {
        let call = shared.roll_call.load(Ordering::Relaxed);
        let now = Instant::now();
        if !shared.resting.load(Ordering::Relaxed) {
            for member in &mut members {
                member.ask(now, call)?;
            }
        }
        events.clear();
        match epoll::wait(&poll, spare_capacity(&mut events), Some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for answers"),
        }
        for event in &events {
            let index = usize::try_from(event.data.u64())?;
            let member = members
                .get_mut(index)
                .ok_or_else(|| anyhow!("no member {index}"))?;
            if let Some(waited) = member.take_answer()? {
                let us = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
                shared.longest_us.fetch_max(us, Ordering::Relaxed);
                shared.answers.fetch_add(1, Ordering::Relaxed);
            }
        }
        if let Some(waits) = members.iter().filter_map(|member| member.waits(now)).max()
            && waits > PATIENCE
        {
            bail!("a request was not answered within {PATIENCE:?}");
        }
        let least = members.iter().map(Member::answered_call).min().unwrap_or(call);
        shared.answered_call.store(least, Ordering::Relaxed);
    }
    Ok(())
}
