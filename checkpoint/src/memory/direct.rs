//! Memory that is written past the page table: by a disk, for a read of a file that was opened with `O_DIRECT`.
//!
//! The kernel takes hold of the pages when the read begins, which counts as writing them, and the disk fills them some time
//! later, which nothing tells of. A page that is protected in between is then sent as it was before the disk wrote, and never
//! again (tried: one in some hundred rounds over a busy reader loses a page). So in a process that reads in this way a page
//! that was found written is sent once more, when any read that was under way is over.

use std::fs;
use std::time::{Duration, Instant};

use super::page_set::PageSet;

/// A read that was under way when its pages were protected is over after this time.
const SETTLED: Duration = Duration::from_secs(1);

/// The pages that are to be sent once more, of a process that reads from a disk by itself.
#[derive(Debug)]
pub struct Unsettled {
    since: Instant,
    /// Found written since then.
    pub fresh: PageSet,
    /// Found written before.
    pub settling: PageSet,
}

impl Unsettled {
    /// With everything that was sent so far.
    pub fn new(settling: PageSet) -> Self {
        Self {
            since: Instant::now(),
            fresh: PageSet::default(),
            settling,
        }
    }

    /// Once in a while: pages that have settled, and those that were found since and so sent already.
    pub fn settled(&mut self) -> Option<(PageSet, &PageSet)> {
        if self.since.elapsed() < SETTLED {
            return None;
        }
        self.since = Instant::now();
        let fresh = std::mem::take(&mut self.fresh);
        let settled = std::mem::replace(&mut self.settling, fresh);
        Some((settled, &self.settling))
    }

    /// How many pages are to be sent once more.
    pub fn pages(&self) -> u64 {
        self.fresh.len() + self.settling.len()
    }
}

/// Whether the process has a file open for such reads.
pub fn reads_directly(pid: i32) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    descriptors.flatten().any(|descriptor| {
        // Sockets, pipes and the like have no absolute path; they are the many.
        let is_file = fs::read_link(descriptor.path()).is_ok_and(|target| target.is_absolute());
        is_file
            && descriptor.file_name().to_str().is_some_and(|number| {
                let information = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"));
                information.is_ok_and(|text| is_direct(&text))
            })
    })
}

fn is_direct(information: &str) -> bool {
    let flags = information.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & libc::O_DIRECT != 0)
}

#[cfg(test)]
mod tests {
    use super::{Unsettled, is_direct, reads_directly};
    use crate::memory::page_set::PageSet;
    use std::os::unix::fs::OpenOptionsExt;
    use std::time::{Duration, Instant};

    #[test]
    fn a_file_that_is_read_past_the_cache_is_noticed() {
        assert!(!reads_directly(std::process::id().cast_signed()));
        let file = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECT)
            .open(std::env::current_exe().unwrap())
            .unwrap();
        assert!(reads_directly(std::process::id().cast_signed()));
        drop(file);
        assert!(!is_direct("pos:\t0\nflags:\t0100000\nmnt_id:\t25\n"));
        assert!(!is_direct("flags:\tx\n"));
    }

    #[test]
    fn a_page_comes_once_more_when_it_has_settled() {
        let mut sent = PageSet::default();
        sent.insert(0..8192);
        let mut unsettled = Unsettled::new(sent);
        unsettled.fresh.insert(4096..12288);
        assert!(unsettled.settled().is_none());
        for expected in [2, 2, 0] {
            unsettled.since = Instant::now().checked_sub(Duration::from_secs(2)).unwrap();
            assert_eq!(unsettled.settled().unwrap().0.len(), expected);
        }
    }
}
