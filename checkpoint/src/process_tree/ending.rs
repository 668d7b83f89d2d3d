//! Whether a process has begun to end. From then on it does nothing of its own any more, but still has what it had.

use std::fs;

/// Of the flags in `/proc/PID/stat`: the task is on its way out, or was killed by a signal and begins to be.
const ENDING: u32 = 0x4 | 0x400;

/// Which of the fields behind the name in `/proc/PID/stat` has the flags.
const FLAGS: usize = 6;

/// Whether `pid` has begun to end, or is gone.
pub(crate) fn is_ending(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| flags(&stat).is_none_or(|flags| flags & ENDING != 0))
}

/// The flags in the line of `/proc/PID/stat`, whose name may hold anything.
fn flags(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(FLAGS)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{flags, is_ending};
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn the_flags_stand_behind_any_name() {
        let stat = "77 (a) 9 (b) S 1 77 77 0 -1 4194560 100 0";
        assert_eq!(flags(stat), Some(4_194_560));
        assert_eq!(flags("77 (a) S 1"), None);
    }

    #[test]
    fn a_process_that_was_killed_and_not_waited_for_is_ending() {
        let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(sleep.id()).unwrap();
        assert!(!is_ending(pid));
        sleep.kill().unwrap();
        while !is_ending(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
        sleep.wait().unwrap();
        assert!(is_ending(pid));
    }
}
