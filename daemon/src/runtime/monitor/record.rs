//! What a monitor leaves in the bundle for whoever comes later: `monitor.json` when the container exists, `exit` when
//! it has ended. Both appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest record that is read.
const MAX_RECORD_BYTES: u64 = 64 << 10;

/// What is kept of the disk for a record that is written later: some hundred bytes are needed.
const ROOM_BYTES: u64 = 4 << 10;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// Its first process's exit code, or 128 + signal; none if nobody was there to see it.
    pub exit_code: Option<i32>,
    /// When, in milliseconds since the Unix epoch.
    pub finished_ms: i64,
    /// Whether the kernel killed one of its processes for its memory limit.
    pub oom_killed: bool,
    /// Whether the monitor killed it because its memory could not be completed after a migration.
    #[serde(default)]
    pub memory_lost: bool,
}

/// A process, told apart from any other that has or had its number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// As the host numbers it.
    pub pid: i32,
    /// Clock ticks between boot and its start: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
    /// Which boot that was.
    pub boot_id: String,
}

impl ProcessId {
    /// The process that has this number now.
    ///
    /// # Errors
    /// There is none, or `/proc` cannot be read.
    pub fn of(pid: i32) -> io::Result<Self> {
        let (_, start_ticks) = read_stat(pid)?;
        Ok(Self {
            pid,
            start_ticks,
            boot_id: boot_id()?,
        })
    }

    /// Whether the process still exists and has not ended; one that nobody has reaped yet has ended.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let now = read_stat(self.pid);
        now.is_ok_and(|(state, start)| start == self.start_ticks && !matches!(state, 'Z' | 'X'))
            && boot_id().is_ok_and(|id| id == self.boot_id)
    }
}

/// Who watches a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MonitorRecord {
    /// The monitor.
    pub monitor: ProcessId,
    /// The container's first process; none while it is being made or restored.
    pub init: Option<ProcessId>,
    /// When the container came to life on this host, in milliseconds since the Unix epoch; 0 before.
    pub started_ms: i64,
}

/// State letter and start time of a process.
fn read_stat(pid: i32) -> io::Result<(char, u64)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat"))?).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("/proc/{pid}/stat is not of the known form"),
        )
    })
}

/// The name is in parentheses and may hold anything, so fields are counted from its end.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    // The state is field 3, so field 22 is the nineteenth after it.
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Reads a record; none if there is no such file.
pub(crate) fn read_record<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = io::read_to_string(io::Read::take(file, MAX_RECORD_BYTES))?;
    serde_json::from_str(&text).map(Some).map_err(io::Error::from)
}

/// Writes a record so that it is there whole or not at all, and stays there when the machine stops.
pub(crate) fn write_record<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    let staged = path.with_extension("new");
    // What was kept of the disk for it is not given back first.
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&staged)?;
    let bytes = serde_json::to_vec(record)?;
    file.write_all(&bytes)?;
    file.set_len(bytes.len() as u64)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// Keeps so much of the disk free that a record can be written later, however full it is then. On a file system that cannot promise
/// that, nothing is done.
pub(crate) fn keep_room(path: &Path) -> io::Result<()> {
    let staged = path.with_extension("new");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&staged)?;
    match fallocate(&file, FallocateFlags::KEEP_SIZE, 0, ROOM_BYTES) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        kept => Ok(kept?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1 2";
        assert_eq!(parse_stat(stat), Some(('S', 98765)));
        assert_eq!(parse_stat("7 (a"), None);
        assert_eq!(parse_stat("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_alive_and_its_namesake_is_not() {
        let me = ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        let earlier = ProcessId {
            start_ticks: me.start_ticks - 1,
            ..me.clone()
        };
        assert!(!earlier.is_alive());
        let other_boot = ProcessId {
            boot_id: "another".to_owned(),
            ..me
        };
        assert!(!other_boot.is_alive());
    }

    #[test]
    fn what_room_was_kept_for_is_written_whole_and_nothing_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        keep_room(&path).unwrap();
        write_record(&path, &"a longer one").unwrap();
        keep_room(&path).unwrap();
        write_record(&path, &"short").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "\"short\"");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_record_is_read_as_written_and_absent_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        assert_eq!(read_record::<ExitStatus>(&path).unwrap(), None);
        let status = ExitStatus {
            exit_code: Some(137),
            finished_ms: 5,
            oom_killed: true,
            memory_lost: false,
        };
        write_record(&path, &status).unwrap();
        assert_eq!(read_record(&path).unwrap(), Some(status));
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "the staged file was left"
        );
    }

    #[test]
    fn a_torn_record_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("exit");
        fs::write(&path, br#"{"exit_code":"#).unwrap();
        assert!(read_record::<ExitStatus>(&path).is_err());
    }
}
