//! Volumes: named trees of a storage driver that outlive containers.
//!
//! A row of the registry says which driver has a volume; the tree itself is the driver's. The row is written last and
//! removed last, so that a tree without a row can only be one that nobody was told of yet: it is empty, and the next daemon removes it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Mutex;
use tranship_proto::ids::{ContainerId, IdError, Name};
use tranship_proto::v1::{ContainerSpec, MountKind};
use tranship_storage_drivers::driver::{DriverError, Outcome, StorageDriver};

use crate::clock::now_ms;
use crate::registry::{Registry, RegistryError, VolumeRecord};
use crate::storage::{Storage, UnknownDriver};

/// Why a volume is not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A name of the wrong form.
    #[error("the volume's name cannot be used")]
    Name(#[source] IdError),
    /// No such volume.
    #[error("there is no volume {0} on this host")]
    NotFound(Name),
    /// It is there, with another driver.
    #[error("the volume {name} is there already, with the storage driver {driver}; nothing was changed")]
    OtherDriver {
        /// Which volume.
        name: Name,
        /// The driver it has.
        driver: String,
    },
    /// It is there, and is not the one that is to be received.
    #[error("a volume {0} is on this host already; remove it, or rename it, before the container comes")]
    Taken(Name),
    /// Containers mount it.
    #[error("the volume {name} is in use by {}; nothing was changed: remove the containers first", users.join(", "))]
    InUse {
        /// Which volume.
        name: Name,
        /// Names of the containers.
        users: Vec<String>,
    },
    /// No such driver.
    #[error(transparent)]
    Driver(#[from] UnknownDriver),
    /// The driver failed.
    #[error("the storage driver failed on volume {name}")]
    Storage {
        /// Which volume.
        name: Name,
        /// Why.
        #[source]
        source: DriverError,
    },
    /// The driver failed on all of them.
    #[error("the storage driver does not say which volumes it has")]
    Trees(#[source] DriverError),
    /// The registry failed.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// The volumes of this host. Clones share everything.
#[derive(Clone)]
pub struct Volumes {
    registry: Registry,
    storage: Storage,
    /// Held while volumes are made or removed, so that one is not removed while a container that mounts it starts.
    changing: Arc<Mutex<()>>,
}

impl Volumes {
    /// The volumes that `registry` lists, in the drivers of `storage`.
    #[must_use]
    pub fn new(registry: Registry, storage: Storage) -> Self {
        Self {
            registry,
            storage,
            changing: Arc::default(),
        }
    }

    /// Removes the empty trees that have no row. One that holds something is not of a daemon that died over it, and stays.
    ///
    /// # Errors
    /// The registry cannot be read, or a driver fails.
    pub async fn sweep(&self) -> Result<(), VolumeError> {
        let _changing = self.changing.lock().await;
        let known = self.registry.volumes().list().await?;
        for driver in self.storage.all() {
            let of_driver = known.iter().filter(|record| record.driver == driver.name());
            let known: HashSet<Name> = of_driver.map(|record| record.name.clone()).collect();
            let driver = Arc::clone(driver);
            crate::blocking::run(move || remove_unknown(&*driver, &known)).await?;
        }
        Ok(())
    }

    /// Makes a volume. One of that name and driver that is there already is answered with, as Docker does.
    ///
    /// # Errors
    /// [`VolumeError::OtherDriver`], an unknown driver, or the driver's refusal.
    pub async fn create(
        &self,
        name: &Name,
        driver: &str,
        labels: HashMap<String, String>,
    ) -> Result<VolumeRecord, VolumeError> {
        let _changing = self.changing.lock().await;
        let wanted = self.storage.get(driver)?.name();
        if let Some(known) = self.registry.volumes().get(name).await? {
            let same = driver.is_empty() || known.driver == wanted;
            return if same { Ok(known) } else { Err(other_driver(known)) };
        }
        let record = VolumeRecord {
            name: name.clone(),
            driver: wanted.to_owned(),
            created_ms: now_ms(),
            labels,
            anonymous: false,
            receiving_for: None,
        };
        self.make(record).await
    }

    /// The volume that a container mounts, made on demand. Answers whether it was made.
    ///
    /// # Errors
    /// As [`Volumes::create`].
    pub async fn ensure(&self, name: &Name, anonymous: bool) -> Result<(VolumeRecord, bool), VolumeError> {
        let _changing = self.changing.lock().await;
        if let Some(known) = self.registry.volumes().get(name).await? {
            return match known.receiving_for {
                None => Ok((known, false)),
                Some(_) => Err(VolumeError::Taken(known.name)),
            };
        }
        let record = VolumeRecord {
            name: name.clone(),
            driver: self.storage.default_name().to_owned(),
            created_ms: now_ms(),
            labels: HashMap::new(),
            anonymous,
            receiving_for: None,
        };
        self.make(record).await.map(|record| (record, true))
    }

    /// Makes an empty volume that is being received for a container. Again for the same container is no error.
    ///
    /// # Errors
    /// [`VolumeError::Taken`] when there is a volume of that name.
    pub async fn receive(
        &self,
        container: &ContainerId,
        name: &Name,
        driver: &str,
        labels: HashMap<String, String>,
    ) -> Result<VolumeRecord, VolumeError> {
        let _changing = self.changing.lock().await;
        if let Some(known) = self.registry.volumes().get(name).await? {
            let same = known.receiving_for.as_ref() == Some(container);
            return if same {
                Ok(known)
            } else {
                Err(VolumeError::Taken(known.name))
            };
        }
        let record = VolumeRecord {
            name: name.clone(),
            driver: self.storage.get(driver)?.name().to_owned(),
            created_ms: now_ms(),
            labels,
            anonymous: false,
            receiving_for: Some(container.clone()),
        };
        self.make(record).await
    }

    /// Every volume with the names of the containers that mount it.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn list(&self) -> Result<Vec<(VolumeRecord, Vec<String>)>, VolumeError> {
        let containers = self.registry.containers().list().await?;
        let with_users = |record: VolumeRecord| {
            let users = containers
                .iter()
                .filter(|container| mounts(&container.spec, &record.name));
            let names = users.map(|container| container.name.to_string()).collect();
            (record, names)
        };
        Ok(self
            .registry
            .volumes()
            .list()
            .await?
            .into_iter()
            .map(with_users)
            .collect())
    }

    /// One volume with the names of the containers that mount it.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`].
    pub async fn get(&self, name: &Name) -> Result<(VolumeRecord, Vec<String>), VolumeError> {
        let found = self
            .list()
            .await?
            .into_iter()
            .find(|(record, _)| record.name == *name);
        found.ok_or_else(|| VolumeError::NotFound(name.clone()))
    }

    /// Where a volume's tree is on this host.
    ///
    /// # Errors
    /// The driver does not have it.
    pub async fn path(&self, record: &VolumeRecord) -> Result<PathBuf, VolumeError> {
        let driver = self.storage.get(&record.driver)?;
        let name = record.name.clone();
        let path = crate::blocking::run(move || driver.volume_path(&name)).await;
        path.map_err(|source| VolumeError::Storage {
            name: record.name.clone(),
            source,
        })
    }

    /// Removes a volume with its data.
    ///
    /// # Errors
    /// [`VolumeError::InUse`] while a container mounts it, [`VolumeError::NotFound`].
    pub async fn remove(&self, name: &Name) -> Result<(), VolumeError> {
        let _changing = self.changing.lock().await;
        let (record, users) = self.get(name).await?;
        if !users.is_empty() {
            return Err(VolumeError::InUse {
                name: record.name,
                users,
            });
        }
        self.unmake(record).await
    }

    /// Removes a volume that `container` mounts, and which goes with it; unless others mount it too, then it stays. One
    /// that is not there is none.
    ///
    /// # Errors
    /// It cannot be removed.
    pub async fn remove_with(&self, name: &Name, container: &ContainerId) -> Result<(), VolumeError> {
        let _changing = self.changing.lock().await;
        let Some(record) = self.registry.volumes().get(name).await? else {
            return Ok(());
        };
        let containers = self.registry.containers().list().await?;
        let shared = containers
            .iter()
            .any(|other| other.id != *container && mounts(&other.spec, name));
        if shared { Ok(()) } else { self.unmake(record).await }
    }

    /// Removes what was received for a container so far.
    ///
    /// # Errors
    /// The first volume that cannot be removed.
    pub async fn drop_received(&self, container: &ContainerId) -> Result<(), VolumeError> {
        let _changing = self.changing.lock().await;
        for record in self.registry.volumes().list().await? {
            if record.receiving_for.as_ref() == Some(container) {
                self.unmake(record).await?;
            }
        }
        Ok(())
    }

    async fn make(&self, record: VolumeRecord) -> Result<VolumeRecord, VolumeError> {
        let driver = self.storage.get(&record.driver)?;
        let name = record.name.clone();
        let made = crate::blocking::run(move || driver.create_volume(&name)).await;
        let outcome = made.map_err(|source| VolumeError::Storage {
            name: record.name.clone(),
            source,
        })?;
        if let Err(error) = self.registry.volumes().insert(record.clone()).await {
            // Unless the row may be there after all.
            let is_unknown = matches!(self.registry.volumes().get(&record.name).await, Ok(None));
            if outcome == Outcome::Changed && is_unknown {
                self.unmake(record).await?;
            }
            return Err(error.into());
        }
        Ok(record)
    }

    async fn unmake(&self, record: VolumeRecord) -> Result<(), VolumeError> {
        let driver = self.storage.get(&record.driver)?;
        let name = record.name.clone();
        let removed = crate::blocking::run(move || driver.remove_volume(&name)).await;
        let _outcome = removed.map_err(|source| VolumeError::Storage {
            name: record.name.clone(),
            source,
        })?;
        self.registry.volumes().remove(&record.name).await?;
        Ok(())
    }
}

fn remove_unknown(driver: &dyn StorageDriver, known: &HashSet<Name>) -> Result<(), VolumeError> {
    let failed = |name: &Name| {
        let name = name.clone();
        move |source| VolumeError::Storage { name, source }
    };
    for name in driver.volumes().map_err(VolumeError::Trees)? {
        if known.contains(&name) {
            continue;
        }
        let path = driver.volume_path(&name).map_err(failed(&name))?;
        if fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_none()) {
            tracing::info!(volume = %name, "removing an empty volume that nobody was told of");
            driver.remove_volume(&name).map_err(failed(&name))?;
        }
    }
    Ok(())
}

/// Names of the volumes that a container mounts.
pub fn mounted(spec: &ContainerSpec) -> impl Iterator<Item = Name> {
    let volumes = spec
        .mounts
        .iter()
        .filter(|mount| mount.kind() == MountKind::Volume);
    volumes.filter_map(|mount| mount.source.parse().ok())
}

fn mounts(spec: &ContainerSpec, volume: &Name) -> bool {
    mounted(spec).any(|name| name == *volume)
}

fn other_driver(known: VolumeRecord) -> VolumeError {
    VolumeError::OtherDriver {
        name: known.name,
        driver: known.driver,
    }
}

#[cfg(test)]
mod tests {
    use tranship_storage_drivers::overlay::OverlayDriver;

    use super::*;

    #[tokio::test]
    async fn an_empty_tree_without_a_row_is_removed_and_no_other() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let driver: Arc<dyn StorageDriver> = Arc::new(OverlayDriver::open(&dir.path().join("pool")).unwrap());
        let registry = Registry::open(&dir.path().join("registry.db")).unwrap();
        let volumes = Volumes::new(registry, Storage::new(Arc::clone(&driver), Vec::new()));
        let name = |text: &str| text.parse::<Name>().unwrap();
        volumes.create(&name("known"), "", HashMap::new()).await.unwrap();
        for unknown in ["empty", "full"] {
            driver.create_volume(&name(unknown)).unwrap();
        }
        let full = driver.volume_path(&name("full")).unwrap();
        fs::write(full.join("rows"), "of somebody").unwrap();
        for _again in 0..2 {
            volumes.sweep().await.unwrap();
            assert_eq!(driver.volumes().unwrap(), [name("full"), name("known")]);
        }
    }
}
