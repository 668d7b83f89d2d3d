//! A layer's tar stream becomes a directory. The tar crate only parses; what is done with an entry is here, and where, in
//! [`super::place`].
//!
//! Entries come in any order and may come twice: the later one counts, and a directory keeps what is in it. Whiteouts of
//! the image format (`.wh.NAME`, `.wh..wh..opq`) become those of the overlay file system. Owners are numbers; the ids of
//! names in the archive belong to another machine.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timestamps, XattrFlags, chmodat, chownat, ftruncate, linkat, lsetxattr,
    makedev, mknodat, openat, symlinkat, utimensat,
};
use rustix::io::{Errno, pwrite};
use tar::{Entry, EntryType, Header};

use super::attributes::{self, Attributes};
use super::error::ExtractError;
use super::headers::guard;
use super::limits::MAX_ENTRIES;
use super::place::{InnerPath, Place};
use super::room::Room;

const BUFFER_BYTES: usize = 128 << 10;
const BLOCK_BYTES: u64 = 512;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// Extracts the stream into the empty directory `root`. Bytes behind the end mark are left unread.
pub(super) fn extract(stream: impl Read, root: OwnedFd) -> Result<(), ExtractError> {
    let damaged = |source| ExtractError::Damaged { source };
    let room = root.try_clone().map_err(|source| ExtractError::Room { source })?;
    let mut layer = Layer {
        place: Place::new(root),
        room: Room::of(room),
        buffer: vec![0; BUFFER_BYTES],
    };
    let (reader, headers) = guard(stream);
    let mut archive = tar::Archive::new(reader);
    let mut entries = archive.entries().map_err(damaged)?;
    let mut count = 0;
    let mut end = 0;
    while let Some(entry) = headers.next(&mut entries) {
        let mut entry = entry.map_err(damaged)?;
        count += 1;
        if count > MAX_ENTRIES {
            return Err(ExtractError::TooMuch {
                what: "entries",
                limit: MAX_ENTRIES,
            });
        }
        layer.room.take(BLOCK_BYTES)?;
        layer.add(&mut entry)?;
        io::copy(&mut entry, &mut io::sink()).map_err(damaged)?;
        end = headers.position().next_multiple_of(BLOCK_BYTES);
    }
    // The parser takes the end of the stream for the archive's; only a block of zeroes behind the last entry is.
    if headers.position() < end + BLOCK_BYTES {
        return Err(ExtractError::NoEnd);
    }
    layer.place.finish()
}

struct Layer {
    place: Place,
    room: Room,
    buffer: Vec<u8>,
}

impl Layer {
    fn add<R: Read>(&mut self, entry: &mut Entry<'_, R>) -> Result<(), ExtractError> {
        let kind = entry.header().entry_type();
        if kind.is_pax_global_extensions() {
            return Ok(());
        }
        let written = entry.path_bytes().into_owned();
        let path = InnerPath::parse(&written)?;
        // Before PAX and ustar a directory was a file with a slash at its end.
        let is_directory = kind.is_dir() || (kind.is_file() && written.ends_with(b"/"));
        let attributes = attributes::read(entry, &path)?;
        if path.is_root() {
            return if is_directory {
                self.set_root(&attributes)
            } else {
                Err(unsupported(kind, &path))
            };
        }
        let name = path.split().1.to_vec();
        if name == OPAQUE {
            let (folder, _) = path.split();
            return self.place.make_opaque(&folder);
        }
        if name.starts_with(WHITEOUT_META) {
            // Notes of aufs to itself.
            return Ok(());
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return match hidden {
                b"" | b"." | b".." => Err(bad_entry(&path, "a whiteout of nothing")),
                hidden => self.place.white_out(&path.sibling(hidden)),
            };
        }
        if is_directory {
            self.place.make_directory(&path)?;
            self.place.remember(&path, attributes.time)?;
        } else {
            self.place.clear(&path)?;
            self.create(entry, kind, &path)?;
            if kind.is_hard_link() {
                return Ok(());
            }
        }
        self.set(&path, kind, &attributes)
    }

    fn create<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        kind: EntryType,
        path: &InnerPath,
    ) -> Result<(), ExtractError> {
        let (folder, name) = path.split();
        let failed = |action| ExtractError::file::<Errno>(action, path.bytes());
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                self.create_file(entry, path)
            }
            EntryType::Link => self.create_link(entry, path),
            EntryType::Symlink => {
                let target = link_target(entry, path)?;
                let fd = self.place.directory(&folder)?;
                symlinkat(target.as_slice(), fd, name).map_err(failed("make the link"))
            }
            EntryType::Char | EntryType::Block => {
                let device = device_number(entry.header(), path)?;
                let kind = if kind == EntryType::Char {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                let fd = self.place.directory(&folder)?;
                mknodat(fd, name, kind, Mode::empty(), device).map_err(failed("make the device"))
            }
            EntryType::Fifo => {
                let fd = self.place.directory(&folder)?;
                mknodat(fd, name, FileType::Fifo, Mode::empty(), 0).map_err(failed("make the fifo"))
            }
            kind => Err(unsupported(kind, path)),
        }
    }

    /// Writes a file; blocks of zeroes become holes.
    fn create_file<R: Read>(
        &mut self,
        entry: &mut Entry<'_, R>,
        path: &InnerPath,
    ) -> Result<(), ExtractError> {
        let (folder, name) = path.split();
        let failed = |action| ExtractError::file::<Errno>(action, path.bytes());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(
            self.place.directory(&folder)?,
            name,
            flags,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(failed("make"))?;
        let size = entry.size();
        let mut at = 0_u64;
        loop {
            let length = fill(entry, &mut self.buffer).map_err(|source| ExtractError::Damaged { source })?;
            if length == 0 {
                break;
            }
            let mut part = self.buffer.get(..length).unwrap_or_default();
            if part.iter().all(|byte| *byte == 0) {
                at += length as u64;
                continue;
            }
            self.room.take(length as u64)?;
            while !part.is_empty() {
                let written = pwrite(&file, part, at).map_err(failed("write to"))?;
                part = part.get(written..).unwrap_or_default();
                at += written as u64;
            }
        }
        if at != size {
            return Err(ExtractError::Cut {
                path: text(path.bytes()),
            });
        }
        ftruncate(&file, size).map_err(failed("set the length of"))
    }

    fn create_link<R: Read>(&mut self, entry: &Entry<'_, R>, path: &InnerPath) -> Result<(), ExtractError> {
        let target = InnerPath::parse(&link_target(entry, path)?)?;
        let (from_folder, from_name) = target.split();
        let (folder, name) = path.split();
        let from = self.place.directory(&from_folder)?;
        let from = from
            .try_clone_to_owned()
            .map_err(ExtractError::file("open", from_folder.bytes()))?;
        let to = self.place.directory(&folder)?;
        match linkat(&from, from_name, to, name, AtFlags::empty()) {
            Err(Errno::NOENT) => {
                let what = format!(
                    "a hard link to {:?}, which the layer does not have yet",
                    text(target.bytes())
                );
                Err(ExtractError::Entry {
                    path: text(path.bytes()),
                    what,
                })
            }
            result => result.map_err(ExtractError::file("make the hard link", path.bytes())),
        }
    }

    /// Owner before mode and attributes: a change of owner takes set-user-id bits and capabilities away.
    fn set(&mut self, path: &InnerPath, kind: EntryType, it: &Attributes) -> Result<(), ExtractError> {
        let (folder, name) = path.split();
        let fd = self.place.directory(&folder)?;
        let failed = |action| ExtractError::file::<Errno>(action, path.bytes());
        chownat(
            fd,
            name,
            Some(it.owner.0),
            Some(it.owner.1),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(failed("set the owner of"))?;
        if !kind.is_symlink() {
            // Nobody else is at work here: the name is what was just made, and no link.
            chmodat(fd, name, it.mode, AtFlags::empty()).map_err(failed("set the mode of"))?;
        }
        set_xattrs(fd, name, path, &it.xattrs)?;
        let times = Timestamps {
            last_access: it.time,
            last_modification: it.time,
        };
        utimensat(fd, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("set the times of"))
    }

    fn set_root(&mut self, it: &Attributes) -> Result<(), ExtractError> {
        let root = InnerPath::parse(b"")?;
        self.place.remember(&root, it.time)?;
        let fd = self.place.directory(&root)?;
        let failed = |action| ExtractError::file::<Errno>(action, b"/");
        chownat(fd, ".", Some(it.owner.0), Some(it.owner.1), AtFlags::empty())
            .map_err(failed("set the owner of"))?;
        chmodat(fd, ".", it.mode, AtFlags::empty()).map_err(failed("set the mode of"))?;
        set_xattrs(fd, b".", &root, &it.xattrs)
    }
}

fn set_xattrs(
    folder: BorrowedFd<'_>,
    name: &[u8],
    path: &InnerPath,
    xattrs: &[(String, Vec<u8>)],
) -> Result<(), ExtractError> {
    for (key, value) in xattrs {
        let mut target = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
        target.extend_from_slice(name);
        match lsetxattr(target.as_slice(), key.as_str(), value, XattrFlags::empty()) {
            // Labels of a security module that this host does not have.
            Err(Errno::OPNOTSUPP) if key.starts_with("security.") && key != "security.capability" => {}
            result => result.map_err(ExtractError::file("set an extended attribute of", path.bytes()))?,
        }
    }
    Ok(())
}

fn link_target<R: Read>(entry: &Entry<'_, R>, path: &InnerPath) -> Result<Vec<u8>, ExtractError> {
    let target = entry
        .link_name_bytes()
        .map(std::borrow::Cow::into_owned)
        .unwrap_or_default();
    if target.is_empty() || target.contains(&0) {
        return Err(bad_entry(path, "a link to nothing"));
    }
    Ok(target)
}

fn device_number(header: &Header, path: &InnerPath) -> Result<u64, ExtractError> {
    match (header.device_major(), header.device_minor()) {
        (Ok(Some(major)), Ok(Some(minor))) => Ok(makedev(major, minor)),
        _ => Err(bad_entry(path, "a device without a number")),
    }
}

/// As much as fits, or all there is.
fn fill(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn unsupported(kind: EntryType, path: &InnerPath) -> ExtractError {
    ExtractError::Kind {
        path: text(path.bytes()),
        kind: char::from(kind.as_byte()),
    }
}

/// An error about an entry.
pub(super) fn bad_entry(path: &InnerPath, what: &str) -> ExtractError {
    ExtractError::Entry {
        path: text(path.bytes()),
        what: what.to_owned(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
