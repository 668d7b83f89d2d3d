//! The archive of a small file system, as `tar --gzip` would write it, made and read in one buffer.
//!
//! CRIU starts `tar`, which starts `gzip`, for each tmpfs of a container, at the dump and at the restore: the device
//! directory, shared memory, and every directory that the runtime hides behind an empty one. Most are empty. What this
//! module writes any tar can read; what it reads is only what it has written itself, and everything else is left to tar.

/// Longest archive: what one stored block of deflate holds.
const MAX_TAR: usize = 65_535;
/// Of a header, and of what every part is filled up to.
const BLOCK: usize = 512;
/// gzip: deflate, no name, and our own mark where the time would be; then one stored block, the last.
const HEAD: [u8; 11] = [0x1f, 0x8b, 8, 0, b't', b'r', b's', b'h', 0, 0xff, 1];
/// Both lengths of the stored block.
const LENGTHS: usize = 4;
/// Checksum and length.
const TAIL: usize = 8;
/// Where the tar begins.
const START: usize = HEAD.len() + LENGTHS;
/// Longest file that is an archive.
pub const MAX_BYTES: usize = START + MAX_TAR + TAIL;
/// Longest name or target of a link; the header has a few more.
pub const MAX_NAME: usize = 90;

const NAME: usize = 0;
const MODE: usize = 100;
const OWNER: usize = 108;
const GROUP: usize = 116;
const SIZE: usize = 124;
const TIME: usize = 136;
const SUM: usize = 148;
const KIND: usize = 156;
const TARGET: usize = 157;
const MAGIC: usize = 257;

/// What an entry is; no other kind is written or read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory without entries of its own, or the root.
    Directory,
    /// A file without content.
    Empty,
    /// A symbolic link.
    Link,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// What it is.
    pub kind: Kind,
    /// A plain name; empty for the root, which comes first.
    pub name: &'a [u8],
    /// Where a link leads, else empty.
    pub target: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// As the container's user namespace numbers it.
    pub owner: u32,
    /// As the container's user namespace numbers it.
    pub group: u32,
    /// Last change, in seconds; tar's usual format knows no less.
    pub time: u64,
}

/// An archive being written.
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    used: usize,
}

impl<'a> Writer<'a> {
    /// Into a buffer of [`MAX_BYTES`] zeros.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, used: 0 }
    }

    /// Adds an entry; `None` where it cannot be told in this format.
    pub fn add(&mut self, entry: &Entry<'_>) -> Option<()> {
        let next = self.used + BLOCK;
        // Two blocks of zeros end the archive.
        if next + 2 * BLOCK > MAX_TAR || entry.name.len() > MAX_NAME || entry.target.len() > MAX_NAME {
            return None;
        }
        let header = self.buffer.get_mut(START + self.used..START + next)?;
        let (prefix, suffix): (&[u8], &[u8]) = match entry.kind {
            Kind::Directory if entry.name.is_empty() => (b"./", b""),
            Kind::Directory => (b"./", b"/"),
            _ => (b"./", b""),
        };
        put(header, NAME, prefix)?;
        put(header, NAME + prefix.len(), entry.name)?;
        put(header, NAME + prefix.len() + entry.name.len(), suffix)?;
        octal(header, MODE, 7, u64::from(entry.mode))?;
        octal(header, OWNER, 7, u64::from(entry.owner))?;
        octal(header, GROUP, 7, u64::from(entry.group))?;
        octal(header, SIZE, 11, 0)?;
        octal(header, TIME, 11, entry.time)?;
        let kind = match entry.kind {
            Kind::Directory => b"5",
            Kind::Empty => b"0",
            Kind::Link => b"2",
        };
        put(header, KIND, kind)?;
        put(header, TARGET, entry.target)?;
        put(header, MAGIC, b"ustar  ")?;
        let sum = sum(header);
        octal(header, SUM, 6, sum)?;
        put(header, SUM + 7, b" ")?;
        self.used = next;
        Some(())
    }

    /// The whole file.
    pub fn finish(self) -> Option<&'a [u8]> {
        let length = self.used + 2 * BLOCK;
        let short = u16::try_from(length).ok()?;
        put(self.buffer, 0, &HEAD)?;
        put(self.buffer, HEAD.len(), &short.to_le_bytes())?;
        put(self.buffer, HEAD.len() + 2, &(!short).to_le_bytes())?;
        let checked = crc(self.buffer.get(START..START + length)?);
        put(self.buffer, START + length, &checked.to_le_bytes())?;
        put(self.buffer, START + length + 4, &u32::from(short).to_le_bytes())?;
        self.buffer.get(..START + length + TAIL)
    }
}

/// The entries of a file that [`Writer`] has written; `None` for any other.
pub fn entries(file: &[u8]) -> Option<Entries<'_>> {
    let rest = file.strip_prefix(HEAD.as_slice())?;
    let (lengths, rest) = rest.split_at_checked(LENGTHS)?;
    let short = u16::from_le_bytes([*lengths.first()?, *lengths.get(1)?]);
    let (tar, tail) = rest.split_at_checked(usize::from(short))?;
    let whole = tail.len() == TAIL && tail.get(..4)? == crc(tar).to_le_bytes() && tar.len() % BLOCK == 0;
    whole.then_some(Entries { tar })
}

/// See [`entries`].
pub struct Entries<'a> {
    tar: &'a [u8],
}

impl<'a> Entries<'a> {
    /// The next entry; `Some(None)` at the end, `None` where something is wrong.
    pub fn read(&mut self) -> Option<Option<Entry<'a>>> {
        let (header, rest) = self.tar.split_at_checked(BLOCK)?;
        self.tar = rest;
        if header.iter().all(|byte| *byte == 0) {
            return Some(None);
        }
        let kind = match header.get(KIND)? {
            b'5' => Kind::Directory,
            b'0' => Kind::Empty,
            b'2' => Kind::Link,
            _ => return None,
        };
        let name = text(header, NAME, MODE)?.strip_prefix(b"./")?;
        let name = match kind {
            Kind::Directory => name.strip_suffix(b"/").unwrap_or(name),
            _ => name,
        };
        let plain = !name.contains(&b'/') && name != b"." && name != b"..";
        let named = !name.is_empty() || kind == Kind::Directory;
        (plain && named).then_some(Some(Entry {
            kind,
            name,
            target: text(header, TARGET, MAGIC)?,
            mode: u32::try_from(number(header, MODE, 7)?).ok()?,
            owner: u32::try_from(number(header, OWNER, 7)?).ok()?,
            group: u32::try_from(number(header, GROUP, 7)?).ok()?,
            time: number(header, TIME, 11)?,
        }))
    }
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) -> Option<()> {
    into.get_mut(at..at.checked_add(bytes.len())?)?
        .copy_from_slice(bytes);
    Some(())
}

/// `digits` octal digits; `None` where the number has more.
fn octal(into: &mut [u8], at: usize, digits: usize, number: u64) -> Option<()> {
    let mut rest = number;
    for digit in into.get_mut(at..at + digits)?.iter_mut().rev() {
        *digit = b'0' + (rest & 7) as u8;
        rest >>= 3;
    }
    (rest == 0).then_some(())
}

fn number(from: &[u8], at: usize, digits: usize) -> Option<u64> {
    let mut number = 0;
    for digit in from.get(at..at + digits)? {
        number = number * 8 + u64::from(digit.checked_sub(b'0').filter(|digit| *digit < 8)?);
    }
    Some(number)
}

fn text(from: &[u8], at: usize, end: usize) -> Option<&[u8]> {
    let field = from.get(at..end)?;
    let length = field.iter().position(|byte| *byte == 0)?;
    field.get(..length)
}

/// tar's checksum of a header: its bytes, with blanks in the checksum's own place.
fn sum(header: &[u8]) -> u64 {
    let own = SUM..SUM + 8;
    let bytes = header.iter().enumerate();
    bytes
        .map(|(at, byte)| if own.contains(&at) { 32 } else { u64::from(*byte) })
        .sum()
}

/// gzip's checksum.
fn crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::{Entry, Kind, MAX_BYTES, Writer, entries};
    use proptest::prelude::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    const ROOT: Entry<'_> = Entry {
        kind: Kind::Directory,
        name: b"",
        target: b"",
        mode: 0o1777,
        owner: 0,
        group: 70,
        time: 1_700_000_000,
    };
    const LINK: Entry<'_> = Entry {
        kind: Kind::Link,
        name: b"core",
        target: b"/proc/kcore",
        mode: 0o777,
        ..ROOT
    };
    const EMPTY: Entry<'_> = Entry {
        kind: Kind::Empty,
        name: b"null",
        mode: 0o644,
        ..ROOT
    };
    const PTS: Entry<'_> = Entry {
        name: b"pts",
        mode: 0o755,
        ..ROOT
    };

    fn archive(all: &[Entry<'_>]) -> Vec<u8> {
        let mut buffer = vec![0; MAX_BYTES];
        let mut writer = Writer::new(&mut buffer);
        for entry in all {
            writer.add(entry).unwrap();
        }
        writer.finish().unwrap().to_vec()
    }

    #[test]
    fn what_is_written_is_read() {
        let all = [ROOT, LINK, EMPTY, PTS];
        let file = archive(&all);
        let mut read = entries(&file).unwrap();
        for entry in all {
            assert_eq!(read.read().unwrap(), Some(entry));
        }
        assert_eq!(read.read().unwrap(), None);
    }

    #[test]
    fn tar_reads_it_too() {
        let mut tar = Command::new("tar")
            .args(["--list", "--gzip", "--verbose", "--numeric-owner"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let file = archive(&[ROOT, LINK, EMPTY, PTS]);
        tar.stdin.take().unwrap().write_all(&file).unwrap();
        let output = tar.wait_with_output().unwrap();
        let listed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        let lines: Vec<&str> = listed.lines().collect();
        assert!(
            lines[0].starts_with("drwxrwxrwt 0/70") && lines[0].ends_with(" ./"),
            "{listed}"
        );
        assert!(lines[1].ends_with(" ./core -> /proc/kcore"), "{listed}");
        assert!(
            lines[2].starts_with("-rw-r--r-- 0/70") && lines[2].ends_with(" ./null"),
            "{listed}"
        );
        assert!(lines[3].ends_with(" ./pts/"), "{listed}");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn what_does_not_fit_is_left_to_tar() {
        let mut buffer = vec![0; MAX_BYTES];
        let mut writer = Writer::new(&mut buffer);
        let long = [b'x'; 91];
        assert!(writer.add(&Entry { name: &long, ..EMPTY }).is_none());
        assert!(
            writer
                .add(&Entry {
                    owner: 1 << 21,
                    ..EMPTY
                })
                .is_none()
        );
        let mut added = 0;
        while writer.add(&EMPTY).is_some() {
            added += 1;
        }
        assert_eq!(added, 125);
        assert!(writer.finish().is_some());
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused() {
        for name in [&b".."[..], b"a/b", b"."] {
            let file = archive(&[Entry { name, ..EMPTY }]);
            assert!(entries(&file).unwrap().read().is_none(), "{name:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0usize..1500, new: u8) {
            let _ = entries(&bytes).map(|mut read| read.read());
            let mut file = archive(&[ROOT, LINK]);
            file[at] = new;
            if let Some(mut read) = entries(&file) {
                while let Some(Some(_)) = read.read() {}
            }
        }
    }
}
