//! What a new volume begins with: what the image has in its place. A database's image brings the directory of its data with
//! the owner its server runs as; without this the server could not write its own volume.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use tranship_storage_drivers::tree::{TreeError, TreeReader, TreeWriter};

/// Why a volume could not be filled. It may hold part of it.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// A directory could not be opened or read.
    #[error("cannot open {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The tree could not be read or written.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// Copies `target` of `rootfs`, if it is a directory there, to `volume`, if that is empty. Answers whether it did.
///
/// # Errors
/// [`SeedError`].
pub fn fill(rootfs: &Path, target: &Path, volume: &Path) -> Result<bool, SeedError> {
    let open = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| SeedError::Open { path, source }
    };
    let mut entries = fs::read_dir(volume).map_err(open(volume))?;
    if entries.next().is_some() {
        return Ok(false);
    }
    let Some(from) = open_inside(rootfs, target).map_err(open(target))? else {
        return Ok(false);
    };
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let to = rustix::fs::open(volume, flags, Mode::empty()).map_err(|error| open(volume)(error.into()))?;
    let mut writer = TreeWriter::create(to)?;
    // By descriptor: the image's symbolic links were followed inside of the image, and not again.
    for part in TreeReader::open(Path::new(&format!("/proc/self/fd/{}/.", from.as_raw_fd())))? {
        writer.apply(part?)?;
    }
    writer.finish()?;
    Ok(true)
}

/// The directory that a container would see at `target`; none where there is none.
fn open_inside(rootfs: &Path, target: &Path) -> io::Result<Option<OwnedFd>> {
    let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, directory, Mode::empty())?;
    match rustix::fs::openat2(&root, target, directory, Mode::empty(), ResolveFlags::IN_ROOT) {
        Ok(found) => Ok(Some(found)),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn an_empty_volume_gets_the_images_directory_and_its_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let (rootfs, volume) = (dir.path().join("rootfs"), dir.path().join("volume"));
        fs::create_dir_all(rootfs.join("var/lib/db/sub")).unwrap();
        fs::create_dir(&volume).unwrap();
        fs::write(rootfs.join("var/lib/db/sub/file"), "x").unwrap();
        std::os::unix::fs::chown(rootfs.join("var/lib/db"), Some(70), Some(71)).unwrap();
        fs::set_permissions(rootfs.join("var/lib/db"), fs::Permissions::from_mode(0o700)).unwrap();
        // An absolute link leads to the image's own root, never to the host's.
        symlink("/var/lib", rootfs.join("data")).unwrap();
        assert!(fill(&rootfs, Path::new("/data/db"), &volume).unwrap());
        let now = fs::metadata(&volume).unwrap();
        assert_eq!((now.uid(), now.gid(), now.mode() & 0o777), (70, 71, 0o700));
        assert_eq!(fs::read_to_string(volume.join("sub/file")).unwrap(), "x");
        assert!(
            !fill(&rootfs, Path::new("/data/db"), &volume).unwrap(),
            "it was filled twice"
        );
    }

    #[test]
    fn a_place_that_the_image_does_not_have_leaves_the_volume_empty() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("volume");
        fs::create_dir(&volume).unwrap();
        assert!(!fill(dir.path(), Path::new("/nowhere"), &volume).unwrap());
        fs::write(dir.path().join("file"), "").unwrap();
        assert!(!fill(dir.path(), Path::new("/file"), &volume).unwrap());
    }
}
