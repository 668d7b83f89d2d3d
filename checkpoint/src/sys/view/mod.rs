//! A library for CRIU that answers some of its questions in the kernel's place: it shows page maps without pages, and saves
//! walks through tables that are known to be empty. And the board on which both sides say what is asked for and what is done.
//!
//! Why in CRIU's own process: a seccomp filter on CRIU could answer the call just as well, but a process with a filter
//! may not suspend the filters of others, which CRIU must for each task that has one.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

#[cfg(test)]
mod archive;
mod board;
#[cfg(test)]
mod paths;
#[cfg(test)]
mod preload;
#[cfg(test)]
mod scan;
#[cfg(test)]
mod tmpfs;
#[cfg(test)]
mod tracking;

/// Offsets in [`board::Board`].
const HIDDEN: u64 = offset_of!(board::Board, hidden) as u64;
const AREAS: u64 = offset_of!(board::Board, areas) as u64;
const ASKED: u64 = offset_of!(board::Board, asked) as u64;

/// The library, as `build.rs` has made it.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/view.so"));

/// The library for one program.
#[derive(Debug)]
pub struct View {
    library: File,
    board: File,
}

impl View {
    /// Makes the library and the board, both in memory.
    pub fn create() -> io::Result<Self> {
        let library = memory("tranship-view")?;
        library.write_all_at(LIBRARY, 0)?;
        let board = memory("tranship-view-board")?;
        ftruncate(&board, size_of::<board::Board>() as u64)?;
        Ok(Self { library, board })
    }

    /// Makes `program` load the library. It does so through this process, which must live until then. What it starts
    /// itself does not. In `areas` it finds the files that take the place of processes' `smaps`.
    pub fn give_to(&self, program: &mut Command, areas: &Path) {
        program
            .env("LD_PRELOAD", path(&self.library))
            .env(board::VARIABLE.trim_end_matches('\0'), path(&self.board))
            .env(board::AREAS.trim_end_matches('\0'), areas);
    }

    /// Has page maps shown without pages. To be said before the program is started.
    pub fn hide_pages(&self) -> io::Result<()> {
        self.ask(board::HIDE_PAGES)
    }

    /// Has the kernel's connection tracking left alone where it tracks nothing. For a dump only: a restore may have
    /// something to put there.
    pub fn skip_tracking(&self) -> io::Result<()> {
        self.ask(board::SKIP_TRACKING)
    }

    /// Has small file systems archived without tar.
    pub fn spare_tar(&self) -> io::Result<()> {
        self.ask(board::SMALL_ARCHIVES)
    }

    fn ask(&self, bit: u32) -> io::Result<()> {
        let asked = self.counter(ASKED) | bit;
        self.board.write_all_at(&asked.to_ne_bytes(), ASKED)
    }

    /// Waits until the program has loaded the library; false where it has not after `limit`: it is linked statically, or
    /// something forbids it.
    pub fn wait_loaded(&self, limit: Duration) -> bool {
        const STEP: Duration = Duration::from_millis(1);
        let end = Instant::now() + limit;
        loop {
            if self.counter(0) > 0 {
                return true;
            }
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(STEP);
        }
    }

    /// Whether the program has asked for the pages of anybody's memory, and been told that there are none.
    pub fn has_hidden(&self) -> bool {
        self.counter(HIDDEN) > 0
    }

    /// Of how many processes it has taken the areas from files.
    pub fn areas_taken(&self) -> u32 {
        self.counter(AREAS)
    }

    /// A number of [`board::Board`]; 0 where it cannot be read.
    fn counter(&self, offset: u64) -> u32 {
        let mut bytes = [0; size_of::<u32>()];
        match self.board.read_exact_at(&mut bytes, offset) {
            Ok(()) => u32::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }
}

fn memory(name: &str) -> io::Result<File> {
    let descriptor: OwnedFd = memfd_create(name, MemfdFlags::CLOEXEC)?;
    Ok(descriptor.into())
}

/// A name of the file that another process can open.
fn path(file: &File) -> OsString {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use super::View;
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    #[test]
    fn criu_loads_the_library_and_what_it_starts_does_not() {
        let view = View::create().unwrap();
        let run = |program: &Path| {
            let mut shell = Command::new(program);
            shell.args(["-c", "env; exec cat /proc/self/maps"]);
            view.give_to(&mut shell, Path::new("/proc"));
            String::from_utf8(shell.output().unwrap().stdout).unwrap()
        };
        // A script that starts CRIU is not CRIU.
        assert!(run(Path::new("/bin/sh")).contains("LD_PRELOAD"));
        assert!(!view.wait_loaded(Duration::ZERO));
        let dir = tempfile::tempdir().unwrap();
        let criu = dir.path().join("criu");
        // What another test starts would have the copy open for writing for a moment, if it were this process that made it.
        let copied = Command::new("cp").arg("/bin/sh").arg(&criu).status();
        assert!(copied.unwrap().success());
        let output = run(&criu);
        assert!(view.wait_loaded(Duration::ZERO), "{output}");
        assert!(output.contains("PATH="), "{output}");
        for word in ["LD_PRELOAD", "TRANSHIP_VIEW", "tranship-view"] {
            assert!(!output.contains(word), "{output}");
        }
        assert!(!view.has_hidden());
    }
}
