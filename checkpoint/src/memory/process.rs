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
use super::inject::InjectError;
use super::injector::Injector;
use super::page_set::PageSet;
use super::read::{Reader, Source, Totals};
use super::scan::{Abilities, Follower, Listing, Scratch, failed, has_ended, is_followed};
use super::{PAGE_BYTES, PageSink, ResidentPages, TrackError};
use crate::sys::maps::Maps;
use crate::sys::pagemap::{Pagemap, Region};
use crate::sys::ptrace;
use crate::sys::userfaultfd::Userfaultfd;

/// A process that does not come to a stop is asked again in this many rounds.
const ATTEMPTS: u32 = 5;

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
    listed: Option<Listed>,
}

/// What was listed ahead, so that at the end only what changed since must be looked at: whatever of these areas is in memory and
/// protected is among the pages. What is protected later is added; what goes away is not protected any more.
#[derive(Debug)]
struct Listed {
    /// In ascending order.
    areas: Vec<Area>,
    pages: PageSet,
}

impl Listed {
    fn has(&self, area: &Area) -> bool {
        let found = self
            .areas
            .binary_search_by_key(&area.range.start, |known| known.range.start);
        found.is_ok_and(|at| self.areas.get(at) == Some(area))
    }
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
                listed: None,
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
    pub fn track(&mut self, abilities: Abilities, injector: &mut Injector) -> Result<(), TrackError> {
        if self.userfaultfd.is_some() || self.attempts == 0 {
            return Ok(());
        }
        let status = Status::read(self.pid).map_err(|_| TrackError::Gone { pid: self.pid })?;
        if status.parent > 0 && ptrace::share_memory(self.pid, status.parent).unwrap_or(false) {
            return Ok(());
        }
        match injector.take(self.pid, status.seccomp) {
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
        let mut listed = self.listed.take();
        let (follower, mut reader) = self.split(sink, totals);
        let mut scanned = 0;
        let mut unsure = Vec::new();
        for area in areas {
            if !is_followed(&area, reader.sent()) {
                continue;
            }
            let mut note = note_in(&mut unsettled);
            let mut found = |range: Range<u64>| {
                note(range.clone());
                if let Some(listed) = &mut listed {
                    listed.pages.insert(range);
                }
            };
            let all = overlaps_any(&suspect, &area.range);
            if !follower.send_written(abilities, &area, all, scratch, &mut reader, &mut found)? {
                unsure.push(area.range.clone());
            }
            scanned += area.range.end - area.range.start;
        }
        reader.flush()?;
        self.suspect = unsure;
        self.unsettled = unsettled;
        self.listed = listed;
        Ok(scanned)
    }

    /// Lists what there is, unless that was done, so that [`Self::finish`] has to look only at what changes from here on. The process
    /// may run; nothing is read.
    pub fn list_ahead(&mut self, abilities: Abilities, scratch: &mut Scratch) -> Result<(), TrackError> {
        // What may be written without a trace cannot be listed in advance.
        if self.unsettled.is_some() || self.listed.is_some() {
            return Ok(());
        }
        let mut areas = self.areas()?;
        areas.retain(|area| area.kind == Kind::Anonymous && !overlaps_any(&self.suspect, &area.range));
        let follower = self.follower();
        if !follower.is_following() {
            return Ok(());
        }
        let mut pages = PageSet::default();
        let mut listed = Vec::with_capacity(areas.len());
        for area in areas {
            if follower.list_ahead(abilities, &area, scratch, &mut pages)? {
                listed.push(area);
            }
        }
        self.listed = Some(Listed { areas: listed, pages });
        Ok(())
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

    fn follower(&self) -> Follower<'_> {
        Follower {
            pid: self.pid,
            maps: &self.maps,
            pagemap: &self.pagemap,
            userfaultfd: self.userfaultfd.as_ref(),
        }
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

    /// Every page that a dump would hold, while the process stands still; hands on those that are not sent.
    pub fn finish(
        &mut self,
        abilities: Abilities,
        scratch: &mut Scratch,
        sink: &mut dyn PageSink,
        totals: &mut Totals,
    ) -> Result<ResidentPages, TrackError> {
        if let Some(unsettled) = &self.unsettled {
            // Once more, and for the last time.
            self.sent.remove_all(&unsettled.fresh);
            self.sent.remove_all(&unsettled.settling);
        }
        let areas = self.areas()?;
        let mut listed = self.listed.take().filter(|_| self.unsettled.is_none());
        let mut unsettled = self.unsettled.take();
        let suspect = self.suspect.clone();
        let mut runs = Vec::new();
        let (follower, mut reader) = self.split(sink, totals);
        reader.require_all();
        for area in areas {
            let sure = !overlaps_any(&suspect, &area.range);
            let followed = sure && follower.is_following() && is_followed(&area, reader.sent());
            let mut found = note_in(&mut unsettled);
            let mut list = Listing {
                runs: &mut runs,
                found: &mut found,
            };
            let known = listed.as_mut().filter(|listed| listed.has(&area));
            let done = followed
                && match known.map(|listed| &mut listed.pages) {
                    Some(known) => {
                        follower.finish_listed(abilities, &area, known, scratch, &mut reader, &mut list)?
                    }
                    None => follower.finish_followed(abilities, &area, scratch, &mut reader, &mut list)?,
                };
            if !done {
                follower.finish_other(abilities, &area, scratch, &mut reader, &mut list)?;
            }
        }
        reader.flush()?;
        self.unsettled = unsettled;
        Ok(ResidentPages {
            process: self.id,
            runs,
        })
    }

    /// Bytes that are to be sent as things stand: what was written, or everything where nothing is tracked.
    pub fn pending_bytes(&self, abilities: Abilities, scratch: &mut Scratch) -> Result<u64, TrackError> {
        let unsettled = self.unsettled.as_ref().map_or(0, Unsettled::pages);
        let mut bytes = unsettled * PAGE_BYTES;
        for area in self.areas()? {
            if is_followed(&area, &self.sent) {
                let query = if self.is_tracked() {
                    abilities.written(area.kind)
                } else {
                    abilities.resident(area.kind)
                };
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

/// Keeps what a scan finds for a process whose pages may be written without a trace.
fn note_in(unsettled: &mut Option<Unsettled>) -> impl FnMut(Range<u64>) {
    move |range| {
        if let Some(unsettled) = unsettled {
            unsettled.fresh.insert(range);
        }
    }
}

fn overlaps_any(ranges: &[Range<u64>], other: &Range<u64>) -> bool {
    ranges
        .iter()
        .any(|one| one.start < other.end && other.start < one.end)
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
