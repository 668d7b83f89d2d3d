//! The directories of a pool: what is fit to be one, and how things appear in it and go.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{
    CWD, FileType, FlockOperation, Mode, RawDir, RenameFlags, XattrFlags, flock, makedev, mknodat,
    renameat_with, setxattr, statfs, statvfs, syncfs,
};
use rustix::io::Errno;
use tranship_proto::ids::{ContainerId, Digest, Name};
use tranship_proto::points;

use super::mount::OverlayMount;
use super::remove::remove_tree;
use crate::driver::{DriverError, Outcome, Space, Stage, StagedTree};

pub(super) const DRIVER: &str = "overlay";
pub(super) const VOLUME_DATA: &str = "_data";

const OVERLAY_MAGIC: u64 = 0x794c_7630;

/// What a try of the pool takes for a moment: three directories and a node.
const PROBE_BYTES: u64 = 64 << 10;

/// A pool that this process has to itself.
pub(super) struct Pool {
    root: PathBuf,
    next: AtomicU64,
    /// Calls that look first and change then take turns.
    turn: Mutex<()>,
    _lock: Arc<OwnedFd>,
}

impl Pool {
    pub(super) fn open(path: &Path) -> Result<Self, DriverError> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder
            .create(path)
            .map_err(|e| DriverError::io("make the pool", path, e))?;
        let root = path
            .canonicalize()
            .map_err(|e| DriverError::io("open the pool", path, e))?;
        require_plain(&root)?;
        let lock = lock(&root)?;
        let pool = Self {
            root,
            next: AtomicU64::new(0),
            turn: Mutex::new(()),
            _lock: Arc::new(lock),
        };
        for part in ["empty", "layers", "rootfs", "volumes", "staging"] {
            make_directory(&pool.root.join(part), 0o700)?;
        }
        pool.sweep()?;
        pool.require_fit()?;
        Ok(pool)
    }

    pub(super) fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    pub(super) fn layer(&self, layer: &Digest) -> PathBuf {
        self.root.join("layers").join(layer.hex())
    }

    pub(super) fn rootfs(&self, id: &ContainerId) -> PathBuf {
        self.root.join("rootfs").join(id.as_str())
    }

    pub(super) fn volume(&self, name: &Name) -> PathBuf {
        self.root.join("volumes").join(name.as_str())
    }

    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn layers(&self) -> Result<Vec<Digest>, DriverError> {
        names(&self.root.join("layers"), |name| {
            Digest::from_str(&format!("sha256:{name}")).ok()
        })
    }

    pub(super) fn rootfs_ids(&self) -> Result<Vec<ContainerId>, DriverError> {
        names(&self.root.join("rootfs"), |name| name.parse().ok())
    }

    pub(super) fn volumes(&self) -> Result<Vec<Name>, DriverError> {
        names(&self.root.join("volumes"), |name| name.parse().ok())
    }

    pub(super) fn is_there(&self, path: &Path) -> Result<bool, DriverError> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => Ok(metadata.is_dir()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(DriverError::io("look at", path, error)),
        }
    }

    /// An empty directory that becomes `place` when it is committed.
    pub(super) fn stage(&self, place: PathBuf) -> Result<StagedTree, DriverError> {
        let path = self.staging_path();
        make_directory(&path, 0o755)?;
        Ok(StagedTree::new(
            path,
            Box::new(Placement {
                place,
                _lock: Arc::clone(&self._lock),
            }),
        ))
    }

    pub(super) fn create_volume(&self, name: &Name) -> Result<Outcome, DriverError> {
        let place = self.volume(name);
        if self.is_there(&place)? {
            return Ok(Outcome::Unchanged);
        }
        let staged = self.stage(place)?;
        make_directory(&staged.path().join(VOLUME_DATA), 0o755)?;
        staged.commit()
    }

    /// Takes a directory out of its place at once, and then apart.
    pub(super) fn remove(&self, place: &Path) -> Result<Outcome, DriverError> {
        let away = self.staging_path();
        match points::step("storage:rename-away", || fs::rename(place, &away)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Unchanged),
            Err(error) => return Err(DriverError::io("remove", place, error)),
        }
        sync_parent(place)?;
        remove_tree(&away).map_err(|e| DriverError::io("remove", &away, e))?;
        Ok(Outcome::Changed)
    }

    pub(super) fn sync(&self) -> Result<(), DriverError> {
        let root = File::open(&self.root).map_err(|e| DriverError::io("open", &self.root, e))?;
        syncfs(&root).map_err(|e| DriverError::io("bring to the disk", &self.root, e))
    }

    pub(super) fn space(&self) -> Result<Space, DriverError> {
        let stat = statvfs(&self.root).map_err(|e| DriverError::io("ask for the space of", &self.root, e))?;
        Ok(Space {
            total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    fn staging_path(&self) -> PathBuf {
        // Free of clashes: the pool is locked, and swept when opened.
        self.root
            .join("staging")
            .join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn sweep(&self) -> Result<(), DriverError> {
        let staging = self.root.join("staging");
        for left in fs::read_dir(&staging).map_err(|e| DriverError::io("list", &staging, e))? {
            let left = left.map_err(|e| DriverError::io("list", &staging, e))?.path();
            tracing::info!(path = %left.display(), "sweeping what was left half-made");
            remove_tree(&left).map_err(|e| DriverError::io("remove", &left, e))?;
        }
        Ok(())
    }

    /// Refuses a file system on which containers would fail later, each reason in words.
    fn require_fit(&self) -> Result<(), DriverError> {
        let unfit = |reason| DriverError::UnfitPool {
            driver: DRIVER,
            path: self.root.clone(),
            reason,
        };
        let stat = statfs(&self.root).map_err(|e| DriverError::io("look at", &self.root, e))?;
        if u64::try_from(stat.f_type) == Ok(OVERLAY_MAGIC) {
            return Err(unfit(
                "it lies on an overlay file system, which cannot hold upper directories; choose a directory on ext4, \
                 XFS or btrfs",
            ));
        }
        let space = self.space()?;
        // Some file systems do not say how large they are.
        if space.total_bytes > 0 && space.free_bytes < PROBE_BYTES {
            // It was fit when it was filled. Whoever lets containers go on where a daemon has died opens it, too.
            tracing::warn!(path = %self.root.display(), "the pool is full: whether it is fit was not tried");
            return Ok(());
        }
        let probe = self.stage(self.root.join("never"))?;
        let upper = probe.path().join("upper");
        let work = probe.path().join("work");
        make_directory(&upper, 0o755)?;
        make_directory(&work, 0o700)?;
        if setxattr(&upper, "trusted.overlay.opaque", b"y", XattrFlags::empty()).is_err() {
            return Err(unfit(
                "its file system takes no trusted extended attributes, which mark opaque directories",
            ));
        }
        let whiteout = mknodat(
            CWD,
            upper.join("whiteout"),
            FileType::CharacterDevice,
            Mode::empty(),
            makedev(0, 0),
        );
        if whiteout.is_err() {
            return Err(unfit(
                "no device nodes can be made on it, which stand for removed files",
            ));
        }
        if !lists_types(&upper).map_err(|e| DriverError::io("list", &upper, e))? {
            return Err(unfit(
                "its directories do not tell kinds of entries (XFS made with ftype=0)",
            ));
        }
        let empty = [self.empty()];
        let mount = OverlayMount {
            lower: &empty,
            upper: &upper,
            work: &work,
        };
        match mount.detached() {
            Ok(_unmounted_when_closed) => Ok(()),
            Err(error) if error.source.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => Ok(()),
            Err(error) if error.source.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Err(unfit(
                "this kernel has no overlay file system; load the module `overlay`",
            )),
            Err(_) => Err(unfit(
                "the kernel refuses an overlay mount with its upper directory there",
            )),
        }
    }
}

/// Moves a staged directory to its place.
struct Placement {
    place: PathBuf,
    /// A staged tree can outlive the driver; the pool stays locked as long.
    _lock: Arc<OwnedFd>,
}

impl Stage for Placement {
    fn commit(&self, path: &Path) -> Result<Outcome, DriverError> {
        let directory = File::open(path).map_err(|e| DriverError::io("open", path, e))?;
        points::step("storage:sync-tree", || syncfs(&directory))
            .map_err(|e| DriverError::io("bring to the disk", path, e))?;
        let renamed = points::step("storage:rename-into-place", || {
            renameat_with(CWD, path, CWD, &self.place, RenameFlags::NOREPLACE)
        });
        match renamed {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(Outcome::Unchanged),
            Err(error) => return Err(DriverError::io("put in place", &self.place, error)),
        }
        if let Err(error) = sync_parent(&self.place) {
            // What has failed has changed nothing; should this fail as well, the error is the same.
            fs::rename(&self.place, path).ok();
            return Err(error);
        }
        Ok(Outcome::Changed)
    }

    fn discard(&self, path: &Path) -> Result<(), DriverError> {
        remove_tree(path).map_err(|e| DriverError::io("remove", path, e))
    }
}

/// Makes a directory with exactly this mode; one that is there stays as it is.
pub(super) fn make_directory(path: &Path, mode: u32) -> Result<(), DriverError> {
    match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(|e| DriverError::io("set the mode of", path, e)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(DriverError::io("make the directory", path, error)),
    }
}

fn sync_parent(path: &Path) -> Result<(), DriverError> {
    let parent = path.parent().unwrap_or(path);
    points::step("storage:sync-directory", || File::open(parent)?.sync_all())
        .map_err(|e| DriverError::io("bring to the disk", parent, e))
}

fn names<T: Ord>(directory: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, DriverError> {
    let list = fs::read_dir(directory).map_err(|e| DriverError::io("list", directory, e))?;
    let mut found = Vec::new();
    for entry in list {
        let entry = entry.map_err(|e| DriverError::io("list", directory, e))?;
        found.extend(entry.file_name().to_str().and_then(&parse));
    }
    found.sort_unstable();
    Ok(found)
}

/// The mount options separate paths by these bytes; rather than quoting them differently for each kernel, no pool has them.
fn require_plain(root: &Path) -> Result<(), DriverError> {
    let special = |byte: &u8| matches!(byte, b':' | b',' | b'\\' | b'\n');
    if root.as_os_str().as_encoded_bytes().iter().any(special) {
        let reason =
            "its path has a colon, comma, backslash or line break, which overlay mount options cannot carry";
        return Err(DriverError::UnfitPool {
            driver: DRIVER,
            path: root.to_owned(),
            reason,
        });
    }
    Ok(())
}

fn lock(root: &Path) -> Result<OwnedFd, DriverError> {
    let path = root.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let fd = OwnedFd::from(file.map_err(|e| DriverError::io("open", &path, e))?);
    match flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd),
        Err(Errno::WOULDBLOCK) => Err(DriverError::PoolBusy {
            path: root.to_owned(),
        }),
        Err(error) => Err(DriverError::io("lock", &path, error)),
    }
}

/// Whether listing a directory tells the kind of each entry: the overlay needs it to see whiteouts.
fn lists_types(directory: &Path) -> io::Result<bool> {
    let directory = File::open(directory)?;
    let mut buffer = [MaybeUninit::uninit(); 1024];
    let mut listing = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = listing.next() {
        if entry?.file_type() == FileType::Unknown {
            return Ok(false);
        }
    }
    Ok(true)
}
