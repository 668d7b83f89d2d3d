//! How a container comes to this host: step by step, each of which may be repeated, until it is either this host's own or
//! nothing is left of it.
//!
//! ```text
//!   reserve_incoming            name and id are taken; state RECEIVING; journaled by the caller
//!   receive_image               once the layers are there
//!   receive_rootfs, _volume     empty trees to write into
//!   receive_bundle              bundle written: a restore can be started, though not released
//!   receive_mount               rootfs mounted: ready for the restore
//!   adopt                       its tasks run: state RUNNING under the new epoch
//!   drop_incoming               instead of adopt, at any time before: all of it goes
//! ```

use std::path::PathBuf;

use tranship_migrate::handoff::{Refusal, Stay, admit};
use tranship_proto::ids::{ContainerId, Digest, Name};
use tranship_proto::v1::{self, ContainerState, Image, VolumeSource};

use super::engine::Containers;
use super::error::{ContainerError, PartError};
use super::run::digests;
use super::spec::{self, Defaults};
use super::watch::record_step;
use crate::clock::now_ms;
use crate::registry::ContainerRecord;

impl Containers {
    /// Takes the name and the id of a container that comes from another host, under the epoch that it will have here.
    /// `on_its_way` says that another migration that brings it here is not at its end.
    ///
    /// # Errors
    /// It is not let in ([`admit`]), its name is taken, or the description is one that this host would not make itself. Nothing has
    /// been taken then.
    pub async fn reserve_incoming(
        &self,
        container: &v1::Container,
        next_epoch: u64,
        on_its_way: bool,
    ) -> Result<ContainerRecord, ContainerError> {
        let record = self.incoming(container, next_epoch)?;
        let _held = self.shared.locks.hold(&record.id).await?;
        let containers = self.registry().containers();
        let known = containers.get(&record.id).await?;
        let here = known.as_ref().map(|known| match known.state {
            ContainerState::Receiving => Stay::Arriving { epoch: known.epoch },
            _ => Stay::Own { epoch: known.epoch },
        });
        let tombstone = containers.tombstone(&record.id).await?;
        let buried = tombstone.map(|tombstone| tombstone.epoch);
        let name = || record.name.to_string();
        match admit(here, on_its_way, buried, next_epoch) {
            Ok(()) => {}
            Err(Refusal::Here) => return Err(ContainerError::AlreadyHere(name())),
            Err(Refusal::OnItsWay) => return Err(ContainerError::OnItsWay(name())),
            Err(Refusal::OldEpoch { seen }) => {
                let (name, epoch) = (name(), next_epoch);
                return Err(ContainerError::OldEpoch { name, epoch, seen });
            }
        }
        if let Some(known) = known {
            return Ok(known);
        }
        match containers.insert(record.clone()).await {
            Err(error) if error.is_exists() => Err(ContainerError::NameTaken(record.name.to_string())),
            inserted => Ok(inserted.map(|()| record)?),
        }
    }

    /// Keeps the image that a received container was made from, with those of its names that are free here.
    ///
    /// # Errors
    /// The registry cannot be written.
    pub async fn receive_image(&self, image: Image) -> Result<(), ContainerError> {
        Ok(self.registry().images().put_if_new(image).await?)
    }

    /// Makes the root file system of a container that is being received, of layers that are here. Answers where its
    /// writable layer is: an empty directory to fill. It is not mounted before [`Containers::receive_mount`].
    ///
    /// # Errors
    /// A layer is missing, or the storage driver fails.
    pub async fn receive_rootfs(&self, id: &ContainerId, image: &Image) -> Result<PathBuf, ContainerError> {
        let record = self.incoming_record(id).await?;
        let (_, layers) = digests(image)?;
        let driver = self.shared.parts.storage.get(&record.spec.storage_driver)?;
        let of = record.id.clone();
        let made = crate::blocking::run(move || {
            let _outcome = driver.create_rootfs(&of, &layers)?;
            driver.writable_path(&of)
        });
        made.await
            .map_err(|source| record_step(&record, "make the root file system", source))
    }

    /// Makes an empty volume of a container that is being received, and answers where.
    ///
    /// # Errors
    /// A volume of that name is here already, or the storage driver is missing or fails.
    pub async fn receive_volume(
        &self,
        id: &ContainerId,
        volume: &VolumeSource,
    ) -> Result<PathBuf, ContainerError> {
        let record = self.incoming_record(id).await?;
        let name: Name = volume
            .name
            .parse()
            .map_err(|_| ContainerError::Malformed("the name of a volume"))?;
        let volumes = &self.shared.parts.volumes;
        let made = volumes
            .receive(&record.id, &name, &volume.driver, volume.labels.clone())
            .await?;
        Ok(volumes.path(&made).await?)
    }

    /// Writes the bundle, with a runtime configuration of this host's paths. Names of users are looked up in the image's
    /// layers, as they were when the container was made: its root file system is mounted for that, and not afterwards.
    ///
    /// # Errors
    /// Something of it fails.
    pub async fn receive_bundle(
        &self,
        id: &ContainerId,
        image: &Image,
    ) -> Result<ContainerRecord, ContainerError> {
        let record = self.incoming_record(id).await?;
        let failed = |source: PartError| record_step(&record, "prepare the bundle", source);
        let mounts = self.find_mounts(&record.spec).await.map_err(failed)?;
        self.mount_rootfs(&record).await.map_err(failed)?;
        let made = self.make_bundle(&record, image, &mounts).await;
        self.unmount_rootfs(&record).await.map_err(failed)?;
        made.map_err(failed)
    }

    /// Mounts the root file system, whose writable layer is complete now. Nothing may write into that layer afterwards but
    /// through the mount.
    ///
    /// # Errors
    /// The storage driver fails.
    pub async fn receive_mount(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let record = self.incoming_record(id).await?;
        self.mount_rootfs(&record)
            .await
            .map_err(|source| record_step(&record, "mount the root file system", source))
    }

    /// The container runs here, as process `pid`: it is this host's own now, its volumes too, and a tombstone of an
    /// earlier stay goes.
    ///
    /// # Errors
    /// The registry cannot be written.
    pub async fn adopt(&self, id: &ContainerId, pid: i32) -> Result<ContainerRecord, ContainerError> {
        let _held = self.shared.locks.hold(id).await?;
        self.registry().volumes().received(id).await?;
        let adopt = move |record: &mut ContainerRecord| {
            if record.state == ContainerState::Receiving {
                record.state = ContainerState::Running;
                record.pid = pid;
                record.finished_ms = 0;
            }
        };
        let adopted = self.registry().containers().take_over(id, adopt).await?;
        let record = adopted.ok_or_else(|| ContainerError::NotFound(id.to_string()))?;
        self.shared.watches.announce();
        self.watch(id);
        Ok(record)
    }

    /// Removes what has been received of a container so far; a tombstone of an earlier stay remains. Nothing there is good.
    ///
    /// # Errors
    /// It is this host's own by now, or something could not be removed: the record is then kept, to be tried again.
    pub async fn drop_incoming(&self, id: &ContainerId) -> Result<(), ContainerError> {
        let _held = self.shared.locks.hold(id).await?;
        if let Some(record) = self.registry().containers().get(id).await? {
            if record.state != ContainerState::Receiving {
                return Err(ContainerError::AlreadyHere(record.name.to_string()));
            }
            let leftovers = self.dismantle(&record).await;
            if !leftovers.is_empty() {
                return Err(ContainerError::Removing {
                    name: record.name.to_string(),
                    leftovers,
                });
            }
        }
        self.shared.parts.volumes.drop_received(id).await?;
        self.registry().containers().remove(id).await?;
        self.shared.watches.announce();
        Ok(())
    }

    async fn incoming_record(&self, id: &ContainerId) -> Result<ContainerRecord, ContainerError> {
        let record = self.record(id).await?;
        match record.state {
            ContainerState::Receiving => Ok(record),
            _ => Err(ContainerError::AlreadyHere(record.name.to_string())),
        }
    }

    /// The record of a container as a peer describes it, held to what this host asks of its own.
    fn incoming(&self, container: &v1::Container, epoch: u64) -> Result<ContainerRecord, ContainerError> {
        let malformed = ContainerError::Malformed;
        let id: ContainerId = container.id.parse().map_err(|_| malformed("its id"))?;
        let image_digest: Digest = container
            .image_digest
            .parse()
            .map_err(|_| malformed("its image's digest"))?;
        let asked = container.spec.clone().ok_or(malformed("its spec is missing"))?;
        let storage = &self.shared.parts.storage;
        let network = &self.shared.default_network;
        let defaults = Defaults {
            network,
            storage_driver: storage.default_name(),
        };
        let spec = spec::complete(asked.clone(), &id, &defaults)?;
        if spec != asked {
            return Err(malformed("its spec is not complete"));
        }
        storage.get(&spec.storage_driver)?;
        Ok(ContainerRecord {
            name: spec.name.parse().map_err(|_| malformed("its name"))?,
            id,
            spec,
            state: ContainerState::Receiving,
            pid: 0,
            exit_code: 0,
            oom_killed: false,
            memory_lost: false,
            created_ms: if container.created_ms > 0 {
                container.created_ms
            } else {
                now_ms()
            },
            started_ms: container.started_ms,
            finished_ms: 0,
            epoch,
            ip: container.ip.clone(),
            mac: container.mac.clone(),
            image_digest,
            runtime_config: String::new(),
        })
    }
}
