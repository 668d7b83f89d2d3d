//! A POSIX ACL for the socket: users of `allowed_uids` may connect although the file's mode stays 0660.
//!
//! The value of the extended attribute is a version and then, in ascending order, entries of tag, permission and id, all
//! little-endian (`linux/posix_acl_xattr.h`).

use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};

const ATTRIBUTE: &str = "system.posix_acl_access";
const VERSION: u32 = 2;
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;
const READ_WRITE: u16 = 6;
const NOTHING: u16 = 0;
/// The id of entries that have none.
const NO_ID: u32 = u32::MAX;

/// Lets the owner, the owning group and these users read and write, and nobody else.
///
/// # Errors
/// The file system has no ACLs.
pub(super) fn let_in(path: &Path, uids: &[u32]) -> io::Result<()> {
    setxattr(path, ATTRIBUTE, &encode(uids), XattrFlags::empty())?;
    Ok(())
}

fn encode(uids: &[u32]) -> Vec<u8> {
    let mut uids = uids.to_vec();
    uids.sort_unstable();
    uids.dedup();
    let users = uids.into_iter().map(|uid| (USER, READ_WRITE, uid));
    let entries = std::iter::once((OWNER, READ_WRITE, NO_ID)).chain(users).chain([
        (OWNING_GROUP, READ_WRITE, NO_ID),
        (MASK, READ_WRITE, NO_ID),
        (OTHERS, NOTHING, NO_ID),
    ]);
    let mut bytes = VERSION.to_le_bytes().to_vec();
    for (tag, permission, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permission.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}
