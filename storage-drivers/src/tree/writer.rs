//! Makes a directory tree from a stream of parts that a peer sent, and trusts none of them.
//!
//! - A path is checked component by component, and then opened by `openat2`, which the kernel holds beneath the root,
//!   away from symlinks and mount points. A symlink in the stream is therefore never followed by a later part.
//! - Everything is created exclusively: a path that comes twice is an error, never an overwrite.
//! - A hard link's target must have come before in this stream; the directory was empty, so nothing else is there.
//! - Data belong to the last file, ascend, and stay within the size that its entry gave.
//!
//! Directories get their mode, attributes and time when the writer leaves them, so that a read-only one can be filled
//! and a default access control list is not inherited by what the stream describes itself. Entries may come in any
//! order in which parents precede their children: a directory that is entered again gets its time back afterwards.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, ftruncate, linkat, makedev, mkdirat, mknodat,
    openat2, statat, symlinkat, syncfs,
};
use rustix::io::{Errno, pwrite};
use tranship_proto::limits::{MAX_DATA_BYTES, MAX_FILE_BYTES, MAX_PATH_BYTES, MAX_TREE_ENTRIES};
use tranship_proto::points;
use tranship_proto::v1::{EntryKind, TreeEntry};

use super::attributes::{Attributes, Kept};
use super::error::{Context, Refusal, TreeError};
use super::path::{check, is_within, split};
use super::{MAX_OPEN_DIRECTORIES, TreePart, TreeSummary};

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Writes one tree into an empty directory. Dropped without [`TreeWriter::finish`], or after an error, it leaves a
/// part of a tree behind, which the caller discards.
pub struct TreeWriter {
    /// The root first; each further one lies somewhere below the one before it.
    open: Vec<OpenDirectory>,
    file: Option<OpenFile>,
    summary: TreeSummary,
    failed: bool,
}

struct OpenDirectory {
    fd: OwnedFd,
    path: Vec<u8>,
    leave: Leave,
}

/// What a directory gets when the writer leaves it.
enum Leave {
    /// It was made for the entry that says this.
    New(Attributes),
    /// It was there already.
    Again(Kept),
}

struct OpenFile {
    fd: OwnedFd,
    path: Vec<u8>,
    attributes: Attributes,
    size: u64,
    /// End of the data that have come.
    end: u64,
}

impl TreeWriter {
    /// Begins to write into `root`, an open, empty directory.
    ///
    /// # Errors
    /// [`TreeError::Io`] when it is not empty or not a directory.
    pub fn create(root: OwnedFd) -> Result<Self, TreeError> {
        require_empty(&root).context("write a tree into", b"")?;
        let kept = Kept::take(&root, b"")?;
        let root = OpenDirectory {
            fd: root,
            path: Vec::new(),
            leave: Leave::Again(kept),
        };
        Ok(Self {
            open: vec![root],
            file: None,
            summary: TreeSummary::default(),
            failed: false,
        })
    }

    /// Writes one part.
    ///
    /// # Errors
    /// [`TreeError::Refused`] for what no correct sender sends, [`TreeError::Io`] when the kernel refuses; afterwards
    /// only [`TreeError::Failed`].
    pub fn apply(&mut self, part: TreePart) -> Result<(), TreeError> {
        match part {
            TreePart::Entry(entry) => self.entry(entry),
            TreePart::Data { offset, bytes } => self.data(offset, &bytes),
        }
    }

    /// Makes one entry; [`TreeWriter::apply`] without a [`TreePart`] around it.
    ///
    /// # Errors
    /// As [`TreeWriter::apply`].
    pub fn entry(&mut self, entry: TreeEntry) -> Result<(), TreeError> {
        self.guarded(|writer| writer.make_entry(entry))
    }

    /// Writes data of the last file from a buffer that the caller keeps.
    ///
    /// # Errors
    /// As [`TreeWriter::apply`].
    pub fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TreeError> {
        self.guarded(|writer| writer.write_data(offset, bytes))
    }

    /// Ends the tree and brings it to the disk: what this has returned for survives a loss of power.
    ///
    /// # Errors
    /// As [`TreeWriter::apply`].
    pub fn finish(mut self) -> Result<TreeSummary, TreeError> {
        self.guarded(|writer| {
            let root = writer.settle()?;
            points::step("storage:sync-received", || syncfs(&root.fd)).context("bring to the disk", b"")?;
            Ok(writer.summary)
        })
    }

    /// Ends the tree, which whoever owns its file system brings to the disk.
    ///
    /// # Errors
    /// As [`TreeWriter::apply`].
    pub fn close(mut self) -> Result<TreeSummary, TreeError> {
        self.guarded(|writer| writer.settle().map(drop))?;
        Ok(self.summary)
    }

    /// Leaves everything but the root, which gets its attributes.
    fn settle(&mut self) -> Result<&OpenDirectory, TreeError> {
        self.close_file()?;
        while self.open.len() > 1 {
            self.leave_innermost()?;
        }
        let root = self.open.first().ok_or(TreeError::Failed)?;
        root.settle()?;
        Ok(root)
    }

    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T, TreeError>) -> Result<T, TreeError> {
        if self.failed {
            return Err(TreeError::Failed);
        }
        let result = step(self);
        self.failed = result.is_err();
        result
    }

    fn make_entry(&mut self, mut entry: TreeEntry) -> Result<(), TreeError> {
        self.close_file()?;
        let path = std::mem::take(&mut entry.path);
        let refused = |source| TreeError::refused(&path, source);
        if self.summary.entries >= MAX_TREE_ENTRIES {
            return Err(refused(Refusal::TooManyEntries));
        }
        let kind = known_kind(&entry).map_err(refused)?;
        let attributes = Attributes::take(&mut entry).map_err(refused)?;
        self.summary.entries += 1;
        if path.is_empty() {
            return self.root_entry(kind, attributes);
        }
        check(&path).map_err(refused)?;
        let (parent, name) = split(&path);
        self.enter(parent, &path)?;
        let directory = self.open.last().ok_or(TreeError::Failed)?.fd.as_fd();
        match kind {
            EntryKind::Directory => return self.make_directory(path, attributes),
            EntryKind::File => self.file = Some(OpenFile::create(directory, &path, attributes, entry.size)?),
            EntryKind::Hardlink => self.make_hard_link(directory, &path, &entry.link_target)?,
            EntryKind::Symlink => {
                symlinkat(&entry.link_target[..], directory, name)
                    .or_else(|e| made("make the symlink", &path, e))?;
                attributes.set_named(directory, name, &path)?;
            }
            node => {
                make_node(node, &entry, directory, name, &path)?;
                attributes.set_named(directory, name, &path)?;
            }
        }
        Ok(())
    }

    fn root_entry(&mut self, kind: EntryKind, attributes: Attributes) -> Result<(), TreeError> {
        if kind != EntryKind::Directory {
            return Err(TreeError::refused(b"", Refusal::RootNotDirectory));
        }
        match &mut self.open[..] {
            [root] if self.summary.entries == 1 => {
                attributes.remove_others(root.fd.as_fd(), b"")?;
                root.leave = Leave::New(attributes);
                Ok(())
            }
            _ => Err(TreeError::refused(b"", Refusal::RootNotFirst)),
        }
    }

    fn make_directory(&mut self, path: Vec<u8>, attributes: Attributes) -> Result<(), TreeError> {
        let (_, name) = split(&path);
        let parent = &self.open.last().ok_or(TreeError::Failed)?.fd;
        mkdirat(parent, name, Mode::RWXU).or_else(|e| made("make the directory", &path, e))?;
        let fd = openat2(parent, name, DIRECTORY, Mode::empty(), BENEATH).context("open", &path)?;
        self.push(OpenDirectory {
            fd,
            path,
            leave: Leave::New(attributes),
        })
    }

    fn make_hard_link(&self, directory: BorrowedFd<'_>, path: &[u8], target: &[u8]) -> Result<(), TreeError> {
        let refused = |source| TreeError::refused(path, source);
        check(target).map_err(refused)?;
        let (parent, target_name) = split(target);
        let opened;
        let parent = match self.open.iter().rev().find(|open| open.path == parent) {
            Some(open) => open.fd.as_fd(),
            None => {
                let root = &self.open.first().ok_or(TreeError::Failed)?.fd;
                let found = openat2(root, parent, DIRECTORY, Mode::empty(), BENEATH);
                opened = found.map_err(|_| refused(Refusal::LinkTarget))?;
                opened.as_fd()
            }
        };
        let stat = statat(parent, target_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|_| refused(Refusal::LinkTarget))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(Refusal::LinkTarget));
        }
        linkat(parent, target_name, directory, split(path).1, AtFlags::empty())
            .or_else(|e| made("make the hard link", path, e))
    }

    fn write_data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TreeError> {
        let Some(file) = &mut self.file else {
            return Err(TreeError::refused(b"", Refusal::DataWithoutFile));
        };
        file.write(offset, bytes)?;
        self.summary.bytes += bytes.len() as u64;
        Ok(())
    }

    fn close_file(&mut self) -> Result<(), TreeError> {
        self.file.take().map_or(Ok(()), |file| file.finish())
    }

    /// Makes `parent` the innermost open directory. `path` is the entry it is wanted for.
    fn enter(&mut self, parent: &[u8], path: &[u8]) -> Result<(), TreeError> {
        while self
            .open
            .last()
            .is_some_and(|innermost| !is_within(parent, &innermost.path))
        {
            self.leave_innermost()?;
        }
        if self.open.last().is_some_and(|innermost| innermost.path == parent) {
            return Ok(());
        }
        let root = &self.open.first().ok_or(TreeError::Failed)?.fd;
        let fd = match openat2(root, parent, DIRECTORY, Mode::empty(), BENEATH) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                return Err(TreeError::refused(path, Refusal::NoParent));
            }
            other => other.context("open", parent)?,
        };
        let leave = Leave::Again(Kept::take(&fd, parent)?);
        self.push(OpenDirectory {
            fd,
            path: parent.to_vec(),
            leave,
        })
    }

    fn push(&mut self, directory: OpenDirectory) -> Result<(), TreeError> {
        self.open.push(directory);
        if self.open.len() > MAX_OPEN_DIRECTORIES {
            // The root stays; the outermost of the others is settled now and entered again should more come.
            self.open.remove(1).settle()?;
        }
        Ok(())
    }

    fn leave_innermost(&mut self) -> Result<(), TreeError> {
        self.open.pop().map_or(Ok(()), |directory| directory.settle())
    }
}

impl OpenDirectory {
    fn settle(&self) -> Result<(), TreeError> {
        match &self.leave {
            Leave::New(attributes) => attributes.set(self.fd.as_fd(), &self.path),
            Leave::Again(kept) => kept.restore(&self.fd, &self.path),
        }
    }
}

impl OpenFile {
    fn create(
        directory: BorrowedFd<'_>,
        path: &[u8],
        attributes: Attributes,
        size: u64,
    ) -> Result<Self, TreeError> {
        if size > MAX_FILE_BYTES {
            return Err(TreeError::refused(path, Refusal::FileSize(size)));
        }
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = openat2(directory, split(path).1, NEW_FILE, mode, BENEATH)
            .or_else(|e| made("make the file", path, e))?;
        Ok(Self {
            fd,
            path: path.to_vec(),
            attributes,
            size,
            end: 0,
        })
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), TreeError> {
        let refused = |source| TreeError::refused(&self.path, source);
        if bytes.is_empty() || bytes.len() > MAX_DATA_BYTES as usize {
            return Err(refused(Refusal::DataLength(bytes.len())));
        }
        if offset < self.end {
            return Err(refused(Refusal::DataOrder(offset)));
        }
        let end = offset.saturating_add(bytes.len() as u64);
        if end > self.size {
            return Err(refused(Refusal::DataBeyondEnd { end, size: self.size }));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            match pwrite(&self.fd, rest, end - rest.len() as u64) {
                Ok(0) => return Err(Errno::NOSPC).context("write", &self.path),
                Ok(written) => rest = &rest[written..],
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("write", &self.path),
            }
        }
        self.end = end;
        Ok(())
    }

    fn finish(self) -> Result<(), TreeError> {
        if self.end < self.size {
            ftruncate(&self.fd, self.size).context("set the size of", &self.path)?;
        }
        self.attributes.set(self.fd.as_fd(), &self.path)
    }
}

fn make_node(
    kind: EntryKind,
    entry: &TreeEntry,
    directory: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
) -> Result<(), TreeError> {
    let file_type = match kind {
        EntryKind::Fifo => FileType::Fifo,
        EntryKind::Socket => FileType::Socket,
        EntryKind::CharDevice => FileType::CharacterDevice,
        EntryKind::BlockDevice => FileType::BlockDevice,
        _ => return Err(TreeError::refused(path, Refusal::Kind(entry.kind))),
    };
    let device = makedev(entry.device_major, entry.device_minor);
    mknodat(directory, name, file_type, Mode::RUSR | Mode::WUSR, device).or_else(|e| made("make", path, e))
}

/// The error of a creation: a name that is taken is the sender's fault.
fn made<T>(action: &'static str, path: &[u8], error: Errno) -> Result<T, TreeError> {
    match error {
        Errno::EXIST => Err(TreeError::refused(path, Refusal::Duplicate)),
        other => Err(other).context(action, path),
    }
}

/// The kind of an entry, once its fields fit the kind.
fn known_kind(entry: &TreeEntry) -> Result<EntryKind, Refusal> {
    let kind = EntryKind::try_from(entry.kind).map_err(|_| Refusal::Kind(entry.kind))?;
    let is_device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
    let is_link = matches!(kind, EntryKind::Symlink | EntryKind::Hardlink);
    let stray = (entry.size != 0 && kind != EntryKind::File)
        || (!entry.link_target.is_empty() && !is_link)
        || (!is_device && (entry.device_major, entry.device_minor) != (0, 0));
    if kind == EntryKind::Unspecified {
        return Err(Refusal::Kind(entry.kind));
    }
    if stray {
        return Err(Refusal::StrayField);
    }
    if kind == EntryKind::Symlink {
        let length = entry.link_target.len();
        if length == 0 || length >= MAX_PATH_BYTES {
            return Err(Refusal::SymlinkTarget);
        }
        if entry.link_target.contains(&0) {
            return Err(Refusal::Nul);
        }
    }
    // Twelve bits of major number and twenty of minor: the kernel's own device type.
    if entry.device_major >= 1 << 12 || entry.device_minor >= 1 << 20 {
        return Err(Refusal::Device {
            major: entry.device_major,
            minor: entry.device_minor,
        });
    }
    Ok(kind)
}

fn require_empty(directory: &OwnedFd) -> rustix::io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut listing = RawDir::new(directory, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            return Err(Errno::NOTEMPTY);
        }
    }
    Ok(())
}
