//! What is asked of the kernel about one process: which pages were written, and which there are.

use std::io;
use std::ops::Range;

use super::areas::{Area, Kind};
use super::page_set::PageSet;
use super::read::Reader;
use super::{PAGE_BYTES, PageRun, TrackError};
use crate::sys::maps::Maps;
use crate::sys::pagemap::{Pagemap, Query, Region, category};
use crate::sys::userfaultfd::{Features, Userfaultfd};

/// What the kernel of this host can do.
#[derive(Clone, Copy, Debug)]
pub struct Abilities {
    /// What a userfaultfd is asked for.
    pub userfaultfd: Features,
    /// Whether guard pages can be told from others.
    pub guards: bool,
}

impl Abilities {
    /// Pages that a dump holds: in memory or in swap, and neither the shared page of zeros nor a file's own page. To tell
    /// whose a page is costs the kernel ten times what the rest does, so it is asked only where there is a file.
    pub fn resident(self, kind: Kind) -> Query {
        let guard = if self.guards { category::GUARD } else { 0 };
        let file = if kind == Kind::Anonymous {
            0
        } else {
            category::FILE
        };
        let without = category::PFNZERO | guard | file;
        Query {
            inverted: without,
            required: without,
            any_of: category::PRESENT | category::SWAPPED,
            ..Query::default()
        }
    }

    /// Those of them that were written since they were last protected.
    pub fn written(self, kind: Kind) -> Query {
        let resident = self.resident(kind);
        Query {
            required: resident.required | category::WRITTEN,
            ..resident
        }
    }
}

/// In how many places an area may have been touched for each of them to be looked at: each is taken to cost 2 us, and to look
/// at all of the area instead costs some 16 ns a page.
fn most_touched(area: &Area) -> usize {
    let pages = (area.range.end - area.range.start) / PAGE_BYTES;
    usize::try_from(pages / 128).map_or(usize::MAX, |most| most.max(64))
}

/// Room that is used again and again.
#[derive(Debug)]
pub struct Scratch {
    /// For what a scan finds.
    pub regions: Vec<Region>,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            regions: vec![Region::default(); 2048],
        }
    }
}

/// What is asked of the kernel about one process.
pub struct Follower<'a> {
    /// As this host knows it.
    pub pid: i32,
    /// Its areas.
    pub maps: &'a Maps,
    /// Its pages.
    pub pagemap: &'a Pagemap,
    /// What came out of it, if anything did.
    pub userfaultfd: Option<&'a Userfaultfd>,
}

impl Follower<'_> {
    /// Protects what was written in an area, and has it read. `all`: what is there counts as written, whatever the kernel
    /// says. False where it has to next time.
    pub fn send_written(
        &self,
        abilities: Abilities,
        area: &Area,
        all: bool,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        found: &mut dyn FnMut(Range<u64>),
    ) -> Result<bool, TrackError> {
        let query = if all {
            abilities.resident(area.kind)
        } else {
            abilities.written(area.kind)
        };
        let parts = match area.kind {
            Kind::Anonymous if !all => self.touched(area, scratch)?,
            _ => None,
        };
        let parts = parts.unwrap_or_else(|| vec![area.range.clone()]);
        let mut any = false;
        let mut note = |range| {
            any = true;
            found(range);
        };
        let first = parts
            .iter()
            .try_for_each(|part| self.scan(&query, part, scratch, reader, &mut note));
        match first {
            Err(Scan::Unregistered) => {}
            other => return other.map(|()| true).map_err(|error| error.of(self.pid)),
        }
        // New, or moved here. What was sent for these addresses was something else; and some of it may be protected
        // already without having been found, so everything counts as written.
        reader.forget(area.range.clone())?;
        if !self.register(&area.range)? || any {
            return Ok(false);
        }
        match self.scan(
            &abilities.resident(area.kind),
            &area.range,
            scratch,
            reader,
            found,
        ) {
            Err(Scan::Unregistered) => reader.forget(area.range.clone()).map(|()| false),
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

    /// Whether there is a userfaultfd to follow it with.
    pub fn is_following(&self) -> bool {
        self.userfaultfd.is_some()
    }

    /// Lists the pages of an area that is followed, and hands on those that are not sent or were written since. False
    /// where it is not registered; nothing is listed then.
    pub fn finish_followed(
        &self,
        abilities: Abilities,
        area: &Area,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        list: &mut Listing<'_>,
    ) -> Result<bool, TrackError> {
        let query = Query {
            report: category::WRITTEN | mark(area),
            protect: true,
            check_registered: true,
            ..abilities.resident(area.kind)
        };
        reader.remember(true)?;
        match self.list(&query, area, scratch, reader, list) {
            Err(Scan::Unregistered) => Ok(false),
            other => other.map(|()| true).map_err(|error| error.of(self.pid)),
        }
    }

    /// Adds the pages that an area has now to `pages`, whether they were written or not. False where it is not registered; what
    /// was added of it says nothing then.
    pub fn list_ahead(
        &self,
        abilities: Abilities,
        area: &Area,
        scratch: &mut Scratch,
        pages: &mut PageSet,
    ) -> Result<bool, TrackError> {
        let query = Query {
            check_registered: true,
            ..abilities.resident(area.kind)
        };
        let Range { start, end } = area.range;
        let listed = self
            .pagemap
            .scan_all(&query, start, end, &mut scratch.regions, |region| {
                pages.insert(region.start..region.end);
                Ok(())
            });
        match listed {
            Err(Scan::Unregistered) => Ok(false),
            other => other.map(|()| true).map_err(|error| error.of(self.pid)),
        }
    }

    /// As [`Self::finish_followed`], for an area of which `known` has every page that is there and was not written since it was
    /// protected: only the rest is looked at.
    pub fn finish_listed(
        &self,
        abilities: Abilities,
        area: &Area,
        known: &mut PageSet,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        list: &mut Listing<'_>,
    ) -> Result<bool, TrackError> {
        let Some(touched) = self.touched(area, scratch)? else {
            return self.finish_followed(abilities, area, scratch, reader, list);
        };
        for range in touched {
            let part = Area {
                range: range.clone(),
                ..area.clone()
            };
            let mut now = Vec::new();
            let mut part_list = Listing {
                runs: &mut now,
                found: &mut *list.found,
            };
            if !self.finish_followed(abilities, &part, scratch, reader, &mut part_list)? {
                return Ok(false);
            }
            known.remove(range);
            now.iter().for_each(|run| known.insert(run.start..run.end()));
        }
        reader.remember(true)?;
        for range in known.ranges_in(area.range.clone()) {
            push(list.runs, &range);
            // What could not be read before is tried again.
            reader.add_unsent(range)?;
        }
        Ok(true)
    }

    /// Where something of an area may have been written since it was protected, places included where there never was a
    /// page. None where that is in too many places to be worth it, or nothing tells.
    ///
    /// In this form the question is the cheapest that can be asked: 2 ns a page, a tenth of what it costs to know what the
    /// page is.
    fn touched(&self, area: &Area, scratch: &mut Scratch) -> Result<Option<Vec<Range<u64>>>, TrackError> {
        let most = most_touched(area);
        let query = Query {
            required: category::WRITTEN,
            report: category::WRITTEN,
            check_registered: true,
            ..Query::default()
        };
        let mut touched = Vec::<Range<u64>>::new();
        let Range { start, end } = area.range;
        let scanned = self
            .pagemap
            .scan_all(&query, start, end, &mut scratch.regions, |region| {
                let many = touched.len() == most;
                match touched.last_mut() {
                    Some(last) if last.end == region.start => last.end = region.end,
                    _ if many => return Err(Scan::Unregistered),
                    _ => touched.push(region.start..region.end),
                }
                Ok(())
            });
        match scanned {
            Ok(()) => Ok(Some(touched)),
            Err(Scan::Unregistered) => Ok(None),
            Err(error) => Err(error.of(self.pid)),
        }
    }

    /// Lists the pages of an area about which nothing is known, and hands them all on.
    pub fn finish_other(
        &self,
        abilities: Abilities,
        area: &Area,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        list: &mut Listing<'_>,
    ) -> Result<(), TrackError> {
        reader.forget(area.range.clone())?;
        reader.remember(false)?;
        match area.kind {
            Kind::Kernel => Ok(()),
            Kind::Vdso => {
                push(list.runs, &area.range);
                reader.add(area.range.clone())
            }
            Kind::Anonymous | Kind::File => self
                .list(&abilities.resident(area.kind), area, scratch, reader, list)
                .map_err(|error| error.of(self.pid)),
        }
    }

    fn list(
        &self,
        query: &Query,
        area: &Area,
        scratch: &mut Scratch,
        reader: &mut Reader<'_>,
        list: &mut Listing<'_>,
    ) -> Result<(), Scan> {
        let Range { start, end } = area.range;
        self.pagemap
            .scan_all(query, start, end, &mut scratch.regions, |region| {
                let range = region.start..region.end;
                if region.categories & category::WRITTEN != 0 {
                    (list.found)(range.clone());
                }
                if region.categories != 0 {
                    reader.sent().remove(range.clone());
                }
                push(list.runs, &range);
                reader.add_unsent(range).map_err(Scan::Track)
            })
    }
}

/// Where pages are listed, and who wants to know which of them were written.
pub struct Listing<'a> {
    /// All of them.
    pub runs: &'a mut Vec<PageRun>,
    /// Is told what was written.
    pub found: &'a mut dyn FnMut(Range<u64>),
}

/// What tells that a page may be another one although it is protected: a copy of a file's page that was thrown away while
/// it was protected leaves a mark that looks like a swapped page, and the file's page shows again.
fn mark(area: &Area) -> u64 {
    if area.kind == Kind::File {
        category::SWAPPED
    } else {
        0
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

/// Areas that nobody can write hold few pages that a dump has, and registering them makes their faults slower: they are
/// read at the end, unless something of them was sent when they still could be written.
pub fn is_followed(area: &Area, sent: &PageSet) -> bool {
    match area.kind {
        Kind::Anonymous => true,
        Kind::File => area.writable || sent.intersects(area.range.clone()),
        Kind::Vdso | Kind::Kernel => false,
    }
}

/// Whether an error says that the process is not there any more.
pub fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// What went wrong with a process, if it did not just end.
pub fn failed(pid: i32, action: &'static str, source: io::Error) -> TrackError {
    if has_ended(&source) {
        TrackError::Gone { pid }
    } else {
        TrackError::Memory { pid, action, source }
    }
}
