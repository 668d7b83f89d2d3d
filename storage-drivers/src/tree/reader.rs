//! Reads a directory tree as a stream of parts.
//!
//! Names are opened one level at a time below descriptors that are held, and never followed: whatever happens to the
//! tree meanwhile, the reader does not leave it. Within a directory the names come sorted by byte, so that equal trees
//! give equal streams.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use prost::Message;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Stat, fstat, major, minor, open, openat, openat2,
    readlinkat, statat,
};
use rustix::io::Errno;
use tranship_proto::limits::{MAX_MESSAGE_BYTES, MAX_PATH_BYTES};
use tranship_proto::v1::{EntryKind, TreeEntry};

use super::attributes::modified;
use super::error::{Context, TreeError, shown};
use super::file::FileData;
use super::xattr::{Holder, XattrReader};
use super::{MAX_OPEN_DIRECTORIES, TreePart, TreeSummary};

const DIRECTORY: OFlags = OFlags::DIRECTORY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NONBLOCK);
/// `NONBLOCK`: should a fifo have taken the file's place, opening it must not wait for a writer.
const FILE: OFlags = OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);
const NAMES_BUFFER_BYTES: usize = 32 << 10;

/// An iterator over the parts of a tree. After an error or the last part it gives `None`.
pub struct TreeReader {
    /// The root first, the directory whose names come next last.
    open: Vec<Directory>,
    /// Path of the last directory of `open`.
    path: Vec<u8>,
    file: Option<FileData>,
    links: HashMap<u64, Links>,
    xattrs: XattrReader,
    summary: TreeSummary,
    device: u64,
    step: Step,
}

enum Step {
    Root,
    Below,
    Over,
}

struct Directory {
    /// `None` while the reader is too far below to keep it open.
    fd: Option<OwnedFd>,
    inode: u64,
    names: std::vec::IntoIter<CString>,
    /// Bytes of `TreeReader::path` that belong to the directory above.
    parent_bytes: usize,
}

/// A file with several names of which some are still to come.
struct Links {
    first: Vec<u8>,
    left: u64,
}

impl TreeReader {
    /// Opens a tree. The root itself may be reached through symlinks; nothing below it is.
    ///
    /// # Errors
    /// [`TreeError::Io`] when the root is no directory or cannot be read.
    pub fn open(root: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = root.as_os_str().as_encoded_bytes();
        let fd = open(root, flags, Mode::empty()).context("open the tree", name)?;
        let stat = fstat(&fd).context("look at", name)?;
        let names = names_of(fd.as_fd()).context("list", name)?;
        Ok(Self {
            open: vec![Directory {
                fd: Some(fd),
                inode: stat.st_ino,
                names,
                parent_bytes: 0,
            }],
            path: Vec::new(),
            file: None,
            links: HashMap::new(),
            xattrs: XattrReader::new(),
            summary: TreeSummary::default(),
            device: stat.st_dev,
            step: Step::Root,
        })
    }

    /// What was read so far; after the last part, the numbers of the whole tree.
    #[must_use]
    pub fn summary(&self) -> TreeSummary {
        self.summary
    }

    fn next_part(&mut self) -> Result<Option<TreePart>, TreeError> {
        if matches!(self.step, Step::Root) {
            self.step = Step::Below;
            return self.root_entry().map(Some);
        }
        if let Some(file) = &mut self.file {
            if let Some(piece) = file.next_piece()? {
                return Ok(Some(piece));
            }
            self.file = None;
        }
        while let Some(directory) = self.open.last_mut() {
            if let Some(name) = directory.names.next() {
                return self.entry(&name).map(Some);
            }
            self.path.truncate(directory.parent_bytes);
            self.open.pop();
        }
        Ok(None)
    }

    fn root_entry(&mut self) -> Result<TreePart, TreeError> {
        let fd = self
            .open
            .first()
            .and_then(|root| root.fd.as_ref())
            .ok_or(TreeError::Failed)?;
        let stat = fstat(fd).context("look at", b"")?;
        let mut entry = entry_of(&stat, EntryKind::Directory, Vec::new());
        entry.xattrs = self
            .xattrs
            .read(Holder::Open(fd.as_fd()))
            .context("read the extended attributes of", b"")?;
        finished(entry)
    }

    fn entry(&mut self, name: &CStr) -> Result<TreePart, TreeError> {
        let path = self.path_of(name)?;
        self.reopen()?;
        let Some(Directory { fd: Some(parent), .. }) = self.open.last() else {
            return Err(TreeError::Failed);
        };
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).context("look at", &path)?;
        if stat.st_dev != self.device {
            return Err(TreeError::OtherFileSystem { path: shown(&path) });
        }
        let file_type = FileType::from_raw_mode(stat.st_mode);
        if file_type == FileType::Directory {
            return self.directory(name, path, &stat);
        }
        if let Some(first) = self.earlier_name(&stat, &path) {
            let kind = EntryKind::Hardlink.into();
            return finished(TreeEntry {
                kind,
                path,
                link_target: first,
                ..TreeEntry::default()
            });
        }
        match file_type {
            FileType::RegularFile => self.regular_file(name, path, &stat),
            other => self.node(other, name, path, &stat),
        }
    }

    fn path_of(&self, name: &CStr) -> Result<Vec<u8>, TreeError> {
        let name = name.to_bytes();
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() >= MAX_PATH_BYTES {
            return Err(TreeError::PathTooLong {
                path: shown(&path),
                max: MAX_PATH_BYTES - 1,
            });
        }
        Ok(path)
    }

    /// The first name under which this file went by, if it did; forgets the file after its last name.
    fn earlier_name(&mut self, stat: &Stat, path: &[u8]) -> Option<Vec<u8>> {
        if stat.st_nlink < 2 {
            return None;
        }
        let Some(links) = self.links.get_mut(&stat.st_ino) else {
            self.links.insert(
                stat.st_ino,
                Links {
                    first: path.to_vec(),
                    left: stat.st_nlink - 1,
                },
            );
            return None;
        };
        links.left -= 1;
        if links.left == 0 {
            return self.links.remove(&stat.st_ino).map(|links| links.first);
        }
        Some(links.first.clone())
    }

    fn directory(&mut self, name: &CStr, path: Vec<u8>, seen: &Stat) -> Result<TreePart, TreeError> {
        let (fd, stat) = open_seen(self.innermost()?, name, DIRECTORY, seen, &path)?;
        let mut entry = entry_of(&stat, EntryKind::Directory, path);
        let attributes = self.xattrs.read(Holder::Open(fd.as_fd()));
        entry.xattrs = attributes.context("read the extended attributes of", &entry.path)?;
        let names = names_of(fd.as_fd()).context("list", &entry.path)?;
        let parent_bytes = self.path.len();
        self.path.clone_from(&entry.path);
        self.open.push(Directory {
            fd: Some(fd),
            inode: stat.st_ino,
            names,
            parent_bytes,
        });
        // The root stays open: from it the others are found again.
        if let Some(far) = self
            .open
            .len()
            .checked_sub(MAX_OPEN_DIRECTORIES)
            .filter(|&far| far > 0)
        {
            self.open[far].fd = None;
        }
        finished(entry)
    }

    fn regular_file(&mut self, name: &CStr, path: Vec<u8>, seen: &Stat) -> Result<TreePart, TreeError> {
        let (fd, stat) = open_seen(self.innermost()?, name, FILE, seen, &path)?;
        let mut entry = entry_of(&stat, EntryKind::File, path);
        entry.size = u64::try_from(stat.st_size).unwrap_or(0);
        let attributes = self.xattrs.read(Holder::Open(fd.as_fd()));
        entry.xattrs = attributes.context("read the extended attributes of", &entry.path)?;
        if entry.size > 0 {
            self.file = Some(FileData::new(fd, entry.path.clone(), &stat));
        }
        finished(entry)
    }

    fn node(
        &mut self,
        kind: FileType,
        name: &CStr,
        path: Vec<u8>,
        stat: &Stat,
    ) -> Result<TreePart, TreeError> {
        let kind = match kind {
            FileType::Symlink => EntryKind::Symlink,
            FileType::Fifo => EntryKind::Fifo,
            FileType::Socket => EntryKind::Socket,
            FileType::CharacterDevice => EntryKind::CharDevice,
            FileType::BlockDevice => EntryKind::BlockDevice,
            _ => return Err(TreeError::Changed { path: shown(&path) }),
        };
        let mut entry = entry_of(stat, kind, path);
        if matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice) {
            entry.device_major = major(stat.st_rdev);
            entry.device_minor = minor(stat.st_rdev);
        }
        let Some(Directory { fd: Some(parent), .. }) = self.open.last() else {
            return Err(TreeError::Failed);
        };
        if kind == EntryKind::Symlink {
            let target = readlinkat(parent, name, Vec::new()).context("read the symlink", &entry.path)?;
            entry.link_target = target.into_bytes();
        }
        let attributes = self.xattrs.read(Holder::Named(parent.as_fd(), name));
        entry.xattrs = attributes.context("read the extended attributes of", &entry.path)?;
        finished(entry)
    }

    fn innermost(&self) -> Result<BorrowedFd<'_>, TreeError> {
        self.open
            .last()
            .and_then(|directory| directory.fd.as_ref())
            .map(AsFd::as_fd)
            .ok_or(TreeError::Failed)
    }

    /// Opens the innermost directory again if it was closed while the reader was far below it.
    fn reopen(&mut self) -> Result<(), TreeError> {
        let [Directory { fd: Some(root), .. }, .., directory] = &mut self.open[..] else {
            return Ok(());
        };
        if directory.fd.is_some() {
            return Ok(());
        }
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let fd =
            openat2(root, &self.path[..], DIRECTORY, Mode::empty(), beneath).context("open", &self.path)?;
        if fstat(&fd).context("look at", &self.path)?.st_ino != directory.inode {
            return Err(TreeError::Changed {
                path: shown(&self.path),
            });
        }
        directory.fd = Some(fd);
        Ok(())
    }
}

impl Iterator for TreeReader {
    type Item = Result<TreePart, TreeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if matches!(self.step, Step::Over) {
            return None;
        }
        let part = self.next_part().transpose();
        match &part {
            Some(Ok(TreePart::Entry(_))) => self.summary.entries += 1,
            Some(Ok(TreePart::Data { bytes, .. })) => self.summary.bytes += bytes.len() as u64,
            Some(Err(_)) | None => self.step = Step::Over,
        }
        part
    }
}

/// Opens what was looked at a moment ago, and makes sure that it is still the same.
fn open_seen(
    parent: BorrowedFd<'_>,
    name: &CStr,
    flags: OFlags,
    seen: &Stat,
    path: &[u8],
) -> Result<(OwnedFd, Stat), TreeError> {
    // Reading must not change access times; only the owner and root may ask for that.
    let opened = match openat(parent, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(parent, name, flags, Mode::empty()),
        other => other,
    };
    let fd = match opened {
        Err(Errno::LOOP | Errno::NOTDIR | Errno::NXIO | Errno::NOENT) => {
            return Err(TreeError::Changed { path: shown(path) });
        }
        other => other.context("open", path)?,
    };
    let stat = fstat(&fd).context("look at", path)?;
    if stat.st_ino != seen.st_ino || stat.st_dev != seen.st_dev {
        return Err(TreeError::Changed { path: shown(path) });
    }
    Ok((fd, stat))
}

fn names_of(directory: BorrowedFd<'_>) -> rustix::io::Result<std::vec::IntoIter<CString>> {
    let mut buffer = vec![MaybeUninit::uninit(); NAMES_BUFFER_BYTES];
    let mut listing = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names.into_iter())
}

fn entry_of(stat: &Stat, kind: EntryKind, path: Vec<u8>) -> TreeEntry {
    let (mtime_s, mtime_ns) = modified(stat);
    TreeEntry {
        kind: kind.into(),
        path,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_s,
        mtime_ns,
        ..TreeEntry::default()
    }
}

fn finished(entry: TreeEntry) -> Result<TreePart, TreeError> {
    let bytes = entry.encoded_len();
    if bytes > MAX_MESSAGE_BYTES as usize {
        return Err(TreeError::EntryTooLarge {
            path: shown(&entry.path),
            bytes,
            max: MAX_MESSAGE_BYTES,
        });
    }
    Ok(TreePart::Entry(entry))
}
