//! One process's memory while it is being filled.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use rustix::io::Errno;

use super::content::{Buffer, Content};
use super::outstanding::{Claim, Outstanding, Stretch};
use crate::memory::PAGE_BYTES;
use crate::monotonic_us;
use crate::sys::filling::{self, Event};

/// Filled at once around a fault: what a program reads next is often next to it, and this takes some 15 us.
const FAULT_BYTES: u64 = 64 << 10;

/// A piece of the background filling while somebody waits: an answer waits for the piece under way.
const SMALL_PIECE_BYTES: u64 = 64 << 10;

/// How long somebody is taken to wait after a fault: what runs out of one page often runs into the next.
const FAULT_MEMORY_US: u64 = 5_000;

/// A process, or a child that it has forked meanwhile.
#[derive(Debug)]
pub struct Space {
    /// Number of its descriptor at the holder.
    pub number: u32,
    /// Whose pages the store has.
    pub process: u32,
    /// Whether CRIU has restored it, as against forked since.
    pub restored: bool,
    /// Areas that a child does not get.
    pub not_inherited: Arc<Vec<Range<u64>>>,
    uffd: OwnedFd,
    /// Shared by those who copy, exclusive for whoever takes events: once an event is taken the process goes on, and a copy
    /// into what it has given up would bring it back.
    layout: RwLock<()>,
    missing: Mutex<Outstanding>,
    last_fault_us: AtomicU64,
    gone: AtomicBool,
    /// Since when nothing could be filled.
    stuck: Mutex<Option<Instant>>,
}

/// What came of an attempt to fill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// All of it is there.
    Filled,
    /// Events must be taken first, or the areas are not registered yet, or there is no memory.
    Later(Errno),
    /// The process has ended.
    Gone,
}

/// What taking events brought.
#[derive(Debug, Default)]
pub struct Taken {
    /// Addresses that threads wait for.
    pub faults: Vec<u64>,
    /// Children, with their descriptors and what is missing in them.
    pub children: Vec<(OwnedFd, Outstanding)>,
    /// Whether there was anything.
    pub any: bool,
}

impl Space {
    pub fn new(
        number: u32,
        process: u32,
        uffd: OwnedFd,
        missing: Outstanding,
        not_inherited: Option<Arc<Vec<Range<u64>>>>,
    ) -> Self {
        Self {
            number,
            process,
            restored: not_inherited.is_some(),
            not_inherited: not_inherited.unwrap_or_default(),
            uffd,
            layout: RwLock::new(()),
            missing: Mutex::new(missing),
            last_fault_us: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            stuck: Mutex::new(None),
        }
    }

    pub fn uffd(&self) -> &OwnedFd {
        &self.uffd
    }

    /// Whether nothing of it is missing.
    pub fn is_complete(&self) -> bool {
        self.missing().is_empty()
    }

    /// How long nothing could be filled although something is missing.
    pub fn stuck_for(&self) -> Option<std::time::Duration> {
        let stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        stuck.map(|since| since.elapsed())
    }

    /// Whether the process waits for pages, as far as can be told: it has just met one that was missing, or just been restored.
    pub fn is_waiting(&self) -> bool {
        let fault_us = self.last_fault_us.load(Ordering::Relaxed);
        monotonic_us().saturating_sub(fault_us) <= FAULT_MEMORY_US
    }

    /// It will wait for a page soon, or does now.
    pub fn expect_fault(&self) {
        self.last_fault_us.store(monotonic_us(), Ordering::Relaxed);
    }

    /// Takes a piece to fill.
    pub fn claim(&self, only_hot: bool) -> Option<Claim> {
        let bytes = if self.is_waiting() {
            SMALL_PIECE_BYTES
        } else {
            Buffer::BYTES
        };
        self.missing().claim(bytes, only_hot)
    }

    /// Fills a piece that was claimed; returns what came of it, and the bytes copied.
    pub fn fill(
        &self,
        content: &Content,
        claim: &Claim,
        again_first: bool,
        buffer: &mut Buffer,
    ) -> io::Result<(Attempt, u64)> {
        // If somebody else has filled and given back all of it meanwhile these are zeros, and their place is taken.
        let bytes = content.read(self.process, &claim.stretch, buffer)?;
        let _layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        if !self.missing().is_valid(claim) {
            self.missing().unclaim(claim, false);
            return Ok((Attempt::Filled, 0));
        }
        let (attempt, until, copied) = self.copy(claim.stretch, bytes)?;
        self.settle(content, claim.stretch.start..until);
        self.missing()
            .unclaim(claim, again_first && attempt != Attempt::Filled);
        self.note(attempt);
        Ok((attempt, copied))
    }

    /// Answers a fault; whether it was with content and not with zeros. `None`: events must be taken first.
    pub fn answer(&self, content: &Content, address: u64, buffer: &mut Buffer) -> io::Result<Option<bool>> {
        self.expect_fault();
        let _layout = self.layout.read().unwrap_or_else(PoisonError::into_inner);
        let page = address - address % PAGE_BYTES;
        let found = self.missing().around(page, FAULT_BYTES);
        let Some(stretch) = found else {
            let zeroed = filling::zero(&self.uffd, page, PAGE_BYTES);
            return match zeroed.obstacle {
                Some(Errno::AGAIN) => Ok(None),
                _ => self.wake(page).map(|()| Some(false)),
            };
        };
        let bytes = content.read(self.process, &stretch, buffer)?;
        let (attempt, until, _) = self.copy(stretch, bytes)?;
        self.settle(content, stretch.start..until);
        match attempt {
            Attempt::Later(_) if until == stretch.start => Ok(None),
            Attempt::Gone => {
                self.end(content);
                Ok(Some(true))
            }
            _ => Ok(Some(true)),
        }
    }

    /// Puts the content of a stretch in its place; returns how it went, up to where all is there, and the bytes copied.
    fn copy(&self, stretch: Stretch, content: &[u8]) -> io::Result<(Attempt, u64, u64)> {
        let (mut at, mut size, mut copied) = (stretch.start, stretch.end - stretch.start, 0);
        while at < stretch.end {
            let length = size.min(stretch.end - at);
            let from = usize::try_from(at - stretch.start).unwrap_or(usize::MAX);
            let to = from.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
            let piece = content.get(from..to).ok_or(io::ErrorKind::UnexpectedEof)?;
            let filled = filling::copy(&self.uffd, at, piece);
            at += filled.bytes;
            copied += filled.bytes;
            let attempt = match filled.obstacle {
                None | Some(Errno::INTR) => continue,
                Some(_) if filled.bytes > 0 => continue,
                // It is there already: whoever waits for it was woken by who has put it there, or is now.
                Some(Errno::EXIST) => {
                    self.wake(at)?;
                    let rest = at + PAGE_BYTES..stretch.end;
                    at = self.missing().first_in(rest).unwrap_or(stretch.end);
                    continue;
                }
                // The piece crosses the end of an area, because the process has changed one since.
                Some(Errno::NOENT) if length > PAGE_BYTES => {
                    size = (length / 2).next_multiple_of(PAGE_BYTES);
                    continue;
                }
                Some(Errno::SRCH | Errno::NOSPC) => Attempt::Gone,
                Some(reason @ (Errno::NOENT | Errno::AGAIN | Errno::NOMEM)) => Attempt::Later(reason),
                Some(other) => {
                    return Err(io::Error::new(
                        io::Error::from(other).kind(),
                        format!("the page at {at:#x} of process {}: {other}", self.process),
                    ));
                }
            };
            return Ok((attempt, at, copied));
        }
        Ok((Attempt::Filled, at, copied))
    }

    fn wake(&self, page: u64) -> io::Result<()> {
        filling::wake(&self.uffd, page, PAGE_BYTES)
    }

    /// Notes that pages are there.
    fn settle(&self, content: &Content, addresses: Range<u64>) {
        let done = self.missing().filled(addresses);
        content.release(self.process, &done);
    }

    fn note(&self, attempt: Attempt) {
        let mut stuck = self.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        match attempt {
            Attempt::Later(_) => {
                stuck.get_or_insert_with(Instant::now);
            }
            Attempt::Filled | Attempt::Gone => *stuck = None,
        }
    }

    /// The process has ended: nothing is missing any more.
    pub fn end(&self, content: &Content) {
        self.gone.store(true, Ordering::Release);
        let done = self.missing().drop_range(0..u64::MAX);
        content.release(self.process, &done);
    }

    /// The page of a claim lies in no area that is registered: a forked child may be without it.
    pub fn give_up(&self, content: &Content, claim: &Claim) {
        self.settle(content, claim.stretch.start..claim.stretch.start + PAGE_BYTES);
    }

    /// Takes what has happened in the process. Faults are left to the caller.
    pub fn take_events(&self, content: &Content) -> io::Result<Taken> {
        let _layout = self.layout.write().unwrap_or_else(PoisonError::into_inner);
        let mut taken = Taken::default();
        for event in filling::events(&self.uffd)? {
            taken.any = true;
            let done = match event {
                Event::Fault { address } => {
                    taken.faults.push(address);
                    continue;
                }
                Event::Fork { child } => {
                    taken.children.push((child, self.inherited(content)));
                    continue;
                }
                Event::Remap { from, to, length } => self.missing().moved(from, to, length),
                Event::Remove { start, end } | Event::Unmap { start, end } => {
                    self.missing().drop_range(start..end)
                }
            };
            content.release(self.process, &done);
        }
        Ok(taken)
    }

    /// What a child that was forked now is without. Its pages are kept for it from here on.
    fn inherited(&self, content: &Content) -> Outstanding {
        let mut child = self.missing().forked();
        for area in self.not_inherited.iter() {
            child.drop_range(area.clone());
        }
        content.keep(self.process, &child);
        child
    }

    fn missing(&self) -> MutexGuard<'_, Outstanding> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
