//! Where the cgroups of a container are, on cgroup v1 and v2.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// Pause between two attempts to remove a cgroup whose last process is still being reaped.
const LOOK: Duration = Duration::from_millis(2);

/// Which of the two interfaces runc uses on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller. A v2 hierarchy mounted beside them is not used.
    V1,
    /// One hierarchy, at /sys/fs/cgroup itself.
    V2,
}

/// Why a container's cgroup cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host has no hierarchy for the controller.
    #[error("no cgroup hierarchy with the {controller} controller is mounted on this host")]
    NoHierarchy {
        /// The controller.
        controller: &'static str,
    },
    /// The cgroup does not exist.
    #[error("the cgroup {} does not exist", path.display())]
    Missing {
        /// Its directory.
        path: PathBuf,
    },
    /// The path does not name a cgroup below the root.
    #[error("`{cgroup}` is not an absolute cgroup path below the root")]
    BadPath {
        /// The path.
        cgroup: String,
    },
    /// A file of the cgroup cannot be used.
    #[error("{} cannot be {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read`, `written` or `removed`.
        action: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A file of the cgroup holds something unexpected.
    #[error("{} holds `{text}`, which is not understood", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

const UNIFIED_ROOT: &str = "/sys/fs/cgroup";

impl CgroupVersion {
    /// Decides as runc does: v2 where /sys/fs/cgroup itself is a cgroup2 file system.
    pub fn detect() -> Self {
        match fs::read_to_string("/proc/self/mountinfo") {
            Ok(mounts) => Self::of_mounts(&mounts),
            Err(_) => Self::V1,
        }
    }

    fn of_mounts(mountinfo: &str) -> Self {
        // Later mounts cover earlier ones at the same place.
        match Mount::all(mountinfo)
            .filter(|mount| mount.target == UNIFIED_ROOT)
            .last()
        {
            Some(mount) if mount.kind == "cgroup2" => Self::V2,
            _ => Self::V1,
        }
    }
}

/// The directory of `cgroup` (`/parent/id`) in the hierarchy that has `controller`.
///
/// On v2 the controller makes no difference. Fails where the directory is missing.
pub fn directory(cgroup: &str, controller: &'static str) -> Result<PathBuf, CgroupError> {
    let root = root(controller)?;
    let path = root.join(relative(cgroup)?);
    if path.is_dir() {
        Ok(path)
    } else {
        Err(CgroupError::Missing { path })
    }
}

/// Every directory that is `cgroup` in one of the host's hierarchies, those that exist only.
pub fn all_directories(cgroup: &str) -> Result<Vec<PathBuf>, CgroupError> {
    let relative = relative(cgroup)?.to_owned();
    let mountinfo = read(Path::new("/proc/self/mountinfo"))?;
    let mounts = Mount::all(&mountinfo).filter(|mount| mount.kind == "cgroup" || mount.kind == "cgroup2");
    let paths = mounts.map(|mount| Path::new(mount.target).join(&relative));
    Ok(paths.filter(|path| path.is_dir()).collect())
}

fn root(controller: &'static str) -> Result<PathBuf, CgroupError> {
    let mountinfo = read(Path::new("/proc/self/mountinfo"))?;
    if CgroupVersion::of_mounts(&mountinfo) == CgroupVersion::V2 {
        return Ok(UNIFIED_ROOT.into());
    }
    Mount::all(&mountinfo)
        .find(|mount| mount.kind == "cgroup" && mount.options.split(',').any(|option| option == controller))
        .map(|mount| PathBuf::from(mount.target))
        .ok_or(CgroupError::NoHierarchy { controller })
}

/// The path without its slash. A root, a relative path or one that climbs is refused: what is done to a container's
/// cgroup must never be done to somebody else's.
fn relative(cgroup: &str) -> Result<&str, CgroupError> {
    let bad = || CgroupError::BadPath {
        cgroup: cgroup.to_owned(),
    };
    let relative = cgroup.strip_prefix('/').ok_or_else(bad)?;
    let sound = relative
        .split('/')
        .all(|part| !part.is_empty() && part != "." && part != "..");
    if sound { Ok(relative) } else { Err(bad()) }
}

/// The processes in a cgroup directory and below it. One that is gone by the time it is read holds none.
pub fn processes(directory: &Path) -> Result<Vec<i32>, CgroupError> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        let file = next.join("cgroup.procs");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(source) if gone(&source) => continue,
            Err(source) => {
                return Err(CgroupError::Io {
                    path: file,
                    action: "read",
                    source,
                });
            }
        };
        found.extend(text.lines().filter_map(|line| line.trim().parse::<i32>().ok()));
        waiting.extend(children(&next)?);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The cgroups directly below a cgroup.
pub fn children(directory: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(source) if gone(&source) => return Ok(Vec::new()),
        Err(source) => {
            return Err(CgroupError::Io {
                path: directory.to_owned(),
                action: "read",
                source,
            });
        }
    };
    let directories = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.map(|entry| entry.path()).collect())
}

/// What is mounted strictly below a directory, deepest first.
pub(crate) fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, CgroupError> {
    let mountinfo = read(Path::new("/proc/self/mountinfo"))?;
    let mut found: Vec<PathBuf> = Mount::all(&mountinfo)
        .map(|mount| PathBuf::from(mount.target))
        .filter(|target| target != directory && target.starts_with(directory))
        .collect();
    found.sort_unstable();
    found.reverse();
    Ok(found)
}

/// Removes `cgroup` and what is below it from every hierarchy, waiting for processes that are on their way out.
pub async fn remove(cgroup: &str, deadline: Instant) -> Result<(), CgroupError> {
    for directory in all_directories(cgroup)? {
        loop {
            match remove_tree(&directory) {
                Err(CgroupError::Io { source, .. }) if busy(&source) && Instant::now() < deadline => {
                    tokio::time::sleep(LOOK).await;
                }
                other => break other?,
            }
        }
    }
    Ok(())
}

fn remove_tree(directory: &Path) -> Result<(), CgroupError> {
    for child in children(directory)? {
        remove_tree(&child)?;
    }
    match fs::remove_dir(directory) {
        Err(source) if !gone(&source) => Err(CgroupError::Io {
            path: directory.to_owned(),
            action: "removed",
            source,
        }),
        _ => Ok(()),
    }
}

fn busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// Bytes of memory that a container cannot do without: what is charged to its cgroup, but for cached file content, which
/// the kernel takes back when it needs room and which does not move.
pub fn memory_bytes(cgroup: &str) -> Result<u64, CgroupError> {
    let directory = directory(cgroup, "memory")?;
    let name = match CgroupVersion::detect() {
        CgroupVersion::V1 => "memory.usage_in_bytes",
        CgroupVersion::V2 => "memory.current",
    };
    let path = directory.join(name);
    let text = read(&path)?;
    let charged: u64 = text.trim().parse().map_err(|_| CgroupError::Content {
        path,
        text: text.trim().to_owned(),
    })?;
    Ok(charged.saturating_sub(cached_bytes(&read(&directory.join("memory.stat"))?)))
}

/// Bytes of cached file content in a `memory.stat`, children included: version 1 has a second set of lines for that.
/// Shared memory is on other lists.
fn cached_bytes(stat: &str) -> u64 {
    let of = |name: &str| -> Option<u64> {
        let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
        lines.find(|(key, _)| *key == name)?.1.parse().ok()
    };
    let list = |name: &str| of(&format!("total_{name}")).or_else(|| of(name));
    ["inactive_file", "active_file"]
        .into_iter()
        .filter_map(list)
        .sum()
}

pub(crate) fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Io {
        path: path.to_owned(),
        action: "read",
        source,
    })
}

pub(crate) fn write(path: &Path, text: &str) -> Result<(), CgroupError> {
    fs::write(path, text).map_err(|source| CgroupError::Io {
        path: path.to_owned(),
        action: "written",
        source,
    })
}

fn gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ENODEV)
}

/// One line of mountinfo.
struct Mount<'a> {
    target: &'a str,
    kind: &'a str,
    /// Of the file system, not of the mount.
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn all(mountinfo: &'a str) -> impl Iterator<Item = Self> {
        mountinfo.lines().filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let mut file_system = file_system.split(' ');
            let kind = file_system.next()?;
            let _source = file_system.next()?;
            Some(Self {
                target: mount.split(' ').nth(4)?,
                kind,
                options: file_system.next()?,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{CgroupError, CgroupVersion, Mount, cached_bytes, relative};

    const HYBRID: &str = "\
20 1 0:20 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
21 20 0:21 / /sys/fs/cgroup/freezer rw,relatime shared:1 - cgroup cgroup rw,freezer
22 20 0:22 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";
    const UNIFIED: &str = "20 1 0:20 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";

    #[test]
    fn a_hybrid_host_counts_as_v1() {
        assert_eq!(CgroupVersion::of_mounts(HYBRID), CgroupVersion::V1);
        assert_eq!(CgroupVersion::of_mounts(UNIFIED), CgroupVersion::V2);
        assert_eq!(CgroupVersion::of_mounts(""), CgroupVersion::V1);
    }

    #[test]
    fn cached_files_are_found_in_the_stat_of_either_version() {
        let v1 = "cache 9\nshmem 2\ninactive_file 3\nactive_file 4\ntotal_shmem 2\ntotal_inactive_file 30\n\
                  total_active_file 40\ntotal_unevictable 5\n";
        assert_eq!(cached_bytes(v1), 70);
        let v2 = "anon 100\nfile 9\nshmem 2\ninactive_anon 8\ninactive_file 3\nactive_file 4\n";
        assert_eq!(cached_bytes(v2), 7);
        assert_eq!(cached_bytes(""), 0);
    }

    #[test]
    fn optional_fields_of_a_mount_do_not_shift_the_others() {
        let freezer = Mount::all(HYBRID).nth(1).unwrap();
        assert_eq!(
            (freezer.target, freezer.kind, freezer.options),
            ("/sys/fs/cgroup/freezer", "cgroup", "rw,freezer")
        );
    }

    #[test]
    fn the_root_and_climbing_paths_are_refused() {
        for path in ["/", "", "tranship/x", "/a/../b", "/a//b", "/.", "/a/"] {
            assert!(
                matches!(relative(path), Err(CgroupError::BadPath { .. })),
                "{path}"
            );
        }
        assert_eq!(relative("/tranship/x").unwrap(), "tranship/x");
    }
}
