//! The file that says that a container's memory is not complete. A dump would lose what is missing, without a word.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The filler that is at work, told apart from any process that gets its number later.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FillerProcess {
    /// Pid.
    pub pid: i32,
    /// Clock ticks between boot and its start: field 22 of `/proc/PID/stat`.
    pub start_ticks: u64,
}

/// The file, as long as this lives.
#[derive(Debug)]
pub(super) struct Mark {
    path: PathBuf,
}

impl Mark {
    /// Makes the file; one that an earlier filler has left is replaced.
    pub(super) fn make(path: &Path) -> io::Result<Self> {
        let pid = i32::try_from(std::process::id()).map_err(io::Error::other)?;
        let start_ticks = start_ticks(pid)?.ok_or(io::ErrorKind::NotFound)?;
        let text = serde_json::to_vec(&FillerProcess { pid, start_ticks })?;
        let staged = path.with_extension("new");
        fs::File::create(&staged)?.write_all(&text)?;
        fs::rename(&staged, path)?;
        Ok(Self {
            path: path.to_owned(),
        })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        // Left behind, it names a process that is gone.
        let _ = fs::remove_file(&self.path);
    }
}

/// The filler that the file `mark` speaks of, if it is still at work.
///
/// # Errors
/// The file or `/proc` cannot be read.
pub fn filling(mark: &Path) -> io::Result<Option<FillerProcess>> {
    let text = match fs::read(mark) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let filler: FillerProcess = serde_json::from_slice(&text)?;
    let alive = start_ticks(filler.pid)? == Some(filler.start_ticks);
    Ok(alive.then_some(filler))
}

/// When a process was started; nothing if it is not there or has ended.
fn start_ticks(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(None),
        Err(error) => return Err(error),
    };
    // The name is in parentheses and may hold anything, so fields are counted from its end: the state is the third.
    let mut fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_ascii_whitespace();
    let state = fields.next().unwrap_or_default();
    if matches!(state, "Z" | "X") {
        return Ok(None);
    }
    Ok(fields.nth(18).and_then(|ticks| ticks.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::{Mark, filling};

    #[test]
    fn the_mark_says_filling_until_it_is_dropped_or_its_process_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("filling");
        assert_eq!(filling(&path).unwrap(), None);
        let mark = Mark::make(&path).unwrap();
        let found = filling(&path).unwrap().unwrap();
        assert_eq!(found.pid, i32::try_from(std::process::id()).unwrap());
        std::fs::write(
            &path,
            format!(
                r#"{{"pid":{},"start_ticks":{}}}"#,
                found.pid,
                found.start_ticks - 1
            ),
        )
        .unwrap();
        assert_eq!(filling(&path).unwrap(), None);
        drop(mark);
        assert!(!path.exists());
    }
}
