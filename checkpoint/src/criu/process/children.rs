//! What CRIU has started and left behind: a dump ends with nothing of it.
//!
//! A CRIU that is killed does not end what it has forked, and some of that has stopped itself, for good. The relay is
//! who inherits it. In a restore it must not be: there the restored tasks are CRIU's children, and not the relay's to
//! keep or to end.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// How long they may take to end. Only one that hangs in the kernel takes longer than a moment, and is left to process 1.
const END: Duration = Duration::from_secs(2);

/// Pause between two looks at them.
const LOOK: Duration = Duration::from_micros(200);

/// From now on this process is the parent of what its children leave behind.
pub fn inherit() {
    // Every kernel that CRIU runs on can do this; without it the dump is as good.
    let _ = set_child_subreaper(true);
}

/// Ends every child, and the children that they leave. CRIU itself has been waited for.
pub fn end() {
    let deadline = Instant::now() + END;
    while any_left() && Instant::now() < deadline {
        for child in children() {
            // A child that nobody has waited for keeps its number, so this cannot be somebody else.
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits for those that have ended; says whether there are others.
fn any_left() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::StillAlive) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
}

fn children() -> BTreeSet<i32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let numbers = |list: String| -> Vec<i32> {
        list.split_whitespace()
            .filter_map(|number| number.parse().ok())
            .collect()
    };
    lists.flat_map(numbers).collect()
}
