//! What every verb needs, and how a container is found by what a user calls it.

use std::path::PathBuf;
use std::sync::Arc;

use tranship_proto::ids::ContainerId;

use super::allowed::{Answer, Verb};
use super::error::ContainerError;
use super::locks::{Held, Locks};
use super::lookup::{self, Known};
use super::watch::Watches;
use crate::config::Config;
use crate::network::Networks;
use crate::registry::{ContainerRecord, Registry, Tombstone};
use crate::runtime::{ContainerPaths, Runtime};
use crate::storage::Storage;
use crate::volumes::Volumes;

/// The containers of this host. Clones share everything.
#[derive(Clone)]
pub struct Containers {
    pub(super) shared: Arc<Shared>,
}

/// The parts of the daemon that containers are made of.
pub struct Parts {
    /// What survives a restart.
    pub registry: Registry,
    /// Root file systems.
    pub storage: Storage,
    /// Volumes.
    pub volumes: Volumes,
    /// Networks.
    pub networks: Networks,
    /// Running programs.
    pub runtime: Runtime,
}

pub(super) struct Shared {
    pub parts: Parts,
    pub locks: Locks,
    pub watches: Watches,
    state_dir: PathBuf,
    run_dir: PathBuf,
    cgroup_parent: String,
    pub default_network: String,
}

/// What a name or id leads to.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    /// A container that is here.
    Here(Box<ContainerRecord>),
    /// One that was handed to another host.
    Moved(Box<Tombstone>),
}

impl Containers {
    /// The containers made of these parts; [`Containers::recover`] finds those of the daemon before.
    #[must_use]
    pub fn new(config: &Config, parts: Parts) -> Self {
        let shared = Shared {
            parts,
            locks: Locks::default(),
            watches: Watches::default(),
            state_dir: config.state_dir.clone(),
            run_dir: config.run_dir.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            default_network: config.default_network.to_string(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The registry that these containers are in.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.shared.parts.registry
    }

    /// The places of a container on this host.
    #[must_use]
    pub fn paths(&self, id: &ContainerId) -> ContainerPaths {
        let shared = &self.shared;
        ContainerPaths::new(&shared.state_dir, &shared.run_dir, &shared.cgroup_parent, id)
    }

    /// Every container that is here, oldest first.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn list(&self) -> Result<Vec<ContainerRecord>, ContainerError> {
        Ok(self.registry().containers().list().await?)
    }

    /// What a name, an id or the unique beginning of an id leads to. Containers that are here count before tombstones.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`], [`ContainerError::Ambiguous`].
    pub async fn find(&self, text: &str) -> Result<Found, ContainerError> {
        let mut here = self.registry().containers().list().await?;
        let known = here.iter().map(|record| Known {
            id: &record.id,
            name: &record.name,
        });
        if let Some(position) = lookup::find(text, known)? {
            return Ok(Found::Here(Box::new(here.swap_remove(position))));
        }
        let mut gone = self.registry().containers().tombstones().await?;
        let known = gone.iter().map(|tombstone| Known {
            id: &tombstone.id,
            name: &tombstone.name,
        });
        match lookup::find(text, known)? {
            Some(position) => Ok(Found::Moved(Box::new(gone.swap_remove(position)))),
            None => Err(ContainerError::NotFound(text.to_owned())),
        }
    }

    /// As [`Containers::find`], for a verb that needs the container to be here.
    ///
    /// # Errors
    /// Also [`ContainerError::Moved`].
    pub async fn get(&self, text: &str, verb: Verb) -> Result<ContainerRecord, ContainerError> {
        match self.find(text).await? {
            Found::Here(record) => Ok(*record),
            Found::Moved(tombstone) => Err(ContainerError::Moved {
                verb: verb.word(),
                name: tombstone.name.to_string(),
                to: tombstone.moved_to,
            }),
        }
    }

    /// The container of that id.
    ///
    /// # Errors
    /// [`ContainerError::NotFound`].
    pub async fn record(&self, id: &ContainerId) -> Result<ContainerRecord, ContainerError> {
        let found = self.registry().containers().get(id).await?;
        found.ok_or_else(|| ContainerError::NotFound(id.to_string()))
    }

    /// Finds a container, waits for the right to change it, and checks that its state allows the verb *then*.
    pub(super) async fn claim(
        &self,
        text: &str,
        verb: Verb,
    ) -> Result<(ContainerRecord, Answer, Held), ContainerError> {
        let id = self.get(text, verb).await?.id;
        let held = self.shared.locks.hold(&id).await?;
        let record = self.get(id.as_str(), verb).await?;
        let answer = verb.check(&record)?;
        Ok((record, answer, held))
    }

    /// Changes a container's record and answers with it.
    pub(super) async fn change<F>(
        &self,
        id: &ContainerId,
        change: F,
    ) -> Result<ContainerRecord, ContainerError>
    where
        F: FnOnce(&mut ContainerRecord) + Send + 'static,
    {
        let changed = self.registry().containers().update(id, change).await?;
        self.shared.watches.announce();
        changed.ok_or_else(|| ContainerError::NotFound(id.to_string()))
    }
}
