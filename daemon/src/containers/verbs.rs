//! What users do to containers that are there.

use std::time::Duration;

use tranship_proto::ids::{ContainerId, Name};
use tranship_proto::v1::ContainerState;

use super::allowed::{Answer, Verb};
use super::engine::{Containers, Found};
use super::error::ContainerError;
use super::watch::record_step;
use crate::registry::ContainerRecord;
use crate::runtime::parse_signal;
use crate::volumes::{self, VolumeError};

/// Between the stop signal and SIGKILL where nobody said otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// After SIGKILL: longer than any exit that is not stuck in the kernel.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

impl Containers {
    /// Asks a container to end, and makes it when `timeout` is over; `None` takes the container's own. One that has
    /// ended is good as it is.
    ///
    /// # Errors
    /// The state does not allow it, or the container does not end.
    pub async fn stop(&self, text: &str, timeout: Option<Duration>) -> Result<(), ContainerError> {
        let (record, answer, _held) = self.claim(text, Verb::Stop).await?;
        if answer == Answer::Already {
            return Ok(());
        }
        self.end(&record, timeout.unwrap_or_else(|| own_timeout(&record)))
            .await
    }

    /// Sends a signal, by name or number; an empty one is SIGKILL.
    ///
    /// # Errors
    /// No such signal, or the state does not allow it.
    pub async fn kill(&self, text: &str, signal: &str) -> Result<(), ContainerError> {
        let number = if signal.is_empty() {
            libc::SIGKILL
        } else {
            parse_signal(signal)?
        };
        let (record, _, _held) = self.claim(text, Verb::Kill).await?;
        self.signal(&record, number).await
    }

    /// Makes a container stand still.
    ///
    /// # Errors
    /// The state does not allow it, or the runtime fails.
    pub async fn pause(&self, text: &str) -> Result<(), ContainerError> {
        let (record, _, _held) = self.claim(text, Verb::Pause).await?;
        let paused = self.shared.parts.runtime.pause(&self.paths(&record.id)).await;
        paused.map_err(|source| record_step(&record, "freeze the processes", source))?;
        self.turn(&record, ContainerState::Running, ContainerState::Paused)
            .await
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// The state does not allow it, or the runtime fails.
    pub async fn unpause(&self, text: &str) -> Result<(), ContainerError> {
        let (record, _, _held) = self.claim(text, Verb::Unpause).await?;
        self.thaw(&record).await
    }

    /// Waits until a container has ended, and answers with its exit code.
    ///
    /// # Errors
    /// It moves to another host, or is removed, while it is waited for.
    pub async fn wait(&self, text: &str) -> Result<i32, ContainerError> {
        let mut changes = self.shared.watches.subscribe();
        let id = self.get(text, Verb::Wait).await?.id;
        loop {
            let record = self.get(id.as_str(), Verb::Wait).await?;
            if record.state == ContainerState::Exited {
                return Ok(record.exit_code);
            }
            if changes.changed().await.is_err() {
                return Err(ContainerError::NotFound(text.to_owned()));
            }
        }
    }

    /// Removes a container, one that runs only with `force`; with `volumes` also the volumes that it alone mounts and that
    /// no user named. Of a container that moved away the tombstone is removed. Answers which container was removed here.
    ///
    /// # Errors
    /// The state does not allow it, or something could not be removed: the container is then kept.
    pub async fn remove(
        &self,
        text: &str,
        force: bool,
        volumes: bool,
    ) -> Result<Option<ContainerId>, ContainerError> {
        if let Found::Moved(tombstone) = self.find(text).await? {
            self.registry()
                .containers()
                .remove_tombstone(&tombstone.id)
                .await?;
            return Ok(None);
        }
        let verb = if force { Verb::RemoveForced } else { Verb::Remove };
        let (record, _, _held) = self.claim(text, verb).await?;
        self.remove_record(&record).await?;
        tracing::info!(container = %record.name, "removed");
        if volumes {
            self.remove_anonymous(&record).await?;
        }
        Ok(Some(record.id))
    }

    /// Takes a container apart and forgets it.
    pub(super) async fn remove_record(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        let leftovers = self.dismantle(record).await;
        if !leftovers.is_empty() {
            // Its processes may be gone: let the record say so rather than what was true before.
            self.recover_one(record).await?;
            return Err(ContainerError::Removing {
                name: record.name.to_string(),
                leftovers,
            });
        }
        self.registry().containers().remove(&record.id).await?;
        self.shared.watches.announce();
        Ok(())
    }

    async fn remove_anonymous(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        for name in volumes::mounted(&record.spec) {
            if self.is_anonymous(&name).await? {
                match self.shared.parts.volumes.remove(&name).await {
                    Err(VolumeError::InUse { .. } | VolumeError::NotFound(_)) | Ok(()) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    async fn is_anonymous(&self, name: &Name) -> Result<bool, ContainerError> {
        Ok(self
            .registry()
            .volumes()
            .get(name)
            .await?
            .is_some_and(|volume| volume.anonymous))
    }

    async fn end(&self, record: &ContainerRecord, timeout: Duration) -> Result<(), ContainerError> {
        let first = match record.spec.stop_signal.as_str() {
            "" => libc::SIGTERM,
            text => parse_signal(text)?,
        };
        if record.state == ContainerState::Paused {
            self.thaw(record).await?;
        }
        self.signal_unless_ended(record, first).await?;
        if self.has_ended_within(record, timeout).await? {
            return Ok(());
        }
        self.signal_unless_ended(record, libc::SIGKILL).await?;
        if self.has_ended_within(record, KILL_TIMEOUT).await? {
            return Ok(());
        }
        let state = self.record(&record.id).await?.state;
        Err(ContainerError::DoesNotEnd {
            name: record.name.to_string(),
            waited_s: KILL_TIMEOUT.as_secs(),
            state,
        })
    }

    async fn has_ended_within(
        &self,
        record: &ContainerRecord,
        timeout: Duration,
    ) -> Result<bool, ContainerError> {
        match tokio::time::timeout(timeout, self.wait(record.id.as_str())).await {
            Ok(ended) => ended.map(|_| true),
            Err(_) => Ok(false),
        }
    }

    async fn signal(&self, record: &ContainerRecord, number: i32) -> Result<(), ContainerError> {
        let sent = self
            .shared
            .parts
            .runtime
            .kill(&self.paths(&record.id), number)
            .await;
        sent.map_err(|source| record_step(record, "send a signal to the processes", source))
    }

    /// A container that ends between the look and the signal is no error.
    async fn signal_unless_ended(&self, record: &ContainerRecord, number: i32) -> Result<(), ContainerError> {
        match self.signal(record, number).await {
            Err(_) if self.record(&record.id).await?.state == ContainerState::Exited => Ok(()),
            sent => sent,
        }
    }

    async fn thaw(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        let resumed = self.shared.parts.runtime.unpause(&self.paths(&record.id)).await;
        resumed.map_err(|source| record_step(record, "thaw the processes", source))?;
        self.turn(record, ContainerState::Paused, ContainerState::Running)
            .await
    }

    /// From one state to another, unless the container has ended meanwhile.
    async fn turn(
        &self,
        record: &ContainerRecord,
        from: ContainerState,
        to: ContainerState,
    ) -> Result<(), ContainerError> {
        let change = move |record: &mut ContainerRecord| {
            if record.state == from {
                record.state = to;
            }
        };
        self.change(&record.id, change).await.map(drop)
    }
}

fn own_timeout(record: &ContainerRecord) -> Duration {
    match record.spec.stop_timeout_s {
        0 => STOP_TIMEOUT,
        seconds => Duration::from_secs(seconds.into()),
    }
}
