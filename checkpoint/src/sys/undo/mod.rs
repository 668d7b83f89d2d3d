//! A library for CRIU that keeps a journal of what it changes in tasks, and the reading of that journal.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;

use rustix::fs::{MemfdFlags, memfd_create};

mod layout;
#[cfg(test)]
#[expect(dead_code, reason = "CRIU and the loader call it")]
mod preload;
mod slot;
pub mod thread;

pub use slot::Before;

use layout::{Journal, SLOTS, Slot};

/// The library, as `build.rs` has made it.
const LIBRARY: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/undo.so"));

/// The library and an empty journal, for one CRIU.
#[derive(Debug)]
pub struct Undo {
    library: File,
    journal: OsString,
}

impl Undo {
    /// Makes the library, in memory, and the journal at `path`, which outlives this process.
    pub fn create(path: &Path) -> io::Result<Self> {
        let descriptor: OwnedFd = memfd_create("tranship-undo", MemfdFlags::CLOEXEC)?;
        let library: File = descriptor.into();
        library.write_all_at(LIBRARY, 0)?;
        let journal = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        journal.set_len(size_of::<Journal>() as u64)?;
        Ok(Self {
            library,
            journal: path.as_os_str().to_owned(),
        })
    }

    /// Makes `program` load the library, after those it loads already. It does so through this process, which must live
    /// until then.
    pub fn give_to(&self, program: &mut Command) {
        let library = format!("/proc/{}/fd/{}", std::process::id(), self.library.as_raw_fd());
        let others = program
            .get_envs()
            .find_map(|(name, value)| (name == "LD_PRELOAD").then_some(value).flatten());
        let mut all = others.map_or_else(OsString::new, |others| {
            let mut others = others.to_owned();
            others.push(":");
            others
        });
        all.push(library);
        let name = OsStr::new(layout::VARIABLE.to_str().unwrap_or_default());
        program.env("LD_PRELOAD", all).env(name, &self.journal);
    }
}

/// What the threads that CRIU has changed were before; empty where there is no journal, or nothing in it.
pub fn read(path: &Path) -> io::Result<Vec<Before>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        file => file?,
    };
    let mut number = [0; size_of::<u32>()];
    file.read_exact_at(&mut number, 0)?;
    let count = (u32::from_ne_bytes(number) as usize).min(SLOTS);
    let mut found = Vec::new();
    for index in 0..count {
        file.read_exact_at(
            &mut number,
            (offset_of!(Journal, threads) + index * size_of::<u32>()) as u64,
        )?;
        let at = offset_of!(Journal, slots) + index * size_of::<Slot>();
        if let (Ok(thread), Some(slot)) = (
            i32::try_from(u32::from_ne_bytes(number)),
            read_slot(&file, at as u64)?,
        ) {
            found.push(Before::new(thread, slot));
        }
    }
    Ok(found)
}

/// A slot in which something is foreign.
fn read_slot(file: &File, at: u64) -> io::Result<Option<Box<Slot>>> {
    let mut bytes = vec![0; size_of::<Slot>()];
    file.read_exact_at(&mut bytes, at)?;
    let slot = slot::of_bytes(&bytes);
    Ok(slot.filter(|slot| slot::is_changed(slot)))
}

#[cfg(test)]
mod tests {
    use super::{Undo, read};
    use std::process::Command;

    #[test]
    fn a_program_that_is_not_criu_hands_the_library_on_and_writes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("undo");
        assert!(read(&path).unwrap().is_empty());
        let undo = Undo::create(&path).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", "env"]).env("LD_PRELOAD", "/nowhere.so");
        undo.give_to(&mut shell);
        let output = String::from_utf8(shell.output().unwrap().stdout).unwrap();
        assert!(output.contains("LD_PRELOAD=/nowhere.so:/proc/"), "{output}");
        assert!(output.contains("TRANSHIP_UNDO="), "{output}");
        assert!(read(&path).unwrap().is_empty());
    }
}
