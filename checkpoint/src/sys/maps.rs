//! The list of areas of an address space.
#![expect(unsafe_code, reason = "PROCMAP_QUERY has no safe wrapper")]

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

const PROCMAP_QUERY: libc::Ioctl = 0xC068_6611_u32 as libc::Ioctl;

/// `struct procmap_query` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Argument {
    size: u64,
    query_flags: u64,
    address: u64,
    start: u64,
    end: u64,
    flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    device: [u32; 2],
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

const _: () = assert!(size_of::<Argument>() == 104);

/// `/proc/PID/maps` of one address space, which it stays with when the process executes another program.
#[derive(Debug)]
pub struct Maps {
    file: File,
}

impl Maps {
    /// Of the process `pid`, a number of this process's own pid namespace.
    pub fn open(pid: i32) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/maps"))?;
        Ok(Self { file })
    }

    /// Puts the text of the list into `into`. It is put together piece by piece while the process goes on, and empty for
    /// an address space that is gone.
    pub fn read(&self, into: &mut Vec<u8>) -> io::Result<()> {
        const STEP: usize = 64 << 10;
        into.clear();
        loop {
            let length = into.len();
            into.resize(length + STEP, 0);
            let read = self.file.read_at(&mut into[length..], length as u64)?;
            into.truncate(length + read);
            if read == 0 {
                return Ok(());
            }
        }
    }

    /// The area that holds `address`, None where there is none. `ENOTTY` on kernels before 6.11.
    pub fn at(&self, address: u64) -> io::Result<Option<Range<u64>>> {
        let mut argument = Argument {
            size: size_of::<Argument>() as u64,
            address,
            ..Argument::default()
        };
        // SAFETY: the descriptor is open; `argument` has the layout and says the size that the kernel expects and is
        // writable; it asks for no name and no build id, so the kernel writes nowhere else.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), PROCMAP_QUERY, &raw mut argument) };
        if result == 0 {
            return Ok(Some(argument.start..argument.end));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            error => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Maps;

    #[test]
    fn the_areas_of_the_list_are_those_that_are_asked_for_one_by_one() {
        let maps = Maps::open(std::process::id().cast_signed()).unwrap();
        let mut text = Vec::new();
        maps.read(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.lines().count() > 5);
        // The program's own code does not move.
        let line = text.lines().find(|line| line.contains("r-xp")).unwrap();
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let range = number(start)..number(end);
        match maps.at(range.start + 1) {
            Ok(found) => assert_eq!(found, Some(range)),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOTTY)),
        }
        if let Ok(found) = maps.at(0) {
            assert_eq!(found, None);
        }
    }
}
