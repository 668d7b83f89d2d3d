//! Removes a tree of any depth with a fixed number of descriptors.
//!
//! The standard library holds one descriptor per level; a container can nest directories deeper than a process may open.
//! Nobody else touches what is removed here (it lies in `staging`), so `..` leads back to where the walk came from.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, RawDir, open, openat, unlinkat};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Removes whatever is at `path`; symlinks are removed, not followed.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let mut directory = match open(path, DIRECTORY, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(unlinkat(CWD, path, AtFlags::empty())?),
        Err(error) => return Err(error.into()),
    };
    let mut below: Vec<CString> = Vec::new();
    loop {
        if let Some(name) = empty_until_directory(&directory)? {
            directory = openat(&directory, &name, DIRECTORY, Mode::empty())?;
            below.push(name);
        } else if let Some(name) = below.pop() {
            directory = openat(&directory, "..", DIRECTORY, Mode::empty())?;
            unlinkat(&directory, &name, AtFlags::REMOVEDIR)?;
        } else {
            return Ok(unlinkat(CWD, path, AtFlags::REMOVEDIR)?);
        }
    }
}

/// Removes what is no directory, and directories that are empty; gives the name of the first that is not.
fn empty_until_directory(directory: &OwnedFd) -> io::Result<Option<CString>> {
    rustix::fs::seek(directory, rustix::fs::SeekFrom::Start(0))?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut listing = RawDir::new(directory, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        match unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name.to_owned())),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::mkdirat;

    use super::*;

    #[test]
    fn a_tree_deeper_than_descriptors_and_paths_go_is_removed() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let root = place.path().join("deep");
        fs::create_dir(&root).unwrap();
        let mut directory = open(&root, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..5000 {
            mkdirat(&directory, "down", Mode::RWXU).unwrap();
            directory = openat(&directory, "down", DIRECTORY, Mode::empty()).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }

    #[test]
    fn a_symlink_is_removed_and_not_followed() {
        let place = tempfile::tempdir_in("/var/tmp").unwrap();
        let (root, outside) = (place.path().join("root"), place.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        symlink(&outside, root.join("link")).unwrap();
        symlink(&outside, place.path().join("also")).unwrap();
        for number in 0..2000 {
            fs::write(root.join(number.to_string()), "").unwrap();
        }
        remove_tree(&root).unwrap();
        remove_tree(&place.path().join("also")).unwrap();
        assert!(outside.join("file").exists() && !root.exists());
    }
}
