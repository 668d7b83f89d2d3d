//! One process whose written pages are followed.
//!
//! A page is *sent* when the sink has been given its content and the process has not written it since, as far as the
//! kernel was last asked. What proves it is the kernel's write protection: a page that is in memory and still protected
//! holds what was read; one that was given back and touched again is not protected, and so is not sent any more.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::time::Duration;

use super::areas::{self, Area, Kind};
use super::direct::{self, Unsettled};
use super::inject::{self, InjectError};
use super::page_set::PageSet;
use super::read::{Reader, Source, Totals};
use super::{PAGE_BYTES, PageRun, PageSink, ResidentPages, TrackError};
use crate::sys::maps::Maps;
use crate::sys::pagemap::{Pagemap, Query, Region, category};
use crate::sys::ptrace;
use crate::sys::userfaultfd::{Features, Userfaultfd};

/// A process that does not come to a stop is asked again in this many rounds.
const ATTEMPTS: u32 = 5;

/// What the kernel of this host can do.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// What a userfaultfd is asked for.
    pub userfaultfd: Features,
    /// Whether guard pages can be told from others.
    pub guards: bool,
}

impl Abilities {
    /// Pages that a dump holds: in memory or in swap, and neither the shared page of zeros nor a file's own page.
    fn resident(self) -> Query {
        let guard = if self.guards { category::GUARD } else { 0 };
        let without = category::PFNZERO | category::FILE | guard;
        Query {
            inverted: without,
            required: without,
            any_of: category::PRESENT | category::SWAPPED,
            ..Query::default()
        }
    }

    /// Those of them that were written since they were last protected.
    fn written(self) -> Query {
        let resident = self.resident();
        Query {
            required: resident.required | category::WRITTEN,
            ..resident
        }
    }
}

/// Room that is used again and again.
#[derive(Debug)]
pub struct Scratch {
    regions: Vec<Region>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            regions: vec![Region::default(); 2048],
        }
    }
}

/// What a process is, as far as it matters before it is touched.
#[derive(Debug, Default)]
struct Status {
    id: Option<u32>,
    parent: i32,
    seccomp: bool,
}

impl Status {
    fn read(pid: i32) -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string(format!("/proc/{pid}/status"))?))
    }

    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let last = value.split_whitespace().next_back().unwrap_or_default();
            match name {
                "NSpid" => status.id = last.parse().ok(),
                "PPid" => status.parent = last.parse().unwrap_or(0),
                "Seccomp" => status.seccomp = last != "0",
                _ => {}
            }
        }
        status
    }
}

/// A process, its address space, and what of it the sink has.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    id: u32,
    memory: File,
    maps: Maps,
    pagemap: Pagemap,
    userfaultfd: Option<Userfaultfd>,
    stalled: Duration,
    /// How often it may still be asked for a userfaultfd.
    attempts: u32,
    sent: PageSet,
    /// Areas in which pages may be protected that were not found: everything there counts as written.
    suspect: Vec<Range<u64>>,
    unsettled: Option<Unsettled>,
}

impl Process {
    /// Opens the process `pid` without touching it. None when it has ended.
    pub fn open(pid: i32) -> Result<Option<Self>, TrackError> {
        let open = || -> io::Result<Option<Self>> {
            let Some(id) = Status::read(pid)?.id else {
                return Ok(None);
            };
            let process = Self {
                pid,
                id,
                memory: File::open(format!("/proc/{pid}/mem"))?,
                maps: Maps::open(pid)?,
                pagemap: Pagemap::open(pid)?,
                userfaultfd: None,
                stalled: Duration::ZERO,
                attempts: ATTEMPTS,
                sent: PageSet::default(),
                suspect: Vec::new(),
                unsettled: None,
            };
            Ok(process.is_alive().then_some(process))
        };
        match open() {
            Err(error) if has_ended(&error) => Ok(None),
            other => other.map_err(|source| TrackError::Memory {
                pid,
                action: "opened",
                source,
            }),
        }
    }

    /// Whether what it writes is followed. Otherwise it is read when it is frozen.
    pub fn is_tracked(&self) -> bool {
        self.userfaultfd.is_some()
    }

    /// For how long it stood still when it was taken in.
    pub fn stalled(&self) -> Duration {
        self.stalled
    }

    /// Whether it still has the address space that was opened: false after it has ended or executed a program.
    pub fn is_alive(&self) -> bool {
        self.source().is_alive()
    }

    fn source(&self) -> Source<'_> {
        Source {
            pid: self.pid,
            process: self.id,
            memory: &self.memory,
        }
    }

    /// Takes a userfaultfd out of it, unless it has been tried, or it runs in its parent's memory as between `vfork`
    /// and `exec`. One that gives none stays as it is, and only its own end is an error.
    pub fn track(&mut self, abilities: Abilities) -> Result<(), TrackError> {
        if self.userfaultfd.is_some() || self.attempts == 0 {
            return Ok(());
        }
        let status = Status::read(self.pid).map_err(|_| TrackError::Gone { pid: self.pid })?;
        if status.parent > 0 && ptrace::share_memory(self.pid, status.parent).unwrap_or(false) {
            return Ok(());
        }
        match inject::take_userfaultfd(self.pid, status.seccomp) {
            Ok(taken) => {
                self.stalled = taken.stalled;
                let made = Userfaultfd::new(taken.fd, abilities.userfaultfd);
                self.userfaultfd = Some(made.map_err(|source| TrackError::Memory {
                    pid: self.pid,
                    action: "tracked",
                    source,
                })?);
                Ok(())
            }
            Err(InjectError::Gone { pid }) => Err(TrackError::Gone { pid }),
            Err(error) => {
                tracing::warn!(process = self.pid, error = %error, "memory is not tracked and is read when it is frozen");
                // One that is busy now may have time later.
                let final_word = !matches!(error, InjectError::Busy { .. });
                self.attempts = if final_word { 0 } else { self.attempts - 1 };
                Ok(())
            }
        }
    }

    fn areas(&self) -> Result<Vec<Area>, TrackError> {
        let mut text = Vec::new();
        self.maps
            .read(&mut text)
            .map_err(|source| self.failed("listed", source))?;
        // Of an address space that is gone the list is empty.
        if text.is_empty() {
            return Err(TrackError::Gone { pid: self.pid });
        }
        Ok(areas::private(&text).collect())
    }

    fn failed(&self, action: &'static str, source: io::Error) -> TrackError {
        failed(self.pid, action, source)
    }

    /// Protects what was written since the last time, and hands it on, no page twice. Returns how many bytes of areas were
    /// looked at. Does nothing to a process that is not tracked.
    pub fn send_written(
        &mut self,
        abilities: Abilities,
        scratch: &mut Scratch,
        sink: &mut dyn PageSink,
        totals: &mut Totals,
    ) -> Result<u64, TrackError> {
        if self.userfaultfd.is_none() {
            return Ok(0);
        }
        let areas = self.areas()?;
        let suspect = std::mem::take(&mut self.suspect);
        let mut unsettled = self.unsettled.take();
        let (follower, mut reader) = self.split(sink, totals);
        let mut scanned = 0;
        let mut unsure = Vec::new();
        for area in areas {
            if !is_followed(&area, reader.sent()) {
                continue;
            }
            let mut found = |range| {
                if let Some(unsettled) = &mut unsettled {
                    unsettled.fresh.insert(range);
                }
            };
            let all = suspect.iter().any(|range| overlap(range, &area.range));
            if !follower.send_written(abilities, &area.range, all, scratch, &mut reader, &mut found)? {
                unsure.push(area.range.clone());
            }
            scanned += area.range.end - area.range.start;
        }
        reader.flush()?;
        self.suspect = unsure;
        self.unsettled = unsettled;
        Ok(scanned)
    }

    /// After [`Self::send_written`], while the process runs: hands on what has to be read once more, because it may have
    /// been written without a trace.
    pub fn send_settled(&mut self, sink: &mut dyn PageSink, totals: &mut Totals) -> Result<(), TrackError> {
        if self.unsettled.is_none() && self.is_tracked() && direct::reads_directly(self.pid) {
            self.unsettled = Some(Unsettled::new(self.sent.clone()));
        }
        let Some(mut unsettled) = self.unsettled.take() else {
            return Ok(());
        };
        if let Some((settled, just_sent)) = unsettled.settled() {
            let (_, mut reader) = self.split(sink, totals);
            for range in settled.ranges() {
                just_sent.gaps(range, |range| reader.add(range))?;
            }
            reader.flush()?;
        }
        self.unsettled = Some(unsettled);
        Ok(())
    }

    fn split<'a>(
        &'a mut self,
        sink: &'a mut dyn PageSink,
        totals: &'a mut Totals,
    ) -> (Follower<'a>, Reader<'a>) {
        let follower = Follower {
            pid: self.pid,
            maps: &self.maps,
            pagemap: &self.pagemap,
            userfaultfd: self.userfaultfd.as_ref(),
        };
        let source = Source {
            pid: self.pid,
            process: self.id,
            memory: &self.memory,
        };
        (follower, Reader::new(source, sink, &mut self.sent, totals))
    }

    /// Before the last [`Self::send_written`]: what has to be read once more counts as not sent.
    pub fn doubt_unsettled(&mut self) {
        if let Some(unsettled) = &self.unsettled {
            self.sent.remove_all(&unsettled.fresh);
            self.sent.remove_all(&unsettled.settling);
        }
    }

    /// Every page that a dump would hold, after [`Self::send_written`] and while the process stands still; hands on
    /// those that are not sent.
    pub fn send_rest(
        &mut self,
        abilities: Abilities,
        scratch: &mut Scratch,
        sink: &mut dyn PageSink,
        totals: &mut Totals,
    ) -> Result<ResidentPages, TrackError> {
        let areas = self.areas()?;
        let process = self.id;
        let mut runs = Vec::new();
        let (follower, mut reader) = self.split(sink, totals);
        reader.require_all();
        for area in areas {
            let followed = follower.userfaultfd.is_some() && is_followed(&area, reader.sent());
            reader.remember(followed)?;
            follower.send_rest(abilities, &area, scratch, &mut reader, &mut runs)?;
        }
        reader.flush()?;
        Ok(ResidentPages { process, runs })
    }

    /// Bytes that are to be sent as things stand: what was written, or everything where nothing is tracked.
    pub fn pending_bytes(&self, abilities: Abilities, scratch: &mut Scratch) -> Result<u64, TrackError> {
        let query = if self.is_tracked() {
            abilities.written()
        } else {
            abilities.resident()
        };
        let unsettled = self.unsettled.as_ref().map_or(0, Unsettled::pages);
        let mut bytes = unsettled * PAGE_BYTES;
        for area in self.areas()? {
            if is_followed(&area, &self.sent) {
                let Range { start, end } = area.range;
                let count = |region: Region| {
                    bytes += region.end - region.start;
                    Ok::<(), io::Error>(())
                };
                let scanned = self
                    .pagemap
                    .scan_all(&query, start, end, &mut scratch.regions, count);
                scanned.map_err(|source| self.failed("scanned", source))?;
            }
        }
        Ok(bytes)
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn failed(pid: i32, action: &'static str, source: io::Error) -> TrackError {
    if has_ended(&source) {
        TrackError::Gone { pid }
    } else {
        TrackError::Memory { pid, action, source }
    }
}

/// Areas that nobody can write hold few pages that a dump has, and registering them makes their faults slower: they are
/// read at the end, unless something of them was sent when they still could be written.
fn is_followed(area: &Area, sent: &PageSet) -> bool {
    match area.kind {
        Kind::Anonymous => true,
        Kind::File => area.writable || sent.intersects(area.range.clone()),
        Kind::Vdso | Kind::Kernel => false,
    }
}

/// What is asked of the kernel about one process.
struct Follower<'a> {
    pid: i32,
    maps: &'a Maps,
    pagemap: &'a Pagemap,
    userfaultfd: Option<&'a Userfaultfd>,
}

impl Follower<'_> {
    /// `all`: what is there counts as written, whatever the kernel says. False where it has to next time.
    fn send_written(
        &self,
        abilities: Abilities,
        area: &Range<u64>,
        all: bool,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        found: &mut dyn FnMut(Range<u64>),
    ) -> Result<bool, TrackError> {
        let query = if all {
            abilities.resident()
        } else {
            abilities.written()
        };
        let mut any = false;
        let first = self.scan(&query, area, scratch, reader, &mut |range| {
            any = true;
            found(range);
        });
        match first {
            Err(Scan::Unregistered) => {}
            other => return other.map(|()| true).map_err(|error| error.of(self.pid)),
        }
        // New, or moved here. What was sent for these addresses was something else; and some of it may be protected
        // already without having been found, so everything counts as written.
        reader.forget(area.clone())?;
        if !self.register(area)? || any {
            return Ok(false);
        }
        match self.scan(&abilities.resident(), area, scratch, reader, found) {
            Err(Scan::Unregistered) => reader.forget(area.clone()).map(|()| false),
            other => other.map(|()| true).map_err(|error| error.of(self.pid)),
        }
    }

    /// False where the area has changed meanwhile, or is of a kind that cannot be registered: it stays unsent, for the
    /// next round or the last.
    ///
    /// To register a part of what the process has mapped as one would make it two areas, and `mremap` refuses to grow
    /// what lies in two. So a kernel that can tell is asked right before.
    fn register(&self, area: &Range<u64>) -> Result<bool, TrackError> {
        let Some(userfaultfd) = self.userfaultfd else {
            return Ok(false);
        };
        if self
            .maps
            .at(area.start)
            .is_ok_and(|now| now.as_ref() != Some(area))
        {
            return Ok(false);
        }
        match userfaultfd.register(area) {
            Ok(()) => Ok(true),
            Err(source) if has_ended(&source) => Err(TrackError::Gone { pid: self.pid }),
            Err(_) => Ok(false),
        }
    }

    /// Protects what the query finds, and has it read.
    fn scan(
        &self,
        query: &Query,
        area: &Range<u64>,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        found: &mut dyn FnMut(Range<u64>),
    ) -> Result<(), Scan> {
        let query = Query {
            protect: true,
            check_registered: true,
            ..*query
        };
        let Range { start, end } = *area;
        self.pagemap
            .scan_all(&query, start, end, &mut scratch.regions, |region| {
                let range = region.start..region.end;
                found(range.clone());
                reader.sent().remove(range.clone());
                reader.add(range).map_err(Scan::Track)
            })
    }

    fn send_rest(
        &self,
        abilities: Abilities,
        area: &Area,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        runs: &mut Vec<PageRun>,
    ) -> Result<(), TrackError> {
        match area.kind {
            Kind::Kernel => return Ok(()),
            Kind::Vdso => {
                push(runs, &area.range);
                return reader.add_unsent(area.range.clone());
            }
            Kind::Anonymous | Kind::File => {}
        }
        let query = Query {
            report: category::SWAPPED,
            ..abilities.resident()
        };
        let Range { start, end } = area.range;
        let scanned = self
            .pagemap
            .scan_all(&query, start, end, &mut scratch.regions, |region| {
                let range = region.start..region.end;
                if area.kind == Kind::File && region.categories != 0 {
                    // A protected copy of a file's page that was thrown away leaves a mark that looks like this, and the
                    // file's page shows again.
                    reader.sent().remove(range.clone());
                }
                push(runs, &range);
                reader.add_unsent(range).map_err(Scan::Track)
            });
        scanned.map_err(|error: Scan| error.of(self.pid))
    }
}

fn push(runs: &mut Vec<PageRun>, range: &Range<u64>) {
    let mut start = range.start;
    while start < range.end {
        let pages = u32::try_from((range.end - start) / PAGE_BYTES).unwrap_or(u32::MAX);
        runs.push(PageRun {
            start,
            pages,
            zero: false,
        });
        start += u64::from(pages) * PAGE_BYTES;
    }
}

/// Why a scan ended early.
enum Scan {
    Unregistered,
    Failed(io::Error),
    Track(TrackError),
}

impl From<io::Error> for Scan {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM) => Self::Unregistered,
            _ => Self::Failed(error),
        }
    }
}

impl Scan {
    fn of(self, pid: i32) -> TrackError {
        match self {
            Self::Unregistered => failed(pid, "scanned", io::Error::from_raw_os_error(libc::EPERM)),
            Self::Failed(source) => failed(pid, "scanned", source),
            Self::Track(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn the_innermost_id_is_the_one_that_counts() {
        let status = Status::parse("Name:\tx\nPPid:\t7\nNSpid:\t4711\t12\t1\nSeccomp:\t2\n");
        assert_eq!((status.id, status.parent, status.seccomp), (Some(1), 7, true));
        assert!(!Status::parse("Seccomp:\t0\n").seccomp);
    }
}
