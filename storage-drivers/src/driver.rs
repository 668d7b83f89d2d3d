//! The contract of a storage driver.
//!
//! A driver keeps three kinds of things: *layers*, read-only trees known by the digest of their content; *root file
//! systems*, one per container, a stack of layers with a writable layer on top; and *volumes*, writable trees known by
//! name. `tests/contract.rs` holds every driver to what is said here.
//!
//! Calls are idempotent and answer with an [`Outcome`]: asking for what is there already is not an error. What a call
//! has returned for is on the disk. What a killed daemon left half-made is never seen: it is swept when the driver is
//! opened again.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tranship_proto::ids::{ContainerId, Digest, Name};

/// Whether a call had to do anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Things are now as asked for.
    Changed,
    /// They were so before.
    Unchanged,
}

/// Room in a driver's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total_bytes: u64,
    /// What can still be written to it.
    pub free_bytes: u64,
}

/// Root file systems and volumes in one pool.
pub trait StorageDriver: Send + Sync {
    /// Name of the driver as users write it.
    fn name(&self) -> &'static str;

    /// Every layer, in order of digest.
    ///
    /// # Errors
    /// [`DriverError::Io`] when the pool cannot be read.
    fn layers(&self) -> Result<Vec<Digest>, DriverError>;

    /// Whether a layer is there.
    ///
    /// # Errors
    /// [`DriverError::Io`] when the pool cannot be read.
    fn has_layer(&self, layer: &Digest) -> Result<bool, DriverError>;

    /// An empty directory to fill; [`StagedTree::commit`] makes it the layer. The driver takes the digest on trust:
    /// whoever fills the directory checks the content.
    ///
    /// # Errors
    /// [`DriverError::Io`] when the directory cannot be made.
    fn stage_layer(&self, layer: &Digest) -> Result<StagedTree, DriverError>;

    /// The tree of a layer, to be read only.
    ///
    /// # Errors
    /// [`DriverError::NoLayer`].
    fn layer_path(&self, layer: &Digest) -> Result<PathBuf, DriverError>;

    /// Removes a layer.
    ///
    /// # Errors
    /// [`DriverError::LayerInUse`] while a root file system stands on it.
    fn remove_layer(&self, layer: &Digest) -> Result<Outcome, DriverError>;

    /// Makes the root file system of a container: `layers`, the lowest first, and an empty writable layer.
    ///
    /// # Errors
    /// [`DriverError::NoLayer`]; [`DriverError::OtherLayers`] when the container has one of other layers.
    fn create_rootfs(&self, id: &ContainerId, layers: &[Digest]) -> Result<Outcome, DriverError>;

    /// Mounts a root file system on an existing directory, in the caller's mount namespace.
    ///
    /// # Errors
    /// [`DriverError::NoRootfs`]; [`DriverError::TargetTaken`] when something else is mounted there;
    /// [`DriverError::Mounted`] when this root file system is mounted elsewhere.
    fn mount_rootfs(&self, id: &ContainerId, target: &Path) -> Result<Outcome, DriverError>;

    /// Takes a root file system off a directory. Processes that still use it in other mount namespaces keep it.
    ///
    /// # Errors
    /// [`DriverError::TargetTaken`] when something else is mounted there.
    fn unmount_rootfs(&self, id: &ContainerId, target: &Path) -> Result<Outcome, DriverError>;

    /// Removes a root file system with all that was written to it.
    ///
    /// # Errors
    /// [`DriverError::Mounted`] while it is mounted in the caller's mount namespace.
    fn remove_rootfs(&self, id: &ContainerId) -> Result<Outcome, DriverError>;

    /// The tree that travels with a container: what it wrote on top of its layers, in the driver's own notation.
    ///
    /// # Errors
    /// [`DriverError::NoRootfs`].
    fn writable_path(&self, id: &ContainerId) -> Result<PathBuf, DriverError>;

    /// Makes an empty volume, owned by root, mode 0755.
    ///
    /// # Errors
    /// [`DriverError::Io`] when it cannot be made.
    fn create_volume(&self, name: &Name) -> Result<Outcome, DriverError>;

    /// Removes a volume with its data. Whether a container uses it is for the caller to know.
    ///
    /// # Errors
    /// [`DriverError::Io`] when it cannot be removed.
    fn remove_volume(&self, name: &Name) -> Result<Outcome, DriverError>;

    /// The tree of a volume.
    ///
    /// # Errors
    /// [`DriverError::NoVolume`].
    fn volume_path(&self, name: &Name) -> Result<PathBuf, DriverError>;

    /// Every volume, in order of name.
    ///
    /// # Errors
    /// [`DriverError::Io`] when the pool cannot be read.
    fn volumes(&self) -> Result<Vec<Name>, DriverError>;

    /// Brings everything written to the pool to the disk.
    ///
    /// # Errors
    /// [`DriverError::Io`] when the disk reports an error: what is on it is then unknown.
    fn sync(&self) -> Result<(), DriverError>;

    /// How much room there is.
    ///
    /// # Errors
    /// [`DriverError::Io`] when the file system does not say.
    fn space(&self) -> Result<Space, DriverError>;
}

/// How a driver ends the life of a staged tree.
pub trait Stage: Send {
    /// Makes the tree what it was staged for, atomically and durably.
    ///
    /// # Errors
    /// [`DriverError::Io`]; the tree is then still staged.
    fn commit(&self, path: &Path) -> Result<Outcome, DriverError>;

    /// Removes the tree.
    ///
    /// # Errors
    /// [`DriverError::Io`]; what is left is swept when the driver is opened again.
    fn discard(&self, path: &Path) -> Result<(), DriverError>;
}

/// An empty directory in the pool, to be filled; dropped without a commit it is removed.
pub struct StagedTree {
    path: PathBuf,
    stage: Option<Box<dyn Stage>>,
}

impl StagedTree {
    /// For drivers: a directory that exists, and what becomes of it.
    #[must_use]
    pub fn new(path: PathBuf, stage: Box<dyn Stage>) -> Self {
        Self {
            path,
            stage: Some(stage),
        }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory, opened: what [`crate::tree::TreeWriter::create`] wants.
    ///
    /// # Errors
    /// [`DriverError::Io`] when it cannot be opened.
    pub fn open(&self) -> Result<OwnedFd, DriverError> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(&self.path, flags, Mode::empty()).map_err(|e| DriverError::io("open", &self.path, e))
    }

    /// Makes the tree what it was staged for. [`Outcome::Unchanged`] when that was there already: the tree is dropped.
    ///
    /// # Errors
    /// [`DriverError::Io`]; nothing has changed then, and the tree is removed.
    pub fn commit(mut self) -> Result<Outcome, DriverError> {
        let Some(stage) = &self.stage else {
            return Ok(Outcome::Unchanged);
        };
        let outcome = stage.commit(&self.path)?;
        if outcome == Outcome::Changed {
            self.stage = None;
        }
        Ok(outcome)
    }
}

impl Drop for StagedTree {
    fn drop(&mut self) {
        if let Some(stage) = self.stage.take()
            && let Err(error) = stage.discard(&self.path)
        {
            tracing::warn!(error = %error, path = %self.path.display(), "a staged tree is left for the next start");
        }
    }
}

/// Why a driver did not do what it was asked for. Unless a variant says otherwise, nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The kernel refused something.
    #[error("cannot {action} {path:?}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pool cannot be used.
    #[error("{path:?} cannot be the pool of the {driver} driver: {reason}")]
    UnfitPool {
        /// The driver.
        driver: &'static str,
        /// The pool's directory.
        path: PathBuf,
        /// What is missing, and what would do.
        reason: &'static str,
    },
    /// Another daemon works in the pool.
    #[error("the pool {path:?} is in use by another process; give each daemon a pool of its own")]
    PoolBusy {
        /// The pool's directory.
        path: PathBuf,
    },
    /// No such layer.
    #[error("there is no layer {0}")]
    NoLayer(Digest),
    /// Root file systems stand on the layer.
    #[error("layer {layer} is in use by container {}", container.short())]
    LayerInUse {
        /// The layer.
        layer: Digest,
        /// One of the containers.
        container: ContainerId,
    },
    /// No such root file system.
    #[error("container {} has no root file system here", .0.short())]
    NoRootfs(ContainerId),
    /// There is a root file system of that container, but it stands on other layers.
    #[error("container {} already has a root file system of other layers", .0.short())]
    OtherLayers(ContainerId),
    /// The root file system is mounted.
    #[error("the root file system of container {} is mounted on {target:?}", container.short())]
    Mounted {
        /// Whose it is.
        container: ContainerId,
        /// Where.
        target: PathBuf,
    },
    /// Something else is mounted where a root file system should be.
    #[error("something else is mounted on {target:?}: {what}")]
    TargetTaken {
        /// Where.
        target: PathBuf,
        /// Kind of file system and its source.
        what: String,
    },
    /// The kernel did not mount a root file system.
    #[error("the kernel refused to mount the root file system on {target:?}{explanation}")]
    Mount {
        /// Where.
        target: PathBuf,
        /// The kernel's own words, after a colon, or nothing.
        explanation: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The note that says what a root file system stands on is damaged.
    #[error("cannot understand {path:?}; the root file system it belongs to cannot be used")]
    Record {
        /// The note.
        path: PathBuf,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No such volume.
    #[error("there is no volume {0}")]
    NoVolume(Name),
}

impl DriverError {
    pub(crate) fn io(action: &'static str, path: &Path, error: impl Into<io::Error>) -> Self {
        Self::Io {
            action,
            path: path.to_owned(),
            source: error.into(),
        }
    }
}
