//! What a CRIU has left behind whose relay was killed with it, so that nobody has inherited it but process 1.
//!
//! The relay marks a CRIU, in its environment and by the journal that it maps. What CRIU forks has the mapping too, and what
//! it starts has the environment.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::wire::environment;

/// How long they may take to end.
const END: Duration = Duration::from_secs(2);

/// Ends what is left of the CRIU whose dump has `journal`, but never a process of the container, those in `tasks`; returns
/// what does not end.
pub fn end(journal: &Path, tasks: &[i32]) -> Vec<i32> {
    let deadline = Instant::now() + END;
    loop {
        let found = find(journal, tasks);
        for (_, process) in &found {
            // One that has ended meanwhile is what is wanted.
            let _ = pidfd_send_signal(process, Signal::KILL);
        }
        let ended = found.iter().all(|(_, process)| has_ended(process, deadline));
        // Looked at again: one of them may have forked another before it was killed.
        if found.is_empty() || !ended {
            return found.into_iter().map(|(pid, _)| pid).collect();
        }
    }
}

/// Each with a descriptor, by which it is signalled: its number may be somebody else's by then.
fn find(journal: &Path, tasks: &[i32]) -> Vec<(i32, OwnedFd)> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    numbers
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| !tasks.contains(pid))
        .filter_map(|pid| {
            let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
            is_of(pid, journal).ok()?.then_some((pid, process))
        })
        .collect()
}

fn is_of(pid: i32, journal: &Path) -> io::Result<bool> {
    let journal = journal.as_os_str();
    let environ = fs::read(format!("/proc/{pid}/environ"))?;
    Ok(names(&environ, journal) || maps(&fs::read(format!("/proc/{pid}/maps"))?, journal))
}

fn names(environ: &[u8], journal: &OsStr) -> bool {
    environ.split(|byte| *byte == 0).any(|variable| {
        variable
            .strip_prefix(environment::DUMP.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="))
            == Some(journal.as_bytes())
    })
}

fn maps(areas: &[u8], journal: &OsStr) -> bool {
    areas.split(|byte| *byte == b'\n').any(|area| {
        let area = area.strip_suffix(b" (deleted)").unwrap_or(area);
        let before = area.strip_suffix(journal.as_bytes());
        before.is_some_and(|before| before.ends_with(b" "))
    })
}

fn has_ended(process: &OwnedFd, deadline: Instant) -> bool {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], left) {
            Err(Errno::EINTR) => {}
            ready => return ready.is_ok_and(|ready| ready > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{end, maps, names};
    use crate::criu::wire::environment;
    use std::ffi::OsStr;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    #[test]
    fn only_the_whole_path_is_the_journal() {
        let journal = OsStr::new("/run/m/undo");
        assert!(names(b"A=1\0TRANSHIP_DUMP=/run/m/undo\0B=2\0", journal));
        assert!(!names(b"TRANSHIP_DUMP=/run/m/undo2\0", journal));
        assert!(!names(b"X_TRANSHIP_DUMP=/run/m/undo\0", journal));
        assert!(!names(b"", journal));
        assert!(maps(b"7f00-7f01 rw-s 0 0:2 3      /run/m/undo\n", journal));
        assert!(maps(
            b"7f00-7f01 rw-s 0 0:2 3      /run/m/undo (deleted)\n",
            journal
        ));
        assert!(!maps(b"7f00-7f01 rw-s 0 0:2 3      /other/run/m/undo\n", journal));
        assert!(!maps(b"7f00-7f01 rw-s 0 0:2 3      /run/m/undo2\n", journal));
    }

    #[test]
    fn what_bears_the_mark_ends_even_if_it_has_stopped_and_nobody_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("undo");
        let stopped = |journal| {
            let mut shell = Command::new("sh");
            shell
                .args(["-c", "kill -STOP $$"])
                .env(environment::DUMP, journal);
            shell.spawn().unwrap()
        };
        let mut other = stopped(directory.path().join("another"));
        let (mut one, mut two) = (stopped(journal.clone()), stopped(journal.clone()));
        let pid = |child: &std::process::Child| i32::try_from(child.id()).unwrap();
        assert!(end(&journal, &[pid(&two)]).is_empty());
        assert_eq!(one.wait().unwrap().signal(), Some(9));
        assert!(two.try_wait().unwrap().is_none(), "it is the container's");
        assert!(other.try_wait().unwrap().is_none());
        assert!(end(&journal, &[]).is_empty());
        assert_eq!(two.wait().unwrap().signal(), Some(9));
        other.kill().unwrap();
        other.wait().unwrap();
    }
}
