//! The areas of an address space, as `/proc/PID/maps` lists them.

use std::ops::Range;

/// What an area is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory without a file, the heap and stacks included.
    Anonymous,
    /// A file's pages, and copies of those that were written.
    File,
    /// Code that the kernel gives to every process. A dump holds all of it.
    Vdso,
    /// Data of the kernel's, which belongs to the host: no dump holds it.
    Kernel,
}

/// A private area: what is written there is seen by this address space alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Area {
    /// Its addresses.
    pub range: Range<u64>,
    /// What it is made of.
    pub kind: Kind,
    /// Whether the process may write there now.
    pub writable: bool,
    /// Whether the process may execute what is there.
    pub executable: bool,
}

/// The private areas in the text of a `maps` file, in ascending order. Lines that are not understood are none.
pub fn private(maps: &[u8]) -> impl Iterator<Item = Area> {
    lines(maps)
        .filter(|line| line.permissions.get(3) == Some(&b'p'))
        .map(|line| Area {
            kind: line.kind(),
            writable: line.permissions.get(1) == Some(&b'w'),
            executable: line.permissions.get(2) == Some(&b'x'),
            range: line.range,
        })
}

/// One line of a `maps` file.
pub struct Line<'a> {
    /// The addresses.
    pub range: Range<u64>,
    /// Four letters: read, write, execute, and private or shared.
    pub permissions: &'a [u8],
    /// The file's inode, 0 where there is no file.
    pub inode: u64,
    /// The file, or what the kernel calls the area.
    pub path: &'a [u8],
}

/// The lines of a `maps` file.
pub fn lines(maps: &[u8]) -> impl Iterator<Item = Line<'_>> {
    maps.split(|byte| *byte == b'\n').filter_map(parse)
}

fn parse(line: &[u8]) -> Option<Line<'_>> {
    let (range, rest) = word(line)?;
    let (permissions, rest) = word(rest)?;
    let (_offset, rest) = word(rest)?;
    let (_device, rest) = word(rest)?;
    let (inode, rest) = word(rest)?;
    let dash = range.iter().position(|byte| *byte == b'-')?;
    let start = number(&range[..dash], 16)?;
    let end = number(&range[dash + 1..], 16)?;
    Some(Line {
        range: Some(start..end).filter(|range| !range.is_empty())?,
        permissions,
        inode: number(inode, 10)?,
        path: rest.trim_ascii_start(),
    })
}

fn word(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|byte| *byte == b' ').unwrap_or(text.len());
    Some(text.split_at(end)).filter(|(word, _)| !word.is_empty())
}

fn number(text: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(text).ok()?, radix).ok()
}

impl Line<'_> {
    fn kind(&self) -> Kind {
        match self.path {
            b"[vdso]" => Kind::Vdso,
            b"[vsyscall]" | b"[uprobes]" => Kind::Kernel,
            path if path.starts_with(b"[vvar") => Kind::Kernel,
            _ if self.inode != 0 => Kind::File,
            _ => Kind::Anonymous,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, lines, private};
    use proptest::prelude::*;

    const MAPS: &[u8] = b"\
55edbe901000-55edbe9a0000 r-xp 00001000 08:01 77                         /usr/bin/some server
55edbe9a0000-55edbe9b0000 rw-p 000a0000 08:01 77                         /usr/bin/some server
5610a1c00000-5610a1c21000 rw-p 00000000 00:00 0                          [heap]
7f0000000000-7f0000001000 rw-s 00000000 00:01 4003                       /dev/zero (deleted)
7f0000001000-7f0000002000 ---p 00000000 00:00 0 
7ffd1f9b3000-7ffd1f9b7000 r--p 00000000 00:00 0                          [vvar]
7ffd1f9b7000-7ffd1f9b9000 r--p 00000000 00:00 0                          [vvar_vclock]
7ffd1f9b9000-7ffd1f9bb000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn private_areas_are_told_apart_and_shared_ones_left_out() {
        let found: Vec<_> = private(MAPS)
            .map(|area| (area.kind, area.writable, area.executable))
            .collect();
        let expected = [
            (Kind::File, false, true),
            (Kind::File, true, false),
            (Kind::Anonymous, true, false),
            (Kind::Anonymous, false, false),
            (Kind::Kernel, false, false),
            (Kind::Kernel, false, false),
            (Kind::Vdso, false, true),
            (Kind::Kernel, false, true),
        ];
        assert_eq!(found, expected);
        let first = private(MAPS).next().unwrap();
        assert_eq!(first.range, 0x55ed_be90_1000..0x55ed_be9a_0000);
    }

    #[test]
    fn every_line_says_which_file_it_is_of() {
        let shared = lines(MAPS).nth(3).unwrap();
        assert_eq!(shared.inode, 4003);
        assert_eq!(shared.path, b"/dev/zero (deleted)");
        let named = lines(MAPS).next().unwrap();
        assert_eq!(named.path, b"/usr/bin/some server");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_fail(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = private(&text).count();
        }
    }
}
