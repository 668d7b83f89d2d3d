//! The storage driver on the kernel's overlay file system: shared layers below, one writable directory per container.
//!
//! ```text
//! POOL/lock                         held while a daemon works in the pool
//! POOL/empty/                       the lower directory of a root file system without layers
//! POOL/layers/HEX/                  the tree of a layer, HEX its digest's digits
//! POOL/rootfs/ID/rootfs.json        what it stands on
//! POOL/rootfs/ID/upper/             what the container wrote: this travels
//! POOL/rootfs/ID/work/              the kernel's scratch space, made anew for each mount
//! POOL/volumes/NAME/_data/          the tree of a volume
//! POOL/staging/N/                   half-made and half-removed things; swept when the pool is opened
//! ```
//!
//! Whatever appears in `layers`, `rootfs` or `volumes` is moved there whole by one rename, after its content was brought
//! to the disk; whatever goes is first moved to `staging`. A crash therefore leaves nothing half-made where it counts.
//!
//! [`mount`] says which options the overlay gets and why an upper directory can be mounted on another host.

pub mod mount;
pub mod mountinfo;

mod pool;
mod remove;
mod rootfs;

use std::path::{Path, PathBuf};

use tranship_proto::ids::{ContainerId, Digest, Name};

use crate::driver::{DriverError, Outcome, Space, StagedTree, StorageDriver};
use pool::Pool;

/// The overlay driver, on one pool.
pub struct OverlayDriver {
    pool: Pool,
}

impl OverlayDriver {
    /// Opens a pool, made if it is not there yet, and sweeps what a killed daemon left half-made.
    ///
    /// # Errors
    /// [`DriverError::UnfitPool`] on a file system that cannot hold upper directories; [`DriverError::PoolBusy`] while
    /// another process has it open.
    pub fn open(pool: &Path) -> Result<Self, DriverError> {
        Ok(Self {
            pool: Pool::open(pool)?,
        })
    }
}

impl StorageDriver for OverlayDriver {
    fn name(&self) -> &'static str {
        pool::DRIVER
    }

    fn layers(&self) -> Result<Vec<Digest>, DriverError> {
        self.pool.layers()
    }

    fn has_layer(&self, layer: &Digest) -> Result<bool, DriverError> {
        self.pool.is_there(&self.pool.layer(layer))
    }

    fn stage_layer(&self, layer: &Digest) -> Result<StagedTree, DriverError> {
        self.pool.stage(self.pool.layer(layer))
    }

    fn layer_path(&self, layer: &Digest) -> Result<PathBuf, DriverError> {
        if self.has_layer(layer)? {
            Ok(self.pool.layer(layer))
        } else {
            Err(DriverError::NoLayer(layer.clone()))
        }
    }

    fn remove_layer(&self, layer: &Digest) -> Result<Outcome, DriverError> {
        let _turn = self.pool.turn();
        for container in rootfs::all(&self.pool)? {
            if rootfs::Record::read(&self.pool, &container)?
                .layers
                .contains(layer)
            {
                return Err(DriverError::LayerInUse {
                    layer: layer.clone(),
                    container,
                });
            }
        }
        self.pool.remove(&self.pool.layer(layer))
    }

    fn create_rootfs(&self, id: &ContainerId, layers: &[Digest]) -> Result<Outcome, DriverError> {
        let _turn = self.pool.turn();
        rootfs::create(&self.pool, id, layers)
    }

    fn mount_rootfs(&self, id: &ContainerId, target: &Path) -> Result<Outcome, DriverError> {
        let _turn = self.pool.turn();
        rootfs::mount(&self.pool, id, target)
    }

    fn unmount_rootfs(&self, id: &ContainerId, target: &Path) -> Result<Outcome, DriverError> {
        let _turn = self.pool.turn();
        rootfs::unmount(&self.pool, id, target)
    }

    fn remove_rootfs(&self, id: &ContainerId) -> Result<Outcome, DriverError> {
        let _turn = self.pool.turn();
        rootfs::remove(&self.pool, id)
    }

    fn writable_path(&self, id: &ContainerId) -> Result<PathBuf, DriverError> {
        rootfs::Record::read(&self.pool, id)?;
        Ok(self.pool.rootfs(id).join(rootfs::UPPER))
    }

    fn create_volume(&self, name: &Name) -> Result<Outcome, DriverError> {
        let _turn = self.pool.turn();
        self.pool.create_volume(name)
    }

    fn remove_volume(&self, name: &Name) -> Result<Outcome, DriverError> {
        let _turn = self.pool.turn();
        self.pool.remove(&self.pool.volume(name))
    }

    fn volume_path(&self, name: &Name) -> Result<PathBuf, DriverError> {
        let data = self.pool.volume(name).join(pool::VOLUME_DATA);
        if self.pool.is_there(&data)? {
            Ok(data)
        } else {
            Err(DriverError::NoVolume(name.clone()))
        }
    }

    fn volumes(&self) -> Result<Vec<Name>, DriverError> {
        self.pool.volumes()
    }

    fn sync(&self) -> Result<(), DriverError> {
        self.pool.sync()
    }

    fn space(&self) -> Result<Space, DriverError> {
        self.pool.space()
    }
}
