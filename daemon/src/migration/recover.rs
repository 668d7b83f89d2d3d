//! Finishes what a daemon before this one has left. Everything here may be repeated: a daemon that dies in the middle
//! of it begins again at the next start.
//!
//! The journal decides ([`tranship_migrate::handoff`]). A source that has not committed rolls back; one that has keeps
//! the copy frozen until the destination says that its own runs. A destination that was not ready drops everything; one
//! that was asks the source, and restores again from the images that are here if the source has committed.

use std::sync::Arc;
use std::time::Duration;

use tranship_checkpoint::freeze::Freezer;
use tranship_migrate::deadlines::{ASK_AGAIN, REPLY};
use tranship_migrate::destination::{DestinationEnd, run_from_ready};
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::{
    DestinationRecovery, DestinationStep, SourceRecovery, SourceStep, recover_destination, recover_source,
};
use tranship_migrate::host::{DestinationHost, DestinationSays};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::{ContainerState, Migration, MigrationOutcome, MigrationRole, Phase, Reserve};

use super::conductor::Conductor;
use super::cpu::full_speed;
use super::destination_host::LocalDestination;
use super::held::remove_staging;
use super::journal::Journal;
use super::source_host::DUMP_DIR;
use crate::clock::now_ms;
use crate::containers::VolumeFate;
use crate::registry::MigrationRecord;

/// Between two looks at whether a CRIU of the daemon before has left the tasks.
const CRIU_LEAVES: Duration = Duration::from_millis(50);

impl Conductor {
    /// Takes every unfinished migration up. What needs the peer goes on in the background.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn recover(&self) -> Result<(), HostError> {
        for MigrationRecord { migration, .. } in self.unfinished().await? {
            let recovered = match migration.role() {
                MigrationRole::Destination => self.recover_destination(migration.clone()).await,
                _ => self.recover_source(migration.clone()).await,
            };
            if let Err(error) = recovered {
                tracing::error!(migration_id = migration.id, container = migration.container_name, error = %chain(&error), "the migration could not be taken up; the container stays as it is");
            }
        }
        Ok(())
    }

    /// The records without an end, and the last one of each container that is still marked as on its way: a handoff
    /// that is done may have left a copy.
    async fn unfinished(&self) -> Result<Vec<MigrationRecord>, HostError> {
        let failed = |error| HostError::new("read the migrations", error);
        let migrations = self.shared.registry().migrations();
        let mut found = migrations.unfinished().await.map_err(failed)?;
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

    async fn recover_source(&self, record: Migration) -> Result<(), HostError> {
        let (id, container) = ids(&record)?;
        let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Source);
        let newest = journal
            .newest::<SourceStep>()
            .await
            .map_err(|error| HostError::new("read the journal", error))?;
        let rule = newest.map_or(SourceRecovery::Abort, recover_source);
        tracing::info!(migration_id = %id, role = "source", container = record.container_name, ?newest, ?rule, "taking up a migration");
        match rule {
            SourceRecovery::Complete => {
                let failed = |error| HostError::new("mark the container as in doubt", error);
                self.shared.containers.doubt(&container).await.map_err(failed)?;
                let destination = host_name(&record.destination)?;
                self.decide_later(id, container, destination);
                return Ok(());
            }
            SourceRecovery::RollBack => self.roll_back(id, &container).await?,
            SourceRecovery::Abort => self.undo_slow_down(&container).await?,
            SourceRecovery::Nothing => {}
        }
        self.release(&container).await;
        remove_staging(self.shared.paths.migration(&id)).await?;
        let step = if rule == SourceRecovery::RollBack {
            SourceStep::RolledBack
        } else {
            SourceStep::Aborted
        };
        if matches!(rule, SourceRecovery::RollBack | SourceRecovery::Abort) {
            let failed = |error| HostError::new("write the journal", error);
            let epoch = journal.epoch().await.map_err(failed)?;
            journal
                .append(step, epoch, serde_json::Value::Null)
                .await
                .map_err(failed)?;
        }
        self.close_recovered(id, record, newest).await;
        Ok(())
    }

    /// The daemon before may have ended in the middle of the rounds.
    async fn undo_slow_down(&self, container: &ContainerId) -> Result<(), HostError> {
        let containers = &self.shared.containers;
        let record = containers.record(container).await;
        let record = record.map_err(|error| HostError::new("find the container", error))?;
        full_speed(&containers.paths(container).cgroup, record.spec.nano_cpus)
    }

    /// Network first, so that the first instruction finds it there.
    async fn roll_back(&self, id: MigrationId, container: &ContainerId) -> Result<(), HostError> {
        let shared = &self.shared;
        let record = shared.containers.record(container).await;
        let record = record.map_err(|error| HostError::new("find the container", error))?;
        if let Some(attachment) = shared.attachment_of(&record).await? {
            let plugged = shared.networks().plug(&attachment).await;
            plugged.map_err(|error| HostError::new("give the network back", error))?;
        }
        let cgroup = shared.containers.paths(container).cgroup;
        let Ok(freezer) = Freezer::of_cgroup(&cgroup) else {
            return Ok(());
        };
        full_speed(&cgroup, record.spec.nano_cpus)?;
        let work_dir = shared.paths.migration(&id).join(DUMP_DIR);
        // A CRIU of the daemon before gives up by itself, and may need a moment to leave the tasks.
        let give_up_at = tokio::time::Instant::now() + REPLY;
        loop {
            match shared.thaw(&freezer, &cgroup, container, &work_dir) {
                Err(error) if tokio::time::Instant::now() < give_up_at => {
                    tracing::debug!(%container, error = %chain(&error), "the container cannot be thawed yet");
                }
                thawed => return thawed,
            }
            tokio::time::sleep(CRIU_LEAVES).await;
        }
    }

    async fn close_recovered(&self, id: MigrationId, mut record: Migration, newest: Option<SourceStep>) {
        let (outcome, error) = match newest {
            Some(SourceStep::Done) => (MigrationOutcome::Done, String::new()),
            Some(SourceStep::Freezing | SourceStep::RolledBack) => {
                (MigrationOutcome::RolledBack, "transhipd was restarted".to_owned())
            }
            _ => (MigrationOutcome::Failed, "transhipd was restarted".to_owned()),
        };
        record.set_outcome(outcome);
        record.set_phase(match newest {
            None => Phase::Preflight,
            Some(SourceStep::Intent | SourceStep::Aborted) => Phase::Reserve,
            Some(SourceStep::Freezing | SourceStep::RolledBack) => Phase::Freeze,
            Some(SourceStep::Committed | SourceStep::Done) => Phase::Clean,
        });
        record.error = error;
        record.advice = format!("container {} runs at {}", record.container_name, record.source);
        record.finished_ms = now_ms();
        self.shared.close(id, record).await;
    }

    /// The commit is on record, or may be. The copy stays frozen until the destination's journal says what became of it.
    pub(super) fn decide_later(&self, id: MigrationId, container: ContainerId, destination: Name) {
        let conductor = self.clone();
        tokio::spawn(async move {
            loop {
                match conductor.decide(id, &container, &destination).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::debug!(migration_id = %id, error = %chain(&error), "the handoff is still in doubt");
                    }
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
        });
    }

    async fn decide(
        &self,
        id: MigrationId,
        container: &ContainerId,
        destination: &Name,
    ) -> Result<bool, HostError> {
        let shared = &self.shared;
        let journal = Journal::new(shared.registry().clone(), id, MigrationRole::Source);
        let newest = journal
            .newest::<SourceStep>()
            .await
            .map_err(|error| HostError::new("read the journal", error))?;
        let stored = shared
            .registry()
            .migrations()
            .get(id, MigrationRole::Source)
            .await;
        let stored = stored.map_err(|error| HostError::new("read the migration", error))?;
        let Some(mut record) = stored.map(|stored| stored.migration) else {
            return Ok(true);
        };
        // The journal decides, not the record, which may lag.
        record.epoch = journal
            .epoch()
            .await
            .map_err(|error| HostError::new("read the journal", error))?;
        if newest != Some(SourceStep::Committed) {
            // The record that decides was never written: the container is still this host's.
            self.recover_source(record).await?;
            return Ok(true);
        }
        if shared.ask_destination(id, destination).await? != DestinationSays::Runs {
            return Ok(false);
        }
        let moved = shared
            .containers
            .moved(container, destination.as_str(), record.epoch, VolumeFate::Remove)
            .await;
        moved.map_err(|error| HostError::new("remove the moved container's copy", error))?;
        remove_staging(shared.paths.migration(&id)).await?;
        let written = journal
            .append(SourceStep::Done, record.epoch, serde_json::Value::Null)
            .await;
        written.map_err(|error| HostError::new("write the journal", error))?;
        record.set_outcome(MigrationOutcome::Done);
        record.set_phase(Phase::Clean);
        record.error.clear();
        record.advice = format!("container {} runs at {destination}", record.container_name);
        record.finished_ms = now_ms();
        tracing::info!(migration_id = %id, role = "source", container = record.container_name, "the handoff is decided: the destination has it");
        shared.close(id, record).await;
        Ok(true)
    }

    async fn recover_destination(&self, record: Migration) -> Result<(), HostError> {
        let (id, container) = ids(&record)?;
        let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Destination);
        let steps = journal
            .steps()
            .await
            .map_err(|error| HostError::new("read the journal", error))?;
        let newest = journal.newest::<DestinationStep>().await;
        let newest = newest.map_err(|error| HostError::new("read the journal", error))?;
        let rule = newest.map_or(DestinationRecovery::Drop, recover_destination);
        tracing::info!(migration_id = %id, role = "destination", container = record.container_name, ?newest, ?rule, "taking up a migration");
        let data = steps
            .first()
            .map(|step| step.data["reserve"].clone())
            .unwrap_or_default();
        let host = serde_json::from_value::<Reserve>(data).ok().map(|reserve| {
            LocalDestination::new(Arc::clone(&self.shared), id, host_name(&record.source)?, &reserve)
                .map(|host| (Arc::new(host), reserve))
        });
        let Some((host, reserve)) = host.transpose()? else {
            return self.drop_received(id, &container, record).await;
        };
        match rule {
            DestinationRecovery::Drop => self.drop_received(id, &container, record).await,
            DestinationRecovery::AskSource => {
                self.ask_and_restore(id, record, host, &reserve);
                Ok(())
            }
            DestinationRecovery::Inspect => self.inspect(id, record, host, &reserve).await,
            DestinationRecovery::Nothing => {
                // The daemon before may have ended between its last record and this.
                host.drop_staging().await?;
                let runs = newest == Some(DestinationStep::Running);
                self.close_received(id, record, runs, String::new()).await;
                Ok(())
            }
        }
    }

    async fn drop_received(
        &self,
        id: MigrationId,
        container: &ContainerId,
        record: Migration,
    ) -> Result<(), HostError> {
        let dropped = self.shared.containers.drop_incoming(container).await;
        dropped.map_err(|error| HostError::new("remove what was received", error))?;
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

    /// The tasks that were held ended with the daemon before; the images are still here.
    fn ask_and_restore(
        &self,
        id: MigrationId,
        record: Migration,
        host: Arc<LocalDestination>,
        reserve: &Reserve,
    ) {
        let (conductor, reserve) = (self.clone(), reserve.clone());
        let _cancelled = self.shared.board.post(id, record.clone());
        tokio::spawn(async move {
            if let Err(error) = host.clear_killed_restore().await {
                // The images are kept: the next start tries again.
                tracing::error!(migration_id = %id, error = %chain(&error), "the container cannot be restored again yet");
                conductor.shared.board.take(id);
                return;
            }
            match run_from_ready(id, host, &reserve).await {
                DestinationEnd::Runs => conductor.close_received(id, record, true, String::new()).await,
                DestinationEnd::Dropped { failure, .. } => {
                    conductor.close_received(id, record, false, chain(&failure)).await;
                }
                DestinationEnd::Lost(failure) => conductor.close_lost(id, record, chain(&failure)).await,
            }
        });
    }

    /// It was about to run when the daemon before ended: it runs, or its tasks were never let go and can be restored
    /// again, or it is lost. What may have run is never restored again.
    async fn inspect(
        &self,
        id: MigrationId,
        record: Migration,
        host: Arc<LocalDestination>,
        reserve: &Reserve,
    ) -> Result<(), HostError> {
        let Some(pid) = self.shared.running(host.container()).await else {
            // Whoever could still let the tasks go ends by this.
            host.clear_killed_restore().await?;
            if host.was_released() {
                let error = "transhipd ended while it let the container run, and the container does not run";
                self.close_lost(id, record, error.to_owned()).await;
            } else {
                self.ask_and_restore(id, record, host, reserve);
            }
            return Ok(());
        };
        host.found_running(pid).await?;
        // The daemon before may have ended between the release and this.
        host.plug_network().await?;
        host.adopt().await?;
        host.record(DestinationStep::Running).await?;
        host.drop_staging().await?;
        self.close_received(id, record, true, String::new()).await;
        Ok(())
    }

    /// Handed over, and not running: it is not known whether its first instruction was ever executed, so nobody runs it.
    async fn close_lost(&self, id: MigrationId, mut record: Migration, error: String) {
        record.set_outcome(MigrationOutcome::Unknown);
        record.set_phase(Phase::Resume);
        record.error = error;
        record.advice = format!(
            "{} keeps its frozen copy of container {} and the volumes as they were when it was handed over; neither host \
             runs it, because it may have run here: look at what it wrote here before anything is removed",
            record.source, record.container_name
        );
        record.finished_ms = now_ms();
        tracing::error!(migration_id = %id, role = "destination", container = record.container_name, "a container was handed over and does not run");
        self.shared.close(id, record).await;
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
