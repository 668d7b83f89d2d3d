//! Names below the directory of a layer, and nothing else. Every directory on the way is opened by the kernel with
//! `RESOLVE_BENEATH`: a link that leads out of the layer is an error, one that stays inside is followed, as the layers of
//! real images want. The last part of a path is never followed.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags, mkdirat,
    mknodat, openat2, statat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::error::ExtractError;
use super::limits::{MAX_DIRECTORY_NAMES_BYTES, MAX_PATH_BYTES};

const OPAQUE: &str = "trusted.overlay.opaque";

/// Time of directories that no archive mentions: the same on every host.
const NO_TIME: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 0,
};

/// A path of an archive that stays below, without empty and `.` parts. The root is the empty path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct InnerPath(Vec<u8>);

impl InnerPath {
    /// The path as an archive has it; a leading slash means the layer's root, as it does in a container.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, ExtractError> {
        let bad = |why| ExtractError::Path {
            path: String::from_utf8_lossy(bytes).into_owned(),
            why,
        };
        if bytes.len() > MAX_PATH_BYTES {
            return Err(bad("is longer than any path"));
        }
        if bytes.contains(&0) {
            return Err(bad("has a zero byte"));
        }
        let parts: Vec<&[u8]> = bytes
            .split(|b| *b == b'/')
            .filter(|part| !part.is_empty() && *part != b".")
            .collect();
        if parts.contains(&&b".."[..]) {
            return Err(bad("leads out of the layer"));
        }
        Ok(Self(parts.join(&b'/')))
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory it is in, and its name there. The root's are itself and nothing.
    pub(super) fn split(&self) -> (Self, &[u8]) {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(at) => {
                let (folder, name) = self.0.split_at(at);
                (Self(folder.to_vec()), name.get(1..).unwrap_or_default())
            }
            None => (Self(Vec::new()), &self.0),
        }
    }

    /// Another name in the same directory.
    pub(super) fn sibling(&self, name: &[u8]) -> Self {
        let (Self(mut folder), _) = self.split();
        if !folder.is_empty() {
            folder.push(b'/');
        }
        folder.extend_from_slice(name);
        Self(folder)
    }

    /// The directories on the way, the uppermost first, and itself.
    fn prefixes(&self) -> impl Iterator<Item = Self> {
        let ends = self
            .0
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(at, _)| at);
        ends.chain([self.0.len()])
            .map(|end| Self(self.0.get(..end).unwrap_or_default().to_vec()))
    }

    fn is_below(&self, other: &Self) -> bool {
        self.0
            .strip_prefix(other.0.as_slice())
            .is_some_and(|rest| rest.first() == Some(&b'/'))
    }
}

/// The directory a layer is extracted into.
pub(super) struct Place {
    root: OwnedFd,
    /// The directory of the last entry: the next one is likely to be there too.
    last: Option<(InnerPath, OwnedFd)>,
    /// Times of directories, set when nothing changes in them any more.
    times: BTreeMap<InnerPath, Timespec>,
    names_bytes: usize,
}

impl Place {
    /// An empty directory.
    pub(super) fn new(root: OwnedFd) -> Self {
        let times = BTreeMap::from([(InnerPath(Vec::new()), NO_TIME)]);
        Self {
            root,
            last: None,
            times,
            names_bytes: 0,
        }
    }

    /// The directory at `path`, made with everything above it where it is missing.
    pub(super) fn directory(&mut self, path: &InnerPath) -> Result<BorrowedFd<'_>, ExtractError> {
        if self.last.as_ref().is_none_or(|(known, _)| known != path) {
            let fd = match self.open(path) {
                Err(Errno::NOENT | Errno::NOTDIR) => self.make_all(path)?,
                result => result.map_err(leads_out(path))?,
            };
            self.last = Some((path.clone(), fd));
        }
        match &self.last {
            Some((_, fd)) => Ok(std::os::fd::AsFd::as_fd(fd)),
            None => Ok(std::os::fd::AsFd::as_fd(&self.root)),
        }
    }

    /// What is at `path`: nothing, or something of a type. `name` is in `folder`.
    pub(super) fn look(folder: BorrowedFd<'_>, name: &[u8]) -> Result<Found, Errno> {
        match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Found::Directory,
                FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
                _ => Found::Other,
            }),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(error) => Err(error),
        }
    }

    /// Takes away whatever is at `path`, with all that is in it.
    pub(super) fn clear(&mut self, path: &InnerPath) -> Result<Found, ExtractError> {
        let (folder, name) = path.split();
        let name = name.to_vec();
        let fd = self.directory(&folder)?;
        let found = Self::look(fd, &name).map_err(ExtractError::file("look at", path.bytes()))?;
        match found {
            Found::Nothing => return Ok(found),
            Found::Directory => {
                // Through the descriptor: the kernel resolves no name but the last, which is a directory.
                let target = PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd())).join(os(&name));
                std::fs::remove_dir_all(target).map_err(ExtractError::file("remove", path.bytes()))?;
            }
            Found::Whiteout | Found::Other => {
                unlinkat(fd, &name, AtFlags::empty()).map_err(ExtractError::file("remove", path.bytes()))?;
            }
        }
        // It may have been on the way to the directory of the last entry.
        self.last = None;
        if found == Found::Directory {
            self.times
                .retain(|known, _| known != path && !known.is_below(path));
        }
        Ok(found)
    }

    /// Makes the directory at `path`, or keeps the one there; what hid the lower layers' goes on to do so.
    pub(super) fn make_directory(&mut self, path: &InnerPath) -> Result<(), ExtractError> {
        let (folder, name) = path.split();
        let name = name.to_vec();
        let found = match Self::look(self.directory(&folder)?, &name) {
            Ok(Found::Directory) => return Ok(()),
            Ok(Found::Nothing) => Found::Nothing,
            Ok(_) => self.clear(path)?,
            Err(error) => return Err(ExtractError::file("look at", path.bytes())(error)),
        };
        let fd = self.directory(&folder)?;
        mkdirat(fd, &name, Mode::from_raw_mode(0o755))
            .map_err(ExtractError::file("make the directory", path.bytes()))?;
        self.remember(path, NO_TIME)?;
        if found == Found::Whiteout {
            self.make_opaque(path)
        } else {
            Ok(())
        }
    }

    /// Hides what lower layers have in this directory.
    pub(super) fn make_opaque(&mut self, path: &InnerPath) -> Result<(), ExtractError> {
        let fd = self.directory(path)?;
        let target = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::setxattr(target, OPAQUE, b"y", XattrFlags::empty())
            .map_err(ExtractError::file("make opaque", path.bytes()))
    }

    /// Hides what lower layers have at `path`. What this layer itself has there hides it already; a directory does so
    /// when it is opaque.
    pub(super) fn white_out(&mut self, path: &InnerPath) -> Result<(), ExtractError> {
        let (folder, name) = path.split();
        let name = name.to_vec();
        let fd = self.directory(&folder)?;
        match Self::look(fd, &name).map_err(ExtractError::file("look at", path.bytes()))? {
            Found::Directory => return self.make_opaque(path),
            Found::Whiteout | Found::Other => return Ok(()),
            Found::Nothing => {}
        }
        mknodat(fd, &name, FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(ExtractError::file("white out", path.bytes()))?;
        let times = Timestamps {
            last_access: NO_TIME,
            last_modification: NO_TIME,
        };
        utimensat(fd, &name, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(ExtractError::file("set the times of", path.bytes()))
    }

    /// The time a directory is to have in the end.
    pub(super) fn remember(&mut self, path: &InnerPath, time: Timespec) -> Result<(), ExtractError> {
        if self.times.insert(path.clone(), time).is_none() {
            self.names_bytes += path.bytes().len();
        }
        if self.names_bytes > MAX_DIRECTORY_NAMES_BYTES {
            let limit = MAX_DIRECTORY_NAMES_BYTES as u64;
            return Err(ExtractError::TooMuch {
                what: "bytes of directory names",
                limit,
            });
        }
        Ok(())
    }

    /// Sets the times of the directories. Nothing may change in them after this.
    pub(super) fn finish(self) -> Result<(), ExtractError> {
        for (path, time) in self.times.iter().rev() {
            let fd = self
                .open(path)
                .map_err(ExtractError::file("open", path.bytes()))?;
            let access = Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            };
            let times = Timestamps {
                last_access: access,
                last_modification: *time,
            };
            utimensat(&fd, ".", &times, AtFlags::empty())
                .map_err(ExtractError::file("set the times of", path.bytes()))?;
        }
        Ok(())
    }

    fn open(&self, path: &InnerPath) -> Result<OwnedFd, Errno> {
        let name = if path.is_root() { &b"."[..] } else { path.bytes() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        openat2(&self.root, name, flags, Mode::empty(), resolve)
    }

    /// A link to nothing is left alone, and is an error; where a mark hides a directory of a lower layer, one of this
    /// layer takes its place.
    fn make_all(&mut self, path: &InnerPath) -> Result<OwnedFd, ExtractError> {
        for prefix in path.prefixes() {
            match self.open(&prefix) {
                Ok(_) => {}
                Err(error @ (Errno::NOENT | Errno::NOTDIR)) => match self.found(&prefix)? {
                    Found::Nothing | Found::Whiteout => self.make_directory(&prefix)?,
                    Found::Directory | Found::Other => return Err(leads_out(&prefix)(error)),
                },
                Err(error) => return Err(leads_out(&prefix)(error)),
            }
        }
        self.open(path).map_err(leads_out(path))
    }

    fn found(&mut self, path: &InnerPath) -> Result<Found, ExtractError> {
        let (folder, name) = path.split();
        let name = name.to_vec();
        Self::look(self.directory(&folder)?, &name).map_err(ExtractError::file("look at", path.bytes()))
    }
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Directory,
    /// A mark that hides what lower layers have there.
    Whiteout,
    Other,
}

fn os(name: &[u8]) -> &std::ffi::OsStr {
    std::os::unix::ffi::OsStrExt::from_bytes(name)
}

/// Says what it means when the kernel does not go on.
fn leads_out(path: &InnerPath) -> impl FnOnce(Errno) -> ExtractError {
    let text = String::from_utf8_lossy(path.bytes()).into_owned();
    move |error| match error {
        Errno::XDEV => ExtractError::Path {
            path: text,
            why: "leads out of the layer through a link",
        },
        Errno::LOOP => ExtractError::Path {
            path: text,
            why: "leads through too many links",
        },
        Errno::NOTDIR => ExtractError::Path {
            path: text,
            why: "leads through something that is no directory",
        },
        Errno::NOENT | Errno::EXIST => ExtractError::Path {
            path: text,
            why: "leads through a link to nothing",
        },
        error => ExtractError::File {
            action: "open",
            path: text,
            source: error.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths_that_lead_out_are_refused_and_others_are_made_plain() {
        for bad in ["..", "a/../../b", "a/..", "/..", "x\0y"] {
            assert!(InnerPath::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for (written, meant) in [
            ("./a//b/", "a/b"),
            ("/etc", "etc"),
            (".", ""),
            ("..a/b..", "..a/b.."),
        ] {
            assert_eq!(
                InnerPath::parse(written.as_bytes()).unwrap().bytes(),
                meant.as_bytes()
            );
        }
    }

    #[test]
    fn a_name_that_begins_alike_is_not_below() {
        let path = |text: &str| InnerPath::parse(text.as_bytes()).unwrap();
        assert!(path("a/b").is_below(&path("a")));
        assert!(!path("ab").is_below(&path("a")) && !path("a").is_below(&path("a")));
    }

    proptest! {
        #[test]
        fn whatever_parses_has_no_part_that_leads_anywhere_else(text in "[a./]{0,30}") {
            if let Ok(path) = InnerPath::parse(text.as_bytes()) {
                for part in path.bytes().split(|b| *b == b'/') {
                    prop_assert!(path.is_root() || !matches!(part, b"" | b"." | b".."));
                }
                let (folder, name) = path.split();
                let other = folder.sibling(b"x");
                prop_assert_eq!(other.split().1, b"x");
                prop_assert_eq!(path.sibling(name), path.clone());
            }
        }
    }
}
