//! Memory that is not sent while the container runs: what several processes share. CRIU writes it into the images while the
//! container stands still, so how much of it there is decides how long that takes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::TrackError;
use super::areas::{self, Line};
use crate::process_tree;

/// Memory of one kind that a dump holds in its images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Untracked {
    /// `shared anonymous`, `memfd`, `sysv` or `tmpfs`.
    pub what: &'static str,
    /// Bytes that are in use, not bytes that are reserved.
    pub bytes: u64,
}

const SHARED: &str = "shared anonymous";
const MEMFD: &str = "memfd";
const SYSV: &str = "sysv";
const TMPFS: &str = "tmpfs";

/// What of a container's memory a tracker does not see, by kind; kinds of which there is nothing are left out. Found in
/// `/proc`, without disturbing anybody; processes that end meanwhile are passed over.
pub fn untracked(cgroup: &str) -> Result<Vec<Untracked>, TrackError> {
    let mut found = Found::default();
    for pid in process_tree::pids(cgroup)? {
        found.add_mapped(pid);
        found.add_open(pid);
        found.add_mounted(pid);
    }
    Ok(found.sums())
}

/// Files by where they are, each once however many processes have it.
#[derive(Default)]
struct Found {
    files: BTreeMap<(u64, u64), Untracked>,
    mounts: BTreeMap<u64, u64>,
    namespaces: BTreeSet<u64>,
}

impl Found {
    fn add_mapped(&mut self, pid: i32) {
        let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
        for line in areas::lines(&maps) {
            if let Some(what) = shared_kind(&line) {
                let Range { start, end } = line.range;
                self.add_file(what, format!("/proc/{pid}/map_files/{start:x}-{end:x}"));
            }
        }
    }

    /// Memory files that are open and not mapped.
    fn add_open(&mut self, pid: i32) {
        for descriptor in fs::read_dir(format!("/proc/{pid}/fd"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let path = descriptor.path();
            if fs::read_link(&path)
                .is_ok_and(|target| target.as_os_str().as_encoded_bytes().starts_with(b"/memfd:"))
            {
                self.add_file(MEMFD, path);
            }
        }
    }

    fn add_file(&mut self, what: &'static str, path: impl AsRef<Path>) {
        if let Ok(file) = fs::metadata(path) {
            let bytes = file.blocks() * 512;
            self.files
                .insert((file.dev(), file.ino()), Untracked { what, bytes });
        }
    }

    /// File systems in memory that are mounted in the container.
    fn add_mounted(&mut self, pid: i32) {
        let Ok(namespace) = fs::metadata(format!("/proc/{pid}/ns/mnt")) else {
            return;
        };
        if !self.namespaces.insert(namespace.ino()) {
            return;
        }
        let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        for target in mounts.lines().filter_map(tmpfs_target) {
            let place = format!("/proc/{pid}/root{target}");
            if let (Ok(root), Ok(usage)) = (fs::metadata(&place), rustix::fs::statvfs(&place)) {
                let used = usage.f_blocks.saturating_sub(usage.f_bfree) * usage.f_frsize;
                self.mounts.insert(root.dev(), used);
            }
        }
    }

    fn sums(&self) -> Vec<Untracked> {
        let sum = |kind| {
            let files = self.files.values().filter(|file| file.what == kind);
            files.map(|file| file.bytes).sum::<u64>()
        };
        let kinds = [
            (SHARED, sum(SHARED)),
            (MEMFD, sum(MEMFD)),
            (SYSV, sum(SYSV)),
            (TMPFS, self.mounts.values().sum()),
        ];
        kinds
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .map(|(what, bytes)| Untracked { what, bytes })
            .collect()
    }
}

/// What a shared area is of, if it is not of a file.
fn shared_kind(line: &Line<'_>) -> Option<&'static str> {
    if line.permissions.get(3) != Some(&b's') {
        return None;
    }
    match line.path {
        path if path.starts_with(b"/memfd:") => Some(MEMFD),
        path if path.starts_with(b"/SYSV") => Some(SYSV),
        b"/dev/zero (deleted)" => Some(SHARED),
        path if path.starts_with(b"[anon_shmem:") => Some(SHARED),
        _ => None,
    }
}

/// The mount point of a line of mountinfo that is a tmpfs.
fn tmpfs_target(line: &str) -> Option<String> {
    let (mount, file_system) = line.split_once(" - ")?;
    let is_tmpfs = file_system.starts_with("tmpfs ");
    let target = mount.split(' ').nth(4).filter(|_| is_tmpfs)?;
    // The kernel writes these characters of names as octal numbers.
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    let plain = escapes
        .iter()
        .fold(target.to_owned(), |text, (code, plain)| text.replace(code, plain));
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::{Found, MEMFD, SHARED, SYSV, Untracked, shared_kind, tmpfs_target};
    use crate::memory::areas::lines;
    use std::io::Write;

    #[test]
    fn shared_areas_are_known_by_their_names() {
        let maps = b"\
7f0000000000-7f0000001000 rw-s 00000000 00:01 4003 /dev/zero (deleted)
7f0000001000-7f0000002000 rw-s 00000000 00:01 4004 /memfd:x (deleted)
7f0000002000-7f0000003000 rw-s 00000000 00:01 4005 /SYSV00000000 (deleted)
7f0000003000-7f0000004000 rw-s 00000000 08:01 4006 /some/file
7f0000004000-7f0000005000 rw-p 00000000 00:01 4007 /memfd:x (deleted)
";
        let kinds: Vec<_> = lines(maps).map(|line| shared_kind(&line)).collect();
        assert_eq!(kinds, [Some(SHARED), Some(MEMFD), Some(SYSV), None, None]);
    }

    #[test]
    fn only_file_systems_in_memory_count() {
        let line = "40 29 0:33 / /dev/my\\040shm rw,nosuid shared:5 - tmpfs shm rw,size=65536k";
        assert_eq!(tmpfs_target(line).unwrap(), "/dev/my shm");
        assert_eq!(tmpfs_target("41 29 8:1 / /x rw - ext4 /dev/sda rw"), None);
    }

    #[test]
    fn a_memory_file_counts_once_and_by_what_is_in_it() {
        let file = rustix::fs::memfd_create("untracked", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = std::fs::File::from(file);
        file.set_len(1 << 30).unwrap();
        file.write_all(&[7; 10 << 12]).unwrap();
        let _second = file.try_clone().unwrap();
        let mut found = Found::default();
        found.add_open(std::process::id().cast_signed());
        found.add_open(std::process::id().cast_signed());
        let memfd = |found: &Untracked| found.what == MEMFD;
        assert_eq!(found.sums().into_iter().find(memfd).unwrap().bytes, 10 << 12);
    }
}
