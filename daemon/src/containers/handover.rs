//! What a migration does to a container at its source.
//!
//! ```text
//!   running --begin--> migrating --end--> running            whatever failed, it is undone
//!                          |  \--doubt--> in doubt --end---> running
//!                          |                  |
//!                          +------moved-------+--> only a tombstone
//! ```
//!
//! Every call may be repeated. Who owns the container is decided by the handoff journal, not by these states: they only keep users'
//! verbs away meanwhile.

use std::path::PathBuf;
use std::sync::Arc;

use tranship_migrate::handoff::is_handed_over;
use tranship_proto::ids::ContainerId;
use tranship_proto::v1::{ContainerState, Image};
use tranship_storage_drivers::driver::StorageDriver;

use super::allowed::Verb;
use super::engine::Containers;
use super::error::ContainerError;
use crate::clock::now_ms;
use crate::registry::{ContainerRecord, Tombstone, VolumeRecord};
use crate::runtime::ContainerPaths;
use crate::volumes;

/// Everything that makes up a container on this host.
#[derive(Clone)]
pub struct Anatomy {
    /// What the registry says.
    pub record: ContainerRecord,
    /// Where its files are.
    pub paths: ContainerPaths,
    /// The image it was made from.
    pub image: Image,
    /// Its storage driver: layers and writable layer.
    pub driver: Arc<dyn StorageDriver>,
    /// Its volumes, in the order of its mounts.
    pub volumes: Vec<MountedVolume>,
}

/// A volume that a container mounts.
#[derive(Clone)]
pub struct MountedVolume {
    /// What the registry says.
    pub record: VolumeRecord,
    /// Where its tree is.
    pub path: PathBuf,
    /// Its storage driver.
    pub driver: Arc<dyn StorageDriver>,
}

/// What becomes of the volumes of a container that has moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeFate {
    /// They stay.
    Keep,
    /// They go, but for those that another container mounts too.
    Remove,
}

impl Containers {
    /// Everything about a container that is here.
    ///
    /// # Errors
    /// It is not here, or its image, volumes or drivers are not.
    pub async fn anatomy(&self, id: &ContainerId) -> Result<Anatomy, ContainerError> {
        let parts = &self.shared.parts;
        let record = self.record(id).await?;
        let image = self.registry().images().get(&record.image_digest).await?;
        let image = image.ok_or_else(|| ContainerError::NoImage(record.image_digest.clone()))?;
        let driver = parts.storage.get(&record.spec.storage_driver)?;
        let mut volumes = Vec::new();
        for name in volumes::mounted(&record.spec) {
            let (volume, _) = parts.volumes.get(&name).await?;
            let path = parts.volumes.path(&volume).await?;
            let driver = parts.storage.get(&volume.driver)?;
            volumes.push(MountedVolume {
                record: volume,
                path,
                driver,
            });
        }
        Ok(Anatomy {
            paths: self.paths(id),
            record,
            image,
            driver,
            volumes,
        })
    }

    /// Keeps users' verbs away from a running container, which goes on running. By name or id.
    ///
    /// # Errors
    /// It does not run, or something else is going on with it.
    pub async fn begin_migration(&self, text: &str) -> Result<ContainerRecord, ContainerError> {
        let (record, _, _held) = self.claim(text, Verb::Migrate).await?;
        let begin = |record: &mut ContainerRecord| {
            if record.state == ContainerState::Running {
                record.state = ContainerState::Migrating;
            }
        };
        let record = self.change(&record.id, begin).await?;
        match record.state {
            ContainerState::Migrating => Ok(record),
            // It has ended between the look and the change.
            _ => Verb::Migrate.check(&record).map(|_| record),
        }
    }

    /// The container is an ordinary one again: running, unless it ended meanwhile.
    ///
    /// # Errors
    /// It is not here, or the registry cannot be written.
    pub async fn end_migration(&self, id: &ContainerId) -> Result<ContainerRecord, ContainerError> {
        let _held = self.shared.locks.hold(id).await?;
        let end = |record: &mut ContainerRecord| {
            if matches!(record.state, ContainerState::Migrating | ContainerState::InDoubt) {
                record.state = ContainerState::Running;
            }
        };
        self.change(id, end).await?;
        let record = self.record(id).await?;
        self.recover_one(&record).await?;
        self.record(id).await
    }

    /// It is not known whether the container is still this host's: nobody touches it. One that is not here has moved already.
    ///
    /// # Errors
    /// The registry cannot be written.
    pub async fn doubt(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let _held = self.shared.locks.hold(id).await?;
        if self.registry().containers().get(id).await?.is_none() {
            return Ok(());
        }
        let doubt = |record: &mut ContainerRecord| {
            // One that ended when its host was switched off may yet run at the destination.
            if matches!(record.state, ContainerState::Migrating | ContainerState::Exited) {
                record.state = ContainerState::InDoubt;
            }
        };
        self.change(id, doubt).await.map(drop)
    }

    /// A container that was handed over is this host's own again, under `epoch`. Nothing happens to one that has come back since.
    ///
    /// # Errors
    /// It is not here, or the registry cannot be written.
    pub async fn own(&self, id: &ContainerId, epoch: u64) -> Result<(), ContainerError> {
        let _held = self.shared.locks.hold(id).await?;
        let own = move |record: &mut ContainerRecord| record.epoch = record.epoch.max(epoch);
        self.change(id, own).await.map(drop)
    }

    /// The container, if it certainly is this host's own, is so under `epoch`, unless its own is as high. Answers whether its own was
    /// raised. One that is on its way to or from here, or in doubt, is left alone.
    ///
    /// # Errors
    /// It is not here, or the registry cannot be written.
    pub async fn outbid(&self, id: &ContainerId, epoch: u64) -> Result<bool, ContainerError> {
        use ContainerState::{InDoubt, Migrating, Receiving};
        let _held = self.shared.locks.hold(id).await?;
        let before = self.record(id).await?;
        if matches!(before.state, Migrating | InDoubt | Receiving) || before.epoch >= epoch {
            return Ok(false);
        }
        self.change(id, move |record| record.epoch = epoch).await?;
        Ok(true)
    }

    /// The container is `to`'s from `epoch` on: ends the frozen copy without letting it run, removes what belonged to it,
    /// and leaves a tombstone. Nothing happens when that was done before, or when the container has come back since.
    ///
    /// # Errors
    /// Something could not be removed. The container is then kept as it is, to be tried again.
    pub async fn moved(
        &self,
        id: &ContainerId,
        to: &str,
        epoch: u64,
        fate: VolumeFate,
    ) -> Result<(), ContainerError> {
        let _held = self.shared.locks.hold(id).await?;
        let Some(record) = self.registry().containers().get(id).await? else {
            return Ok(());
        };
        if !is_handed_over(record.epoch, epoch) {
            return Ok(());
        }
        let leftovers = self.dismantle(&record).await;
        if !leftovers.is_empty() {
            return Err(ContainerError::Removing {
                name: record.name.to_string(),
                leftovers,
            });
        }
        if fate == VolumeFate::Remove {
            for name in volumes::mounted(&record.spec) {
                self.shared.parts.volumes.remove_with(&name, id).await?;
            }
        }
        self.registry()
            .containers()
            .bury(tombstone(record, to, epoch))
            .await?;
        self.shared.watches.announce();
        Ok(())
    }
}

fn tombstone(record: ContainerRecord, to: &str, epoch: u64) -> Tombstone {
    let mut container = record.to_message("");
    container.set_state(ContainerState::Moved);
    container.pid = 0;
    container.epoch = epoch;
    to.clone_into(&mut container.moved_to);
    Tombstone {
        id: record.id,
        name: record.name,
        moved_to: to.to_owned(),
        epoch,
        moved_ms: now_ms(),
        container,
    }
}
