//! Where a daemon keeps things that are not one container's: everything below the two directories of the configuration.
//! [`crate::runtime::ContainerPaths`] has a container's own.

use std::path::{Path, PathBuf};

use tranship_proto::ids::MigrationId;

/// The layout of the state and the run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    state_dir: PathBuf,
    run_dir: PathBuf,
}

impl Paths {
    /// The layout below these two directories.
    #[must_use]
    pub fn new(state_dir: &Path, run_dir: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            run_dir: run_dir.to_owned(),
        }
    }

    /// The directory that survives a reboot.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The directory that does not.
    #[must_use]
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The registry's file.
    #[must_use]
    pub fn registry(&self) -> PathBuf {
        self.state_dir.join("registry.db")
    }

    /// The directory of the OCI bundles.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.state_dir.join("containers")
    }

    /// The directory of what lives as long as a container runs.
    #[must_use]
    pub fn live(&self) -> PathBuf {
        self.run_dir.join("containers")
    }

    /// The directory of the stagings of migrations.
    #[must_use]
    pub fn migrations(&self) -> PathBuf {
        self.run_dir.join("migrations")
    }

    /// A migration's images, logs and sockets.
    #[must_use]
    pub fn migration(&self, id: &MigrationId) -> PathBuf {
        self.migrations().join(id.to_string())
    }

    /// `--root` of the OCI runtime.
    #[must_use]
    pub fn runc_root(&self) -> PathBuf {
        self.run_dir.join("runc")
    }

    /// A directory that holds nothing but `criu`, for runc's PATH.
    #[must_use]
    pub fn criu_path(&self) -> PathBuf {
        self.run_dir.join("criu-path")
    }
}
