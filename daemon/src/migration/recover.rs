//! Finishes what a daemon before this one has left. Everything here may be repeated: a daemon that dies in the middle
//! of it begins again at the next start.
//!
//! The journal decides, by the rules of [`tranship_migrate::handoff`]: what this daemon does about a source is in
//! [`super::settle`], a destination plays its role on from its journal ([`run_from_journal`]).

use std::sync::Arc;

use tranship_migrate::deadlines::{ASK_AGAIN, REPLY};
use tranship_migrate::destination::{DestinationEnd, DestinationReport, run_from_journal};
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::{
    DestinationEffect, DestinationHandoff, DestinationStep, SourceOutcome, SourceStep,
};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::{ContainerState, Migration, MigrationOutcome, MigrationRole, Reserve};

use super::conductor::Conductor;
use super::destination_host::LocalDestination;
use super::doubts::Doubt;
use super::faults;
use super::held::remove_staging;
use super::journal::Journal;
use super::settle::Settling;
use crate::clock::now_ms;
use crate::registry::MigrationRecord;

impl Conductor {
    /// Takes every unfinished migration up. What needs the peer goes on in the background.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn recover(&self) -> Result<(), HostError> {
        for MigrationRecord { migration, .. } in self.unfinished().await? {
            let recovered = match migration.role() {
                MigrationRole::Destination => self.recover_destination(migration.clone()).await,
                _ => self.recover_source(migration.clone()).await.map(drop),
            };
            if let Err(error) = recovered {
                tracing::error!(migration_id = migration.id, container = migration.container_name, error = %chain(&error), "the migration could not be taken up; the container stays as it is");
            }
        }
        self.tell_all().await
    }

    /// Gives every container back to this host that stands still here, or is slowed down, for a migration that is not committed.
    /// What a peer would have to be asked about is left for [`Conductor::recover`]. Answers whether all else was done.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn give_back(&self) -> Result<bool, HostError> {
        let mut whole = true;
        for MigrationRecord { migration, .. } in self.unfinished().await? {
            if migration.role() != MigrationRole::Source || self.is_committed(&migration).await? {
                continue;
            }
            match self.recover_source(migration.clone()).await {
                Ok(decided) => whole &= decided,
                Err(error) => {
                    whole = false;
                    tracing::error!(migration_id = migration.id, container = migration.container_name, error = %chain(&error), "the container cannot be given back yet; it stays as it is");
                }
            }
        }
        Ok(whole)
    }

    async fn is_committed(&self, record: &Migration) -> Result<bool, HostError> {
        let (id, _) = ids(record)?;
        let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Source);
        let steps = journal.words().await;
        let steps = steps.map_err(|error| HostError::new("read the journal", error))?;
        Ok(SourceStep::deciding(&steps).is_some_and(SourceStep::is_committed))
    }

    /// The records without an end, those whose journal has none, and the last one of each container that is
    /// still marked as on its way: a handoff that is done may have left a copy.
    async fn unfinished(&self) -> Result<Vec<MigrationRecord>, HostError> {
        let failed = |error| HostError::new("read the migrations", error);
        let migrations = self.shared.registry().migrations();
        let mut found = migrations.unfinished().await.map_err(failed)?;
        for over in migrations.list().await.map_err(failed)? {
            let known = found.iter().any(|known| known.migration.id == over.migration.id);
            if !known && self.never_ended(&over.migration).await? {
                found.push(over);
            }
        }
        let containers = self.shared.containers.list().await;
        for container in containers.map_err(|error| HostError::new("read the containers", error))? {
            if !matches!(
                container.state,
                ContainerState::Migrating | ContainerState::InDoubt
            ) {
                continue;
            }
            let last = migrations
                .of_container(&container.id)
                .await
                .map_err(failed)?
                .pop();
            found.extend(
                last.filter(|last| found.iter().all(|known| known.migration.id != last.migration.id)),
            );
        }
        Ok(found)
    }

    /// Its role had ended, but could not record that. As long as that is missing a destination lets nothing else of the container in. Of a
    /// source that has committed the container's state says whether anything is left to be done.
    async fn never_ended(&self, record: &Migration) -> Result<bool, HostError> {
        let (id, _) = ids(record)?;
        let unread = |error| HostError::new("read the journal", error);
        let journal = Journal::new(self.shared.registry().clone(), id, record.role());
        if record.role() == MigrationRole::Destination {
            let newest = DestinationStep::deciding(&journal.words().await.map_err(unread)?);
            return Ok(newest.is_some_and(|step| !step.is_last()));
        }
        let newest = SourceStep::deciding(&journal.words().await.map_err(unread)?);
        Ok(newest.is_some_and(|step| !step.is_committed() && !step.is_last()))
    }

    /// Whether all that a source did is undone: it has an end in its record, and the container is an ordinary one, or gone.
    async fn is_undone(&self, record: &Migration, container: &ContainerId) -> bool {
        let has_outcome = !matches!(
            record.outcome(),
            MigrationOutcome::Unspecified | MigrationOutcome::Unknown
        );
        let found = self.shared.containers.record(container).await;
        let is_marked = found
            .is_ok_and(|found| matches!(found.state, ContainerState::Migrating | ContainerState::InDoubt));
        has_outcome && !is_marked
    }

    /// Answers whether it is decided.
    async fn recover_source(&self, record: Migration) -> Result<bool, HostError> {
        let (id, container) = ids(&record)?;
        let destination = host_name(&record.destination)?;
        let is_undone = self.is_undone(&record, &container).await;
        let superseded = is_undone || self.is_superseded(id, &container).await?;
        let what = (id, container.clone(), destination.clone());
        let settling = Settling::after_restart(self, what, record, superseded).await?;
        if settling.outcome().is_some() {
            if !superseded {
                self.release(&container).await?;
                remove_staging(self.shared.paths.migration(&id)).await?;
            }
            if !is_undone {
                settling.close().await;
            }
            return Ok(true);
        }
        let failed = |error| HostError::new("mark the container as in doubt", error);
        self.shared.containers.doubt(&container).await.map_err(failed)?;
        self.decide_later(id, container, destination);
        Ok(false)
    }

    /// What a role of this daemon could not undo, as on a full disk, is tried until it is done. Until then the container stays marked
    /// as on its way.
    pub(super) fn undo_later(
        &self,
        what: (MigrationId, ContainerId, Name),
        record: Migration,
        outcome: SourceOutcome,
    ) {
        let conductor = self.clone();
        tokio::spawn(async move {
            let id = what.0;
            loop {
                tokio::time::sleep(ASK_AGAIN).await;
                match Settling::once_more(&conductor, what.clone(), record.clone(), outcome).await {
                    Ok(settling) if settling.outcome().is_some() => break,
                    Ok(_) => return conductor.decide_later(what.0, what.1, what.2),
                    Err(error) => {
                        tracing::debug!(migration_id = %id, error = %chain(&error), "what the migration did is not undone yet");
                    }
                }
            }
            tracing::info!(migration_id = %id, container = record.container_name, "what the migration did is undone");
            let place = &record.source;
            let advice = format!("container {} runs at {place}", record.container_name);
            conductor.shared.close(id, Migration { advice, ..record }).await;
        });
    }

    /// Whether another migration of the container has begun here since.
    async fn is_superseded(&self, id: MigrationId, container: &ContainerId) -> Result<bool, HostError> {
        let migrations = self.shared.registry().migrations();
        let failed = |error| HostError::new("read the container's migrations", error);
        let all = migrations.of_container(container).await.map_err(failed)?;
        let known = id.to_string();
        let later = all.iter().skip_while(|other| {
            other.migration.id != known || other.migration.role() != MigrationRole::Source
        });
        for other in later.skip(1).map(|other| &other.migration) {
            let (other_id, _) = ids(other)?;
            if other.role() == MigrationRole::Source
                && !migrations
                    .steps(other_id, MigrationRole::Source)
                    .await
                    .map_err(failed)?
                    .is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The commit is on record, or may be. The copy stays frozen until the destination's journal says what became of it, or this
    /// host's own that it was never written.
    pub(super) fn decide_later(&self, id: MigrationId, container: ContainerId, destination: Name) {
        let conductor = self.clone();
        let mut doubt = self.shared.doubts.open(id);
        tokio::spawn(async move {
            let what = (id, container, destination);
            while let Err(error) = conductor.decide(what.clone(), &mut doubt).await {
                tracing::debug!(migration_id = %id, error = %chain(&error), "the handoff is still in doubt");
                tokio::time::sleep(ASK_AGAIN).await;
            }
            conductor.shared.doubts.close(id);
        });
    }

    async fn decide(
        &self,
        what: (MigrationId, ContainerId, Name),
        doubt: &mut Doubt,
    ) -> Result<(), HostError> {
        let id = what.0;
        let migrations = self.shared.registry().migrations();
        let stored = migrations.get(id, MigrationRole::Source).await;
        let stored = stored.map_err(|error| HostError::new("read the migration", error))?;
        let Some(record) = stored.map(|stored| stored.migration) else {
            return Ok(());
        };
        let mut settling = Settling::in_doubt(self, what, record).await?;
        settling.settle(doubt).await?;
        let taken_back = settling.close().await;
        if taken_back {
            self.tell_later(id, MigrationRole::Source);
        }
        Ok(())
    }

    async fn recover_destination(&self, record: Migration) -> Result<(), HostError> {
        let (id, container) = ids(&record)?;
        let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Destination);
        let failed = |error| HostError::new("read the journal", error);
        let steps = journal.steps().await.map_err(failed)?;
        let words: Vec<DestinationStep> = journal.words().await.map_err(failed)?;
        let taken = self.shared.on_its_way(&container, id).await?;
        tracing::info!(migration_id = %id, role = "destination", container = record.container_name, ?words, "taking up a migration");
        let data = steps.first().map(|step| step.data["reserve"].clone());
        let Ok(reserve) = serde_json::from_value::<Reserve>(data.unwrap_or_default()) else {
            return self.drop_received(id, &container, (record, words, taken)).await;
        };
        let source = host_name(&record.source)?;
        let host = Arc::new(LocalDestination::new(
            Arc::clone(&self.shared),
            id,
            source,
            &reserve,
        )?);
        let conductor = self.clone();
        let newest = DestinationStep::deciding(&words);
        let _cancelled = self.shared.board.post(id, record.clone());
        let going_on = tokio::spawn(async move {
            let left = (host, reserve, words, taken);
            conductor.go_on(id, record, left).await;
        });
        // What asks the source, or waits for tasks to be seen, keeps nobody else waiting, nor does what cannot be removed.
        if !matches!(
            newest,
            Some(DestinationStep::Ready | DestinationStep::Resuming | DestinationStep::TakenOver)
        ) && tokio::time::timeout(REPLY, going_on).await.is_err()
        {
            tracing::warn!(migration_id = %id, "what was received is still being removed");
        }
        Ok(())
    }

    /// The tasks that were held ended with the daemon before; the images are still here.
    async fn go_on(
        &self,
        id: MigrationId,
        record: Migration,
        (host, reserve, steps, taken): (Arc<LocalDestination>, Reserve, Vec<DestinationStep>, bool),
    ) {
        let newest = DestinationStep::deciding(&steps);
        if matches!(newest, Some(DestinationStep::Ready | DestinationStep::TakenOver))
            && let Err(error) = host.clear_killed_restore().await
        {
            // The images are kept: the next start tries again.
            tracing::error!(migration_id = %id, error = %chain(&error), "the container cannot be restored again yet");
            self.shared.board.take(id);
            return;
        }
        let report = run_from_journal(id, faults::destination(host), reserve, &steps, taken).await;
        self.close_destination(id, record, report).await;
    }

    async fn close_destination(&self, id: MigrationId, mut record: Migration, report: DestinationReport) {
        record.warnings = report.warnings;
        self.shared.doubts.close(id);
        match report.end {
            DestinationEnd::Runs => self.close_received(id, record, true, String::new()).await,
            DestinationEnd::Dropped { failure, .. } => {
                self.close_received(id, record, false, chain(&failure)).await;
            }
        }
    }

    /// Nothing is on record of what was to be received, so that no role can be played.
    async fn drop_received(
        &self,
        id: MigrationId,
        container: &ContainerId,
        (record, steps, taken): (Migration, Vec<DestinationStep>, bool),
    ) -> Result<(), HostError> {
        let (_, effects) = DestinationHandoff::recover(record.epoch, &steps, taken, false);
        if effects.contains(&DestinationEffect::DropAll) {
            let dropped = self.shared.containers.drop_incoming(container).await;
            dropped.map_err(|error| HostError::new("remove what was received", error))?;
        }
        remove_staging(self.shared.paths.migration(&id)).await?;
        let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Destination);
        let written = journal
            .append(DestinationStep::Dropped, record.epoch, serde_json::Value::Null)
            .await;
        written.map_err(|error| HostError::new("write the journal", error))?;
        self.close_received(id, record, false, "transhipd was restarted".to_owned())
            .await;
        Ok(())
    }

    async fn close_received(&self, id: MigrationId, mut record: Migration, runs: bool, error: String) {
        record.set_outcome(if runs {
            MigrationOutcome::Done
        } else {
            MigrationOutcome::RolledBack
        });
        let place = if runs { &record.destination } else { &record.source };
        record.advice = format!("container {} is at {place}", record.container_name);
        record.error = error;
        record.finished_ms = now_ms();
        self.shared.close(id, record).await;
    }
}

fn ids(record: &Migration) -> Result<(MigrationId, ContainerId), HostError> {
    let malformed = |error| HostError::new("read the migration's record", error);
    Ok((
        record.id.parse().map_err(malformed)?,
        record.container_id.parse().map_err(malformed)?,
    ))
}

fn host_name(text: &str) -> Result<Name, HostError> {
    text.parse()
        .map_err(|error| HostError::new("read the migration's record", error))
}
