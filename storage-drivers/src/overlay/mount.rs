//! One overlay mount, and why it has the options it has.
//!
//! The upper directory must mean the same on every host that has byte-identical layers, with nothing beside it. So every
//! feature that stores file handles, inode numbers or paths of lower files outside the plain tree is off:
//!
//! | option | why |
//! |---|---|
//! | `index=off` | an index keeps the tie between copied-up hard links in the work directory, which does not travel, and binds the upper directory to the file handle of its lowest root: a mount over the same layers elsewhere fails with ESTALE, and with that mark removed a hard link shows its old content |
//! | `nfs_export=off` | needs the index. The price: the kernel cannot open a file of the root file system by its handle, and CRIU refuses to dump an inotify watch there unless `irmap_scan_paths` names the container's root, where it then finds the path by inode number. A watch on a volume is not on an overlay and needs no such help |
//! | `redirect_dir=nofollow` | a renamed directory would carry the path of a lower one in an attribute; here renaming a directory of a layer answers EXDEV, which `mv` and package managers handle by copying, and a redirect that a peer planted is not followed |
//! | `metacopy=off` | every changed file has its whole content in the upper directory; one that claims otherwise is refused |
//! | `xino=off` | all directories lie in one file system, whose inode numbers are already distinct |
//! | `uuid=null` | no identity is written into the upper directory |
//!
//! What a mount leaves in the upper directory all the same (`trusted.overlay.origin` and its like: hints for inode numbers)
//! stays on the host: [`crate::tree::xattr::travels`]. The numbers of inodes may therefore differ after a move; times,
//! sizes and contents, which CRIU compares, do not.
//!
//! The work directory is scratch space of one mount: it is made anew each time, so that nothing of an earlier mount, or of
//! another host, is in it.
//!
//! Layers are given one by one to the kernel's newer mount interface, so that their number is bounded by the kernel (500)
//! and not by the page that holds the options of mount(2). A kernel before 6.8 is asked by mount(2); when the paths do
//! not fit there, the layers are named by descriptors.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, move_mount,
};

/// Source of the mounts, as `/proc/self/mountinfo` shows it.
pub const SOURCE: &str = "tranship";

const OPTIONS: [(&str, &str); 5] = [
    ("index", "off"),
    ("nfs_export", "off"),
    ("redirect_dir", "nofollow"),
    ("metacopy", "off"),
    ("xino", "off"),
];
/// Known from Linux 6.6 on; older ones write no identity anyway.
const RECENT_OPTION: (&str, &str) = ("uuid", "null");

/// Options of mount(2) must fit a page, with the NUL at their end.
const OPTION_PAGE_BYTES: usize = 4096;

/// The directories of an overlay.
pub struct OverlayMount<'a> {
    /// The topmost first; at least one.
    pub lower: &'a [PathBuf],
    /// Holds the changes.
    pub upper: &'a Path,
    /// Empty, on the file system of `upper`.
    pub work: &'a Path,
}

/// The kernel did not mount it.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused an overlay mount{explanation}")]
pub struct MountError {
    /// The kernel's own words, after a colon, or nothing.
    pub explanation: String,
    /// The kernel's answer.
    pub source: io::Error,
}

impl OverlayMount<'_> {
    /// Mounts it on a directory.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn attach(&self, target: &Path) -> Result<(), MountError> {
        let plain = |error: Errno| MountError {
            explanation: String::new(),
            source: error.into(),
        };
        match self.detached() {
            Ok(tree) => {
                move_mount(&tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(plain)
            }
            Err(first) if asks_for_older_interface(&first.source) => {
                self.attach_by_options(target).map_err(|source| MountError {
                    explanation: first.explanation,
                    source,
                })
            }
            Err(error) => Err(error),
        }
    }

    /// Mounts it nowhere: it is gone when the descriptor is closed.
    ///
    /// # Errors
    /// [`MountError`]; `ENOSYS` on kernels without the interface.
    pub fn detached(&self) -> Result<OwnedFd, MountError> {
        let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| MountError {
            explanation: String::new(),
            source: error.into(),
        })?;
        self.configure(&context)
            .and_then(|()| fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()))
            .map_err(|error| MountError {
                explanation: explanation(&context),
                source: error.into(),
            })
    }

    fn configure(&self, context: &OwnedFd) -> rustix::io::Result<()> {
        fsconfig_set_string(context, "source", SOURCE)?;
        for layer in self.lower {
            fsconfig_set_string(context, "lowerdir+", layer)?;
        }
        fsconfig_set_string(context, "upperdir", self.upper)?;
        fsconfig_set_string(context, "workdir", self.work)?;
        for (name, value) in OPTIONS {
            fsconfig_set_string(context, name, value)?;
        }
        match fsconfig_set_string(context, RECENT_OPTION.0, RECENT_OPTION.1) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
        fsconfig_create(context)
    }

    /// The older interface: all options in one text.
    fn attach_by_options(&self, target: &Path) -> io::Result<()> {
        let mut options = self.option_text(self.lower);
        let mut held = Vec::new();
        if options.len() >= OPTION_PAGE_BYTES {
            held = self
                .lower
                .iter()
                .map(File::open)
                .collect::<io::Result<Vec<_>>>()?;
            let short: Vec<_> = held
                .iter()
                .map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd()).into())
                .collect();
            options = self.option_text(&short);
        }
        let options = CString::new(options.into_vec())?;
        mount(
            SOURCE,
            target,
            "overlay",
            MountFlags::empty(),
            Some(options.as_c_str()),
        )?;
        drop(held);
        Ok(())
    }

    fn option_text(&self, lower: &[PathBuf]) -> OsString {
        let mut text = b"lowerdir=".to_vec();
        for (number, layer) in lower.iter().enumerate() {
            if number > 0 {
                text.push(b':');
            }
            text.extend_from_slice(layer.as_os_str().as_bytes());
        }
        for (name, path) in [("upperdir", self.upper), ("workdir", self.work)] {
            text.extend_from_slice(format!(",{name}=").as_bytes());
            text.extend_from_slice(path.as_os_str().as_bytes());
        }
        for (name, value) in OPTIONS {
            text.extend_from_slice(format!(",{name}={value}").as_bytes());
        }
        OsString::from_vec(text)
    }
}

/// `EINVAL` is also what a kernel says that does not know `lowerdir+`.
fn asks_for_older_interface(error: &io::Error) -> bool {
    [Errno::NOSYS, Errno::INVAL]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// What the kernel wrote into the context while it refused.
fn explanation(context: &OwnedFd) -> String {
    let mut text = String::new();
    let mut message = [0; 1024];
    while let Ok(length @ 1..) = rustix::io::read(context, &mut message[..]) {
        let words = String::from_utf8_lossy(&message[..length]);
        text.push_str(": ");
        text.push_str(words.trim_start_matches(['e', 'w', 'i']).trim());
    }
    if text.is_empty() {
        // Some refusals of the overlay are only written to the log of the kernel.
        text.push_str("; its log (dmesg) may say why");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::{UnmountFlags, unmount};
    use tempfile::TempDir;

    use super::*;

    struct Directories {
        place: TempDir,
        lower: Vec<PathBuf>,
    }

    impl Directories {
        fn new(layers: usize) -> Self {
            let place = tempfile::tempdir_in("/var/tmp").unwrap();
            let lower: Vec<_> = (0..layers)
                .map(|n| place.path().join(format!("{n:032}")))
                .collect();
            for (number, layer) in lower.iter().enumerate() {
                fs::create_dir(layer).unwrap();
                fs::write(layer.join(format!("of-{number}")), "").unwrap();
            }
            for name in ["upper", "work", "target"] {
                fs::create_dir(place.path().join(name)).unwrap();
            }
            Self { place, lower }
        }

        fn at(&self, name: &str) -> PathBuf {
            self.place.path().join(name)
        }

        /// How many names are seen at the target after it was mounted.
        fn names_after(
            &self,
            mount: impl FnOnce(&OverlayMount<'_>, &Path) -> io::Result<()>,
        ) -> io::Result<usize> {
            let (upper, work, target) = (self.at("upper"), self.at("work"), self.at("target"));
            mount(
                &OverlayMount {
                    lower: &self.lower,
                    upper: &upper,
                    work: &work,
                },
                &target,
            )?;
            let names = fs::read_dir(&target).map(Iterator::count);
            unmount(&target, UnmountFlags::DETACH)?;
            names
        }
    }

    #[test]
    fn the_older_interface_takes_more_layers_than_a_page_of_paths() {
        let directories = Directories::new(100);
        assert!(directories.lower.len() * 44 > OPTION_PAGE_BYTES);
        assert_eq!(
            directories
                .names_after(|overlay, target| overlay.attach_by_options(target))
                .unwrap(),
            100
        );
    }

    #[test]
    fn the_newer_interface_takes_as_many_layers_as_the_kernel() {
        let directories = Directories::new(400);
        let mounted = directories.names_after(|overlay, target| overlay.attach(target).map_err(|e| e.source));
        assert_eq!(mounted.unwrap(), 400);
    }

    #[test]
    fn a_mount_that_is_nowhere_leaves_no_trace() {
        let directories = Directories::new(1);
        let (upper, work) = (directories.at("upper"), directories.at("work"));
        drop(
            OverlayMount {
                lower: &directories.lower,
                upper: &upper,
                work: &work,
            }
            .detached()
            .unwrap(),
        );
        let names = rustix::fs::llistxattr(&upper, &mut [0; 1024]).unwrap();
        assert_eq!(names, 0, "the upper directory has attributes");
    }

    #[test]
    fn a_refusal_carries_the_words_of_the_kernel() {
        let directories = Directories::new(1);
        let (upper, work, target) = (
            directories.at("upper"),
            directories.at("work"),
            directories.at("target"),
        );
        let file = [directories.lower[0].join("of-0")];
        let error = OverlayMount {
            lower: &file,
            upper: &upper,
            work: &work,
        }
        .attach(&target)
        .unwrap_err();
        assert!(error.to_string().contains("not a directory"), "{error}");
        let inside = directories.at("upper/inside");
        fs::create_dir(&inside).unwrap();
        let overlay = OverlayMount {
            lower: &directories.lower,
            upper: &upper,
            work: &inside,
        };
        let error = overlay.attach(&target).unwrap_err();
        assert!(error.to_string().contains("dmesg"), "{error}");
    }
}
