//! `/proc/PID/smaps` without its price.
//!
//! CRIU reads it for the flags of each area (`VmFlags`), which stand nowhere else. But the kernel looks at every page for
//! it: some 20 ms per GiB, in the blackout. So a program in the kernel tells the flags of a process's areas, which takes
//! microseconds, and the library in CRIU (see `crate::sys::view`) gives it the lines of `/proc/PID/maps` with these flags
//! instead. Where anything is unclear, no file is made, and CRIU reads the kernel's.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::wire::AREAS_NAME;
use crate::memory::PAGE_BYTES;
use crate::sys::bpf::{Instruction, Program};

mod flags;
mod types;

use types::Types;

/// Where the kernel describes its types.
const TYPES: &str = "/sys/kernel/btf/vmlinux";

/// What the program writes for each area: start, end, flags.
const RECORD: usize = 24;

/// Most areas of a process that are read: twice the kernel's usual limit.
const MAX_AREAS: usize = 1 << 17;

/// Below this much resident memory the kernel's own smaps takes less time than the program.
const WORTH_IT: u64 = 16 << 20;

/// How often the program is tried on a process whose areas change meanwhile.
const TRIES: usize = 10;

/// Why the flags cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum AreaFlagsError {
    /// The kernel does not describe what the program needs to know.
    #[error("the kernel's types in {TYPES} do not say where an area has its flags")]
    Types,
    /// Something could not be read, or the program was refused.
    #[error("a program that tells the flags of areas cannot be run: {0}")]
    Io(#[from] io::Error),
    /// It does not say what the kernel says.
    #[error("the flags of area {area} are told as {told:?} and the kernel says {kernel:?}")]
    Wrong {
        /// The area, as a line of `/proc/PID/maps`.
        area: String,
        /// Ours.
        told: String,
        /// The kernel's.
        kernel: String,
    },
    /// This process's areas change too fast, or have flags that only the kernel can name.
    #[error("the program could not be tried on this process")]
    Unsteady,
}

/// The areas of the processes of one dump, where the library in CRIU looks for them; removed with this.
#[derive(Debug)]
pub struct PreparedAreas {
    flags: AreaFlags,
    directory: PathBuf,
}

impl PreparedAreas {
    /// Makes ready to write areas down beside the relay's socket. Takes some milliseconds.
    pub fn create(relay_dir: &Path) -> Result<Self, AreaFlagsError> {
        let directory = relay_dir.join(AREAS_NAME);
        let flags = AreaFlags::load()?;
        fs::create_dir_all(&directory)?;
        Ok(Self { flags, directory })
    }

    /// Writes down the areas of those processes that have much memory; none may run until CRIU has dumped them. Returns
    /// of how many: of the others CRIU asks the kernel.
    pub fn write(&self, pids: &[i32]) -> io::Result<usize> {
        let mut written = 0;
        for pid in pids {
            let Some(pid) = u32::try_from(*pid).ok().filter(|pid| is_large(*pid)) else {
                continue;
            };
            let text = self.flags.text(pid).ok().flatten();
            if let Some(text) = text {
                fs::write(self.directory.join(pid.to_string()), text)?;
                written += 1;
            }
        }
        Ok(written)
    }
}

/// Whether a process has so much memory resident that its smaps takes long.
fn is_large(pid: u32) -> bool {
    let counts = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let resident = counts
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    resident.is_some_and(|pages| pages >= WORTH_IT / PAGE_BYTES)
}

impl Drop for PreparedAreas {
    fn drop(&mut self) {
        // Its parent directory goes with the dump in any case.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Tells the flags of areas.
#[derive(Debug)]
pub struct AreaFlags {
    program: Program,
}

impl AreaFlags {
    /// Loads the program and tries it on this process. Takes some milliseconds.
    pub fn load() -> Result<Self, AreaFlagsError> {
        let bytes = fs::read(TYPES)?;
        let types = Types::parse(&bytes).ok_or(AreaFlagsError::Types)?;
        let iterator = types.function("bpf_iter_task_vma");
        let fields = types.fields("vm_area_struct", ["vm_start", "vm_end", "vm_flags"]);
        let (iterator, fields) = iterator.zip(fields).ok_or(AreaFlagsError::Types)?;
        let program = Program::load(&instructions(fields), c"Dual MIT/GPL", iterator)?;
        let loaded = Self { program };
        loaded.try_on(std::process::id())?;
        Ok(loaded)
    }

    /// The lines of `/proc/PID/maps`, each with its flags. `None` where they cannot all be told.
    fn text(&self, pid: u32) -> io::Result<Option<String>> {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let records = records(self.program.of_task(pid)?)?;
        Ok(joined(&maps, &records))
    }

    /// Compares with the kernel's own words; of a process that runs, the areas that did not change in between.
    fn try_on(&self, pid: u32) -> Result<(), AreaFlagsError> {
        for _ in 0..TRIES {
            let kernel = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
            if let Some(told) = self.text(pid)? {
                return different(&told, &kernel);
            }
        }
        Err(AreaFlagsError::Unsteady)
    }
}

/// Reads what the program writes. Behind the last area an iterator may begin again with one of the last, so the first that
/// does not ascend is the end.
fn records(mut program: impl Read) -> io::Result<Vec<[u8; RECORD]>> {
    let mut all: Vec<[u8; RECORD]> = Vec::new();
    // The kernel hands out 32 KiB at a time, in whole records where there is room for them.
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = program.read(&mut buffer)?;
        let (records, rest) = buffer.get(..count).unwrap_or_default().as_chunks::<RECORD>();
        if !rest.is_empty() || all.len() > MAX_AREAS {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if records.is_empty() {
            return Ok(all);
        }
        for record in records {
            if all.last().is_some_and(|last| start(record) <= start(last)) {
                return Ok(all);
            }
            all.push(*record);
        }
    }
}

/// `maps` with the flags of `records` behind each line; `None` where they do not belong together.
fn joined(maps: &str, records: &[[u8; RECORD]]) -> Option<String> {
    let mut records = records.iter();
    let mut text = String::with_capacity(maps.len() * 2);
    for line in maps.lines() {
        text.push_str(line);
        text.push_str("\nVmFlags: ");
        let range = line.split(' ').next()?;
        if line.ends_with("[vsyscall]") {
            // The one line that is no area of the process.
            text.push('\n');
            continue;
        }
        let [start, end, flags] = numbers(records.next()?);
        if range != format!("{start:08x}-{end:08x}") {
            return None;
        }
        text.push_str(&flags::names(flags)?);
        text.push('\n');
    }
    records.next().is_none().then_some(text)
}

fn numbers(record: &[u8; RECORD]) -> [u64; 3] {
    let word = |index: usize| {
        let bytes = record.as_chunks::<8>().0.get(index).copied();
        u64::from_ne_bytes(bytes.unwrap_or_default())
    };
    [word(0), word(1), word(2)]
}

fn start(record: &[u8; RECORD]) -> u64 {
    let [start, ..] = numbers(record);
    start
}

/// An area that both know, with the flags that either gives it, if these are not the same for each.
fn different(told: &str, kernel: &str) -> Result<(), AreaFlagsError> {
    let told: BTreeMap<&str, String> = areas(told).collect();
    for (area, kernel) in areas(kernel) {
        if let Some(told) = told.get(area)
            && *told != kernel
        {
            return Err(AreaFlagsError::Wrong {
                area: area.to_owned(),
                told: told.clone(),
                kernel,
            });
        }
    }
    Ok(())
}

/// Each area of an smaps, with the flags that matter.
fn areas(smaps: &str) -> impl Iterator<Item = (&str, String)> {
    let mut area = "";
    smaps.lines().filter_map(move |line| {
        if let Some(flags) = line.strip_prefix("VmFlags: ") {
            return (!area.ends_with("[vsyscall]")).then(|| (area, flags::known(flags)));
        }
        if line.split(' ').next().unwrap_or_default().contains('-') {
            area = line;
        }
        None
    })
}

/// The program: writes start, end and flags of the area it is called for, if it is called for one.
fn instructions([start, end, flags]: [i16; 3]) -> [Instruction; 17] {
    /// Where the iterator's argument has its pointers.
    const META: i16 = 0;
    const AREA: i16 = 16;
    const SEQ_WRITE: i32 = 127;
    let plain = |code, registers, offset, constant| Instruction {
        code,
        registers,
        offset,
        constant,
    };
    // Loads a word from memory; stores one to it; registers are written destination first.
    let load = |to: u8, from: u8, offset| plain(0x79, from << 4 | to, offset, 0);
    let store = |offset| plain(0x7b, 2 << 4 | 10, offset, 0);
    [
        plain(0xbf, 1 << 4 | 6, 0, 0),
        load(7, 6, AREA),
        plain(0x15, 7, 12, 0),
        load(2, 7, start),
        store(-24),
        load(2, 7, end),
        store(-16),
        load(2, 7, flags),
        store(-8),
        load(1, 6, META),
        load(1, 1, 0),
        plain(0xbf, 10 << 4 | 2, 0, 0),
        plain(0x07, 2, 0, -24),
        plain(0xb7, 3, 0, RECORD as i32),
        plain(0x85, 0, 0, SEQ_WRITE),
        plain(0xb7, 0, 0, 0),
        plain(0x95, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::{AreaFlags, AreaFlagsError, RECORD, different, joined, records};

    const MAPS: &str = "00400000-00401000 r--p 00000000 00:00 0 \n7ffd0000-7ffe0000 rw-p 00000000 00:00 0   [stack]\n\
        ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0   [vsyscall]\n";

    fn record(start: u64, end: u64, flags: u64) -> [u8; RECORD] {
        let bytes: Vec<u8> = [start, end, flags]
            .into_iter()
            .flat_map(u64::to_ne_bytes)
            .collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn each_area_gets_its_flags() {
        let records = [
            record(0x40_0000, 0x40_1000, 0x2001),
            record(0x7ffd_0000, 0x7ffe_0000, 0x1 << 32 | 0x0002_0100),
        ];
        let text = joined(MAPS, &records).unwrap();
        let flags: Vec<&str> = text
            .lines()
            .filter_map(|line| line.strip_prefix("VmFlags: "))
            .collect();
        assert_eq!(flags, ["lo ", "gd dc ", ""]);
        assert_eq!(text.lines().count(), 6);
        let kernel = text.replace("lo ", "rd lo mr ");
        different(&text, &kernel).unwrap();
        let wrong = different(&text, &text.replace("dc ", ""));
        assert!(matches!(wrong, Err(AreaFlagsError::Wrong { .. })));
    }

    #[test]
    fn what_does_not_fit_together_is_not_told() {
        let first = record(0x40_0000, 0x40_1000, 0);
        let second = record(0x7ffd_0000, 0x7ffe_0000, 0);
        assert!(joined(MAPS, &[first, second]).is_some());
        for wrong in [
            vec![first],
            vec![second, first],
            vec![first, second, second],
            vec![first, record(0x7ffd_0000, 0x7fff_0000, 0)],
            // A bit that may be a shadow stack here and something else there.
            vec![first, record(0x7ffd_0000, 0x7ffe_0000, 1 << 37)],
        ] {
            assert_eq!(joined(MAPS, &wrong), None);
        }
    }

    #[test]
    fn an_iterator_that_begins_again_has_ended() {
        let all: Vec<_> = (1..9)
            .map(|page| record(page << 12, (page + 1) << 12, 0))
            .collect();
        let again = [all.clone(), all[5..].to_vec()].concat();
        for bytes in [all.as_flattened(), again.as_flattened()] {
            assert_eq!(records(bytes).unwrap(), all);
        }
        assert!(records(&all.as_flattened()[..30]).is_err());
    }

    #[test]
    fn the_program_says_what_the_kernel_says() {
        // It is tried on this process when it is loaded.
        let flags = AreaFlags::load().unwrap();
        let own = flags.text(std::process::id());
        assert!(
            own.unwrap()
                .is_none_or(|text| text.contains("[stack]\nVmFlags: gd "))
        );
    }
}
