//! The memory of a container while it runs: rounds of what was written since the last, and at the end a list of
//! everything that there is.
//!
//! ```text
//! attach    a userfaultfd out of each process, by a system call that it is made to do     (it stands still for 0.1 ms)
//! round     for each area: PAGEMAP_SCAN finds written pages and protects them in one step; then they are read
//!           a page that is written while it is read is written again, and comes in the next round
//! finish    everything stands still: the last written pages, then every page of a dump that was not sent before
//! ```
//! The kernel lifts the protection of a page by itself when it is written; no process ever waits for the tracker, and
//! when the tracker ends, however that happens, the kernel lifts all of it.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::injector::Injector;
use super::process::Process;
use super::read::Totals;
use super::scan::{Abilities, Scratch};
use super::{PAGE_BYTES, PageSink, ResidentPages, SinkClosed};
use crate::process_tree::{self, TreeError};
use crate::sys::pagemap::{self, Pagemap, Query, category};
use crate::sys::userfaultfd::Features;

/// Why memory cannot be tracked. The container runs on, whatever it is.
#[derive(Debug, thiserror::Error)]
pub enum TrackError {
    /// The kernel is too old.
    #[error(
        "this kernel has no {what}, so memory cannot be sent while the container runs; it takes Linux 6.7"
    )]
    Unsupported {
        /// What is missing.
        what: &'static str,
    },
    /// The container's processes cannot be listed.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// Nobody takes pages any more.
    #[error(transparent)]
    Closed(#[from] SinkClosed),
    /// A process's memory cannot be worked on.
    #[error("the memory of process {pid} cannot be {action}: {source}")]
    Memory {
        /// The process.
        pid: i32,
        /// What was to be done.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A page that a dump holds cannot be read.
    #[error("process {pid} has a page at {address:#x} that cannot be read")]
    Unreadable {
        /// The process.
        pid: i32,
        /// Where.
        address: u64,
    },
    /// The process has ended, or executed another program. Rounds pass over it; an error only for a single process.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
}

/// What a round did.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundReport {
    /// Processes whose memory is tracked.
    pub processes: usize,
    /// Processes that could not be tracked; what they have is read when they are frozen.
    pub untracked: usize,
    /// Bytes of areas that the kernel was asked about.
    pub scanned_bytes: u64,
    /// Pages handed on, those of zeros included.
    pub pages: u64,
    /// Pages of zeros among them.
    pub zero_pages: u64,
    /// Time for everything but reading and the sink: finding processes, areas and written pages.
    pub scan: Duration,
    /// Time for reading.
    pub read: Duration,
}

/// Follows what the processes of a container write. Blocking: it belongs on a thread for such work.
///
/// Dropped, it lets go of everything; the kernel then lifts the protection, 20 ms for each GiB.
#[derive(Debug)]
pub struct Tracker {
    cgroup: String,
    abilities: Abilities,
    injector: Injector,
    processes: BTreeMap<i32, Process>,
    scratch: Scratch,
}

impl Tracker {
    /// Takes a userfaultfd out of every process of the cgroup, sub-cgroups included; each stands still for some tenths
    /// of a millisecond. A process that gives none is read when it is frozen.
    pub fn attach(cgroup: &str, injector: Injector) -> Result<Self, TrackError> {
        let mut tracker = Self {
            cgroup: cgroup.to_owned(),
            abilities: abilities()?,
            injector,
            processes: BTreeMap::new(),
            scratch: Scratch::default(),
        };
        tracker.find_processes()?;
        tracker.track_processes()?;
        Ok(tracker)
    }

    /// One round, while the container runs: takes in processes that are new, lets go of those that have ended, and hands
    /// on what was written since the last round; everything in the first. No page is handed on twice in a round.
    ///
    /// After an error the tracker is good for nothing but being dropped.
    pub fn round(&mut self, sink: &mut dyn PageSink) -> Result<RoundReport, TrackError> {
        let start = Instant::now();
        self.find_processes()?;
        self.track_processes()?;
        self.of_each(start, sink, |process, abilities, scratch, sink, totals| {
            let scanned = process.send_written(abilities, scratch, sink, totals)?;
            process.send_settled(sink, totals)?;
            Ok(scanned)
        })
    }

    /// As [`Self::round`], and what there is is listed at the same time, so that [`Self::finish`] has to look only at what changes
    /// from here on. To be done once, shortly before the container is frozen; it takes 4 ms more for each GiB.
    pub fn listing_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundReport, TrackError> {
        let report = self.round(sink)?;
        self.list_ahead(report)
    }

    /// A round for a container that stands still, by the freezer or by CRIU's tracing. Processes that are not tracked
    /// yet are left alone, for [`Self::finish`], which has less to do after this. Those that were not listed are now.
    pub fn frozen_round(&mut self, sink: &mut dyn PageSink) -> Result<RoundReport, TrackError> {
        let start = Instant::now();
        self.find_processes()?;
        let report = self.of_each(start, sink, Process::send_written)?;
        self.list_ahead(report)
    }

    /// Lists what processes have that were not listed yet, and adds the time for that.
    fn list_ahead(&mut self, mut report: RoundReport) -> Result<RoundReport, TrackError> {
        let start = Instant::now();
        for process in self.processes.values_mut() {
            match process.list_ahead(self.abilities, &mut self.scratch) {
                Err(TrackError::Gone { .. }) => {}
                other => other?,
            }
        }
        report.scan += start.elapsed();
        Ok(report)
    }

    /// For a container that stands still and will not run here again unless the move is given up: every page that a
    /// full dump would hold now, and hands on what the sink has not or has in an older version.
    pub fn finish(
        &mut self,
        sink: &mut dyn PageSink,
    ) -> Result<(Vec<ResidentPages>, RoundReport), TrackError> {
        let start = Instant::now();
        self.find_processes()?;
        let mut sink = Timed {
            sink,
            taken: Duration::ZERO,
        };
        let mut totals = Totals::default();
        let mut lists = Vec::new();
        for process in self.processes.values_mut() {
            match process.finish(self.abilities, &mut self.scratch, &mut sink, &mut totals) {
                Ok(list) if list.runs.is_empty() => {}
                Ok(list) => lists.push(list),
                Err(TrackError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let mut report = self.report();
        report.add(&totals, start.elapsed().saturating_sub(sink.taken));
        Ok((lists, report))
    }

    /// Bytes that the next round would hand on if it began now, pages of zeros included, and all that is left for
    /// [`Self::finish`] because it cannot be tracked. Changes nothing.
    pub fn pending_bytes(&mut self) -> Result<u64, TrackError> {
        self.find_processes()?;
        let mut bytes = 0;
        for process in self.processes.values() {
            match process.pending_bytes(self.abilities, &mut self.scratch) {
                Ok(more) => bytes += more,
                Err(TrackError::Gone { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// The longest time for which a process that is tracked now stood still when it was taken in.
    pub fn longest_stall(&self) -> Duration {
        let stalls = self.processes.values().map(Process::stalled);
        stalls.max().unwrap_or_default()
    }

    /// Brings the list of processes up to date. One with another address space than before is a new one.
    fn find_processes(&mut self) -> Result<(), TrackError> {
        let pids = process_tree::pids(&self.cgroup)?;
        self.processes
            .retain(|pid, process| pids.binary_search(pid).is_ok() && process.is_alive());
        for pid in pids {
            if !self.processes.contains_key(&pid)
                && let Some(process) = Process::open(pid)?
            {
                self.processes.insert(pid, process);
            }
        }
        Ok(())
    }

    fn track_processes(&mut self) -> Result<(), TrackError> {
        let mut gone = Vec::new();
        for process in self.processes.values_mut() {
            match process.track(self.abilities, &mut self.injector) {
                Err(TrackError::Gone { pid }) => gone.push(pid),
                other => other?,
            }
        }
        self.processes.retain(|pid, _| !gone.contains(pid));
        Ok(())
    }

    /// Does something to each process that answers how many bytes of areas it has looked at.
    fn of_each(
        &mut self,
        start: Instant,
        sink: &mut dyn PageSink,
        send: impl Fn(
            &mut Process,
            Abilities,
            &mut Scratch,
            &mut dyn PageSink,
            &mut Totals,
        ) -> Result<u64, TrackError>,
    ) -> Result<RoundReport, TrackError> {
        let mut sink = Timed {
            sink,
            taken: Duration::ZERO,
        };
        let mut totals = Totals::default();
        let mut scanned_bytes = 0;
        let mut gone = Vec::new();
        for process in self.processes.values_mut() {
            match send(process, self.abilities, &mut self.scratch, &mut sink, &mut totals) {
                Ok(bytes) => scanned_bytes += bytes,
                Err(TrackError::Gone { pid }) => gone.push(pid),
                Err(error) => return Err(error),
            }
        }
        self.processes.retain(|pid, _| !gone.contains(pid));
        let mut report = self.report();
        report.scanned_bytes = scanned_bytes;
        report.add(&totals, start.elapsed().saturating_sub(sink.taken));
        Ok(report)
    }

    /// Who there is.
    fn report(&self) -> RoundReport {
        let tracked = self
            .processes
            .values()
            .filter(|process| process.is_tracked())
            .count();
        RoundReport {
            processes: tracked,
            untracked: self.processes.len() - tracked,
            ..RoundReport::default()
        }
    }
}

impl RoundReport {
    /// Adds what was read in `time`, which is without what the sink took.
    fn add(&mut self, totals: &Totals, time: Duration) {
        self.pages += totals.pages;
        self.zero_pages += totals.zero_pages;
        self.read += totals.read;
        self.scan += time.saturating_sub(totals.read);
    }
}

/// Knows how long its sink took.
struct Timed<'a> {
    sink: &'a mut dyn PageSink,
    taken: Duration,
}

impl PageSink for Timed<'_> {
    fn take(&mut self, batch: super::PageBatch) -> Result<(), SinkClosed> {
        let start = Instant::now();
        let result = self.sink.take(batch);
        self.taken += start.elapsed();
        result
    }
}

/// Asks the kernel, by trying on this process.
fn abilities() -> Result<Abilities, TrackError> {
    if !pagemap::is_supported() {
        return Err(TrackError::Unsupported { what: "PAGEMAP_SCAN" });
    }
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let failed = |action| {
        move |source| TrackError::Memory {
            pid: own,
            action,
            source,
        }
    };
    let features = Features::of_kernel().map_err(failed("tracked"))?;
    let guards = Query {
        inverted: category::GUARD,
        required: category::GUARD,
        ..Query::default()
    };
    let pagemap = Pagemap::open(own).map_err(failed("opened"))?;
    Ok(Abilities {
        userfaultfd: features.ok_or(TrackError::Unsupported {
            what: "asynchronous write protection (userfaultfd)",
        })?,
        guards: pagemap
            .scan(&guards, 0, PAGE_BYTES, &mut [pagemap::Region::default()])
            .is_ok(),
    })
}

/// Whether this host can send memory while a container runs, and if not, why.
pub fn supported() -> Result<(), TrackError> {
    abilities().map(|_| ())
}
