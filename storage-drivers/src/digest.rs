//! Whether two trees are the same: [`TreeDigest`] for a tree on the wire, [`tree_hash`] for a tree on a disk.
//!
//! The two share no code with each other or with the reader and writer, so that one can testify about the other.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{lgetxattr, llistxattr, major, minor};
use tranship_proto::frame::FrameHeader;

use crate::tree::xattr::{MAX_XATTR_BYTES, travels};

/// Bytes of a digest.
pub const DIGEST_BYTES: usize = 32;

/// The digest of a tree on the wire: BLAKE3 over the header and payload of each of its `Entry` and `Data` frames.
#[derive(Clone, Default)]
pub struct TreeDigest(blake3::Hasher);

impl TreeDigest {
    /// The digest of nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next frame in.
    pub fn frame(&mut self, header: &FrameHeader, payload: &[u8]) {
        self.0.update(&header.encode());
        self.0.update(payload);
    }

    /// The digest of all frames so far.
    #[must_use]
    pub fn value(&self) -> [u8; DIGEST_BYTES] {
        *self.0.finalize().as_bytes()
    }
}

/// What [`tree_state`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeState {
    /// BLAKE3 over everything that must survive a move.
    pub hash: [u8; DIGEST_BYTES],
    /// Names, the root included.
    pub entries: u64,
    /// Sum of the sizes of the files, holes included, each file once.
    pub bytes: u64,
    /// What the files occupy on this disk, each file once. Says whether holes are still holes; two file systems need not
    /// agree on it, so the hash leaves it out.
    pub allocated_bytes: u64,
}

/// A tree could not be looked at.
#[derive(Debug, thiserror::Error)]
#[error("cannot look at {path:?}")]
pub struct HashError {
    /// Where it stopped.
    pub path: PathBuf,
    /// The kernel's answer.
    pub source: io::Error,
}

/// The canonical hash of a tree on a disk: names, kinds, modes, owners, times to the nanosecond, extended attributes that
/// travel, sizes, contents, targets, device numbers, and which names are the same file. Not in it: holes, access times,
/// inode numbers, the sizes of directories.
///
/// # Errors
/// [`HashError`] when something cannot be read.
pub fn tree_hash(root: &Path) -> Result<[u8; DIGEST_BYTES], HashError> {
    Ok(tree_state(root)?.hash)
}

/// [`tree_hash`] and the totals.
///
/// # Errors
/// As [`tree_hash`].
pub fn tree_state(root: &Path) -> Result<TreeState, HashError> {
    let mut hasher = blake3::Hasher::new();
    let mut walk = Walk::new(root, |line: &str| {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    });
    walk.run()?;
    let (entries, bytes, allocated_bytes) = (walk.entries, walk.bytes, walk.allocated_bytes);
    Ok(TreeState {
        hash: *hasher.finalize().as_bytes(),
        entries,
        bytes,
        allocated_bytes,
    })
}

/// The lines that [`tree_hash`] hashes, one a name: to see where two trees differ.
///
/// # Errors
/// As [`tree_hash`].
pub fn tree_listing(root: &Path) -> Result<Vec<String>, HashError> {
    let mut lines = Vec::new();
    Walk::new(root, |line: &str| lines.push(line.to_owned())).run()?;
    Ok(lines)
}

struct Walk<'a, F> {
    root: &'a Path,
    line: F,
    /// First name of each file that has several.
    linked: BTreeMap<u64, String>,
    entries: u64,
    bytes: u64,
    allocated_bytes: u64,
}

impl<'a, F: FnMut(&str)> Walk<'a, F> {
    fn new(root: &'a Path, line: F) -> Self {
        Self {
            root,
            line,
            linked: BTreeMap::new(),
            entries: 0,
            bytes: 0,
            allocated_bytes: 0,
        }
    }

    fn run(&mut self) -> Result<(), HashError> {
        let mut waiting = vec![self.root.to_owned()];
        while let Some(path) = waiting.pop() {
            let at = |source| HashError {
                path: path.clone(),
                source,
            };
            let metadata = fs::symlink_metadata(&path).map_err(at)?;
            self.entry(&path, &metadata).map_err(at)?;
            if metadata.is_dir() {
                let listed: io::Result<Vec<_>> = fs::read_dir(&path)
                    .map_err(at)?
                    .map(|entry| entry.map(|entry| entry.path()))
                    .collect();
                let mut below = listed.map_err(at)?;
                below.sort_unstable_by(|a, b| b.as_os_str().cmp(a.as_os_str()));
                waiting.append(&mut below);
            }
        }
        Ok(())
    }

    fn entry(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        self.entries += 1;
        let below = path.strip_prefix(self.root).unwrap_or(path);
        let name = below.as_os_str().as_bytes().escape_ascii().to_string();
        if !metadata.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = self.linked.get(&metadata.ino()) {
                (self.line)(&format!("{name} = {first}"));
                return Ok(());
            }
            self.linked.insert(metadata.ino(), name.clone());
        }
        let mut line = format!(
            "{name} mode={:o} owner={}:{} mtime={}.{:09}",
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
            metadata.mtime(),
            metadata.mtime_nsec()
        );
        let kind = metadata.file_type();
        if kind.is_file() {
            self.bytes += metadata.len();
            self.allocated_bytes += metadata.blocks() * 512;
            let content = blake3::Hasher::new().update_reader(File::open(path)?)?.finalize();
            line.push_str(&format!(" size={} content={content}", metadata.len()));
        } else if kind.is_symlink() {
            line.push_str(&format!(
                " target={}",
                fs::read_link(path)?.as_os_str().as_bytes().escape_ascii()
            ));
        } else if kind.is_char_device() || kind.is_block_device() {
            line.push_str(&format!(
                " device={}:{}",
                major(metadata.rdev()),
                minor(metadata.rdev())
            ));
        }
        for (name, value) in xattrs(path)? {
            line.push_str(&format!(" {}={}", name.escape_ascii(), blake3::hash(&value)));
        }
        (self.line)(&line);
        Ok(())
    }
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; MAX_XATTR_BYTES];
    let length = match llistxattr(path, &mut names) {
        Err(rustix::io::Errno::NOTSUP) => 0,
        other => other?,
    };
    let mut found = BTreeMap::new();
    let mut value = vec![0; if length == 0 { 0 } else { MAX_XATTR_BYTES }];
    for name in names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| travels(name))
    {
        let length = lgetxattr(path, name, &mut value)?;
        found.insert(name.to_vec(), value[..length].to_vec());
    }
    Ok(found)
}
