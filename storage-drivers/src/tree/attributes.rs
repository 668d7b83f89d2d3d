//! Owner, mode, extended attributes and time of an entry: checked, then set in the one order that works.
//!
//! Changing the owner clears set-id bits and file capabilities, so it comes first; the mode must be there before an
//! access control list refines it; writing data clears capabilities, so all of it comes after the data; and the
//! modification time comes last of all.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, chmod, chownat,
    fchmod, fchown, fgetxattr, fremovexattr, fsetxattr, fstat, futimens, open, openat, setxattr, utimensat,
};
use rustix::io::Errno;
use tranship_proto::v1::{TreeEntry, Xattr};

use super::error::{Context, Refusal, TreeError};
use super::xattr::{ACL_DEFAULT, Holder, MAX_XATTR_BYTES, XattrReader, descriptor_path, travels};

/// What an entry says of a node beside its kind and content.
pub(super) struct Attributes {
    mode: Mode,
    owner: Uid,
    group: Gid,
    times: Timestamps,
    xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Checks every field that a peer chose, and takes the extended attributes out of the entry.
    pub(super) fn take(entry: &mut TreeEntry) -> Result<Self, Refusal> {
        if entry.mode > 0o7777 {
            return Err(Refusal::Mode(entry.mode));
        }
        if entry.uid == u32::MAX || entry.gid == u32::MAX {
            return Err(Refusal::Owner);
        }
        if entry.mtime_ns >= 1_000_000_000 {
            return Err(Refusal::Time(entry.mtime_ns));
        }
        let xattrs = std::mem::take(&mut entry.xattrs);
        if xattrs
            .iter()
            .any(|xattr| !travels(&xattr.name) || xattr.value.len() > MAX_XATTR_BYTES)
        {
            return Err(Refusal::Xattr);
        }
        Ok(Self {
            mode: Mode::from_raw_mode(entry.mode),
            owner: Uid::from_raw(entry.uid),
            group: Gid::from_raw(entry.gid),
            times: modified_at(entry.mtime_s, entry.mtime_ns.into()),
            xattrs,
        })
    }

    /// Sets everything on an open file or directory.
    pub(super) fn set(&self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
        fchown(fd, Some(self.owner), Some(self.group)).context("set the owner of", path)?;
        fchmod(fd, self.mode).context("set the mode of", path)?;
        for xattr in &self.xattrs {
            fsetxattr(fd, &xattr.name[..], &xattr.value, XattrFlags::empty())
                .context("set an extended attribute of", path)?;
        }
        futimens(fd, &self.times).context("set the time of", path)
    }

    /// Sets everything on a name that cannot be opened (a symlink, fifo, socket or device).
    ///
    /// It goes through a descriptor that only names the node: nothing is followed and no device is woken.
    pub(super) fn set_named(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), TreeError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let node = openat(parent, name, flags, Mode::empty()).context("open", path)?;
        chownat(&node, "", Some(self.owner), Some(self.group), AtFlags::EMPTY_PATH)
            .context("set the owner of", path)?;
        let through = descriptor_path(node.as_fd());
        // A symlink has no mode of its own: Linux answers that it cannot be set.
        match chmod(&through[..], self.mode) {
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(error) => return Err(error).context("set the mode of", path),
        }
        for xattr in &self.xattrs {
            setxattr(&through[..], &xattr.name[..], &xattr.value, XattrFlags::empty())
                .context("set an extended attribute of", path)?;
        }
        utimensat(parent, name, &self.times, AtFlags::SYMLINK_NOFOLLOW).context("set the time of", path)
    }

    /// Removes what a directory carries and the entry does not.
    pub(super) fn remove_others(&self, fd: BorrowedFd<'_>, path: &[u8]) -> Result<(), TreeError> {
        let present = XattrReader::new()
            .read(Holder::Open(fd))
            .context("read the extended attributes of", path)?;
        for stray in present
            .iter()
            .filter(|there| self.xattrs.iter().all(|wanted| wanted.name != there.name))
        {
            fremovexattr(fd, &stray.name[..]).context("remove an extended attribute of", path)?;
        }
        Ok(())
    }
}

/// What must be put back on a finished directory after entries have been added to it.
pub(super) struct Kept {
    times: Timestamps,
    inherited: Option<Vec<u8>>,
}

impl Kept {
    /// Notes the time of a directory, and takes its default access control list away so that nothing inherits it.
    pub(super) fn take(fd: &OwnedFd, path: &[u8]) -> Result<Self, TreeError> {
        let stat = fstat(fd).context("look at", path)?;
        let mut value = vec![0; MAX_XATTR_BYTES];
        let inherited = match fgetxattr(fd, ACL_DEFAULT, &mut value) {
            Ok(length) => {
                fremovexattr(fd, ACL_DEFAULT).context("remove an extended attribute of", path)?;
                value.truncate(length);
                Some(value)
            }
            Err(Errno::NODATA | Errno::NOTSUP) => None,
            Err(error) => return Err(error).context("read an extended attribute of", path),
        };
        let (seconds, nanoseconds) = modified(&stat);
        Ok(Self {
            times: modified_at(seconds, nanoseconds.into()),
            inherited,
        })
    }

    /// Puts everything back.
    pub(super) fn restore(&self, fd: &OwnedFd, path: &[u8]) -> Result<(), TreeError> {
        if let Some(value) = &self.inherited {
            fsetxattr(fd, ACL_DEFAULT, value, XattrFlags::empty())
                .context("set an extended attribute of", path)?;
        }
        futimens(fd, &self.times).context("set the time of", path)
    }
}

/// Gives a directory the owner, mode and attributes of another, but not its overlay marks: those belong to one layer.
pub(crate) fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let (from, to) = (open(from, flags, Mode::empty())?, open(to, flags, Mode::empty())?);
    let stat = fstat(&from)?;
    fchown(
        &to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    for xattr in XattrReader::new().read(Holder::Open(from.as_fd()))? {
        if !xattr.name.starts_with(b"trusted.overlay.") {
            fsetxattr(&to, &xattr.name[..], &xattr.value, XattrFlags::empty())?;
        }
    }
    let (seconds, nanoseconds) = modified(&stat);
    Ok(futimens(&to, &modified_at(seconds, nanoseconds.into()))?)
}

/// Modification time as a message has it: seconds, and nanoseconds within the second.
pub(super) fn modified(stat: &Stat) -> (i64, u32) {
    (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0))
}

fn modified_at(seconds: i64, nanoseconds: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        },
    }
}
