//! Finding everything again when the daemon starts. Containers went on while it was away: nobody here may have seen them end.
//!
//! ```text
//!   created                        its start died with the daemon before: taken apart and forgotten
//!   running, paused, migrating     still there: waited for again; ended meanwhile: exited; one that was not put on its network
//!                                  by the daemon before is put there, unless it is migrating
//!   exited                         its network is released, if the daemon before did not get to it
//!   receiving, in doubt            left for the migrations' own recovery, which knows the journal
//! ```

use std::path::PathBuf;

use tranship_proto::v1::ContainerState;

use super::engine::Containers;
use super::error::{ContainerError, PartError, chain};
use super::watch::record_step;
use crate::clock::now_ms;
use crate::network::NetworkRequest;
use crate::registry::ContainerRecord;
use crate::runtime::{self, ExitStatus};

/// What was found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// Containers that run.
    pub running: usize,
    /// Containers that had ended, or were never started.
    pub ended: usize,
    /// Containers that belong to a migration: migrating, receiving or in doubt.
    pub unfinished: Vec<ContainerRecord>,
    /// What could not be recovered: which container, and why. Each stays as it is recorded.
    pub failed: Vec<(ContainerRecord, ContainerError)>,
}

impl Containers {
    /// Finds the containers of the daemon before. Can be repeated.
    ///
    /// # Errors
    /// The registry cannot be read. What fails for one container is in the answer.
    pub async fn recover(&self) -> Result<Recovered, ContainerError> {
        let mut found = Recovered::default();
        for record in self.list().await? {
            if let Err(error) = self.recover_one(&record).await {
                tracing::error!(container = %record.name, error = %chain(&error), "the container could not be recovered");
                found.failed.push((record, error));
                continue;
            }
            match self
                .registry()
                .containers()
                .get(&record.id)
                .await?
                .map(|record| record.state)
            {
                Some(ContainerState::Running | ContainerState::Paused) => found.running += 1,
                Some(ContainerState::Exited | ContainerState::Created) | None => found.ended += 1,
                Some(_) => found.unfinished.push(record),
            }
        }
        Ok(found)
    }

    /// Brings one container's record and its waiting task in line with what is there.
    pub(super) async fn recover_one(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        match record.state {
            ContainerState::Created => self.forget_unstarted(record).await,
            ContainerState::Running | ContainerState::Paused | ContainerState::Migrating => {
                self.find_again(record).await
            }
            ContainerState::Exited => {
                let left = self.leave_network(&record.id).await;
                left.map_err(|source| record_step(record, "release the network", source))
            }
            ContainerState::Receiving
            | ContainerState::InDoubt
            | ContainerState::Moved
            | ContainerState::Unspecified => Ok(()),
        }
    }

    async fn find_again(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        let paths = self.paths(&record.id);
        let found = runtime::find(&paths).await;
        match found.map_err(|source| record_step(record, "find the processes", source))? {
            runtime::Found::Starting => {
                self.watch(&record.id);
                Ok(())
            }
            runtime::Found::Running(life) => self.lives(record, life.pid, ContainerState::Running).await,
            runtime::Found::Paused(life) => self.lives(record, life.pid, ContainerState::Paused).await,
            runtime::Found::Exited(status) => self.ended(&record.id, &status).await,
            runtime::Found::Gone => {
                let unseen = ExitStatus {
                    exit_code: None,
                    finished_ms: now_ms(),
                    oom_killed: false,
                    memory_lost: false,
                };
                self.ended(&record.id, &unseen).await
            }
        }
    }

    /// A daemon that died between the deed and its record left the record behind.
    async fn lives(
        &self,
        record: &ContainerRecord,
        pid: i32,
        state: ContainerState,
    ) -> Result<(), ContainerError> {
        let change = move |record: &mut ContainerRecord| {
            record.pid = pid;
            if matches!(record.state, ContainerState::Running | ContainerState::Paused) {
                record.state = state;
            }
        };
        let record = self.change(&record.id, change).await?;
        // One that is on its way to another host may be off its network because it stands still.
        if matches!(record.state, ContainerState::Running | ContainerState::Paused)
            && let Err(error) = self.return_to_network(&record, pid).await
        {
            tracing::error!(container = %record.name, error = %chain(&error), "it is not known whether the container is on its network; mend this and restart transhipd, which looks again");
        }
        self.watch(&record.id);
        Ok(())
    }

    /// The daemon before may have ended while it tried to put the container on its network.
    async fn return_to_network(&self, record: &ContainerRecord, pid: i32) -> Result<(), PartError> {
        let networks = &self.shared.parts.networks;
        let request = NetworkRequest::parse(&record.spec.network, &record.ip, &record.mac, Vec::new())?;
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let Some(attachment) = networks.find(&record.id, &request, &netns).await? else {
            return Ok(());
        };
        if attachment.interface.is_some() && !networks.is_plugged(&attachment).await? {
            tracing::warn!(container = %record.name, "the container was not on its network");
            if let Err(error) = networks.plug_until_it_is_in(&attachment).await {
                tracing::error!(container = %record.name, error = %chain(&error), "nobody reaches the container; this is tried again");
            }
        }
        Ok(())
    }

    /// Whoever asked for it was told that it failed.
    async fn forget_unstarted(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        let leftovers = self.dismantle(record).await;
        if !leftovers.is_empty() {
            return Err(ContainerError::Removing {
                name: record.name.to_string(),
                leftovers,
            });
        }
        self.registry().containers().remove(&record.id).await?;
        Ok(())
    }
}
