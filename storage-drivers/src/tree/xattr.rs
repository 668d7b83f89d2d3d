//! Extended attributes: which of them belong to a tree, and how they are read whatever they hang on.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{fgetxattr, flistxattr, lgetxattr, llistxattr};
use rustix::io::Errno;
use tranship_proto::v1::Xattr;

/// Largest value and longest list of names, as Linux has it.
pub const MAX_XATTR_BYTES: usize = 64 << 10;

/// Longest name, its name space included.
pub const MAX_XATTR_NAME_BYTES: usize = 255;

/// Access control list of a file.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";

/// Access control list that new files of a directory inherit.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

const NAME_SPACES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Overlay marks that hold a file handle or an inode of *this* file system: on another host they name nothing, or
/// something else. What an upper directory means is said by the others (opaque directories) and by whiteouts.
const OF_THIS_FILE_SYSTEM: [&[u8]; 5] = [
    b"trusted.overlay.origin",
    b"trusted.overlay.upper",
    b"trusted.overlay.uuid",
    b"trusted.overlay.nlink",
    b"trusted.overlay.impure",
];

/// Whether an attribute is part of the tree and goes along with it.
///
/// Attributes outside `user.`, `trusted.`, `security.` and POSIX ACLs are properties of the file system below
/// (`btrfs.compression`), and stay there.
#[must_use]
pub fn travels(name: &[u8]) -> bool {
    let known = name == ACL_ACCESS
        || name == ACL_DEFAULT
        || NAME_SPACES
            .iter()
            .any(|space| name.len() > space.len() && name.starts_with(space));
    known && !OF_THIS_FILE_SYSTEM.contains(&name) && name.len() <= MAX_XATTR_NAME_BYTES && !name.contains(&0)
}

/// Where attributes are read from.
#[derive(Clone, Copy)]
pub(crate) enum Holder<'a> {
    /// An open file or directory.
    Open(BorrowedFd<'a>),
    /// A name in an open directory, for what cannot be opened: symlinks, fifos, sockets, devices.
    Named(BorrowedFd<'a>, &'a CStr),
}

/// The path of an open descriptor: the way to attributes of what cannot be opened for reading.
pub(crate) fn descriptor_path(fd: BorrowedFd<'_>) -> Vec<u8> {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes()
}

/// Reads attributes; keeps its buffers, so that a tree of many small files allocates little.
pub(crate) struct XattrReader {
    names: Vec<u8>,
    value: Vec<u8>,
    path: Vec<u8>,
}

impl XattrReader {
    pub(crate) fn new() -> Self {
        Self {
            names: vec![0; MAX_XATTR_BYTES],
            value: vec![0; MAX_XATTR_BYTES],
            path: Vec::new(),
        }
    }

    /// All attributes that travel, by name.
    pub(crate) fn read(&mut self, holder: Holder<'_>) -> io::Result<Vec<Xattr>> {
        if let Holder::Named(directory, name) = holder {
            self.path = descriptor_path(directory);
            self.path.push(b'/');
            self.path.extend_from_slice(name.to_bytes());
        }
        let listed = match holder {
            Holder::Open(fd) => flistxattr(fd, &mut self.names),
            Holder::Named(..) => llistxattr(&self.path[..], &mut self.names),
        };
        let length = match listed {
            Ok(length) => length,
            Err(Errno::NOTSUP) => 0,
            Err(error) => return Err(error.into()),
        };
        let mut found = Vec::new();
        for name in self.names[..length]
            .split(|&byte| byte == 0)
            .filter(|name| travels(name))
        {
            let read = match holder {
                Holder::Open(fd) => fgetxattr(fd, name, &mut self.value),
                Holder::Named(..) => lgetxattr(&self.path[..], name, &mut self.value),
            };
            found.push(Xattr {
                name: name.to_vec(),
                value: self.value[..read?].to_vec(),
            });
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_this_file_system_stay_and_marks_of_the_tree_travel() {
        for name in [
            &b"trusted.overlay.opaque"[..],
            b"security.capability",
            b"user.x",
            ACL_ACCESS,
            ACL_DEFAULT,
        ] {
            assert!(travels(name), "{} stays", name.escape_ascii());
        }
        for name in [
            &b"trusted.overlay.origin"[..],
            b"btrfs.compression",
            b"system.nfs4_acl",
            b"user.",
            b"x",
            b"",
        ] {
            assert!(!travels(name), "{} travels", name.escape_ascii());
        }
    }
}
