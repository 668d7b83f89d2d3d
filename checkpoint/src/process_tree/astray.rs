//! Whether a task stands where it would be when CRIU had let go of it.
//!
//! For a dump CRIU has a task execute system calls at the beginning of one of its own executable areas, by which it maps
//! code of CRIU's, and then that code. A CRIU that fails or dies leaves the code mapped and the task, in nearly every
//! case, with its own registers again: tried with CRIU's faults 1 (it kills itself) and 5 (its code does not answer).
//! What must not be let run is a task that stands in that code or at such a call. The task must be frozen meanwhile.

use std::fs;
use std::ops::Range;

/// A call that CRIU puts into a task has fewer bytes than this.
const INJECTED_BYTES: u64 = 16;

/// An executable area of a process.
struct Area {
    start: u64,
    end: u64,
    foreign: bool,
}

/// Where code of CRIU's is mapped in the process of a thread.
pub(super) fn foreign_areas(thread: i32, parasite: &str) -> Vec<Range<u64>> {
    let maps = fs::read_to_string(format!("/proc/{thread}/maps")).unwrap_or_default();
    maps.lines()
        .filter_map(|line| executable(line, parasite))
        .filter(|area| area.foreign)
        .map(|area| area.start..area.end)
        .collect()
}

/// A thread of `pid`, other than those to leave out, that stands in the middle of what CRIU had it do; `parasite` is in the name of the area of CRIU's
/// code. None when nothing of CRIU is mapped in the process.
pub(super) fn find(pid: i32, parasite: &str, leave_out: impl Fn(i32) -> bool) -> Option<i32> {
    // A process that has ended meanwhile has nothing left in it.
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    if !maps.contains(parasite) {
        return None;
    }
    let areas: Vec<Area> = maps
        .lines()
        .filter_map(|line| executable(line, parasite))
        .collect();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    threads.flatten().find_map(|thread| {
        let task = thread.file_name().to_str()?.parse().ok()?;
        if leave_out(task) {
            return None;
        }
        let state = fs::read_to_string(thread.path().join("syscall")).ok()?;
        is_astray(&state, &areas).then_some(task)
    })
}

/// The area of a line of `maps`, if code can be executed there.
fn executable(line: &str, parasite: &str) -> Option<Area> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    if !words.next()?.contains('x') {
        return None;
    }
    let number = |text| u64::from_str_radix(text, 16).ok();
    Some(Area {
        start: number(start)?,
        end: number(end)?,
        foreign: line.contains(parasite),
    })
}

/// Judges by what `/proc/PID/task/TID/syscall` says, whose last word is where the thread stands.
fn is_astray(state: &str, areas: &[Area]) -> bool {
    let word = state
        .split_whitespace()
        .next_back()
        .and_then(|word| word.strip_prefix("0x"));
    let Some(at) = word.and_then(|word| u64::from_str_radix(word, 16).ok()) else {
        // "running": it is not frozen, so this says nothing good.
        return true;
    };
    match areas.iter().find(|area| (area.start..area.end).contains(&at)) {
        Some(area) => area.foreign || at - area.start < INJECTED_BYTES,
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "55edbe901000-55edbe9a0000 r-xp 00001000 08:01 77  /usr/bin/redis-server
55edbe9a0000-55edbe9b0000 rw-p 000a0000 08:01 77  /usr/bin/redis-server
7fefe460a000-7fefe460f000 r-xs 00000000 00:01 4003  /memfd:CRIUMFD (deleted)
7fefe460f000-7fefe4663000 rw-s 00005000 00:01 4003  /memfd:CRIUMFD (deleted)
7fefe4b00000-7fefe4c90000 r-xp 00026000 08:01 99  /usr/lib/libc.so.6";

    fn astray(state: &str) -> bool {
        let areas: Vec<Area> = MAPS
            .lines()
            .filter_map(|line| executable(line, "CRIUMFD"))
            .collect();
        assert_eq!(areas.len(), 3);
        is_astray(state, &areas)
    }

    #[test]
    fn a_task_that_waits_in_its_own_library_is_its_own_again() {
        assert!(!astray(
            "232 0x5 0x7fefe4365e00 0x2790 0x51 0x2 0x0 0x7ffeded9ee50 0x7fefe4c3cf36\n"
        ));
        assert!(!astray("-1 0x7ffeded9ee50 0x55edbe901234\n"));
    }

    #[test]
    fn a_task_in_crius_code_or_at_a_call_of_crius_is_not() {
        assert!(astray(
            "45 0x3 0x1 0x1 0x0 0x0 0x0 0x7ffeded9ee50 0x7fefe460a123\n"
        ));
        assert!(astray("-1 0x7ffeded9ee50 0x55edbe901002\n"));
        assert!(astray("-1 0x7ffeded9ee50 0x123\n"), "nowhere");
        assert!(astray("running\n"));
        assert!(astray(""));
    }
}
