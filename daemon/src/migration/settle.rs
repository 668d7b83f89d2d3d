//! The source's part of a handoff that goes on without its role: after a restart of the daemon, or in doubt. The machine decides
//! ([`SourceHandoff`]); here it is done.

use std::time::Duration;

use tranship_checkpoint::freeze::Freezer;
use tranship_migrate::deadlines::{ASK_AGAIN, REPLY};
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::{Found, SourceEffect, SourceEvent, SourceHandoff, SourceOutcome, SourceStep};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::{Migration, MigrationOutcome, MigrationRole, Phase};

use super::conductor::Conductor;
use super::cpu::full_speed;
use super::decider::Decider;
use super::doubts::Doubt;
use super::faults;
use super::held::remove_staging;
use super::journal::Journal;
use super::log;
use super::source_host::DUMP_DIR;
use crate::arbiter::{Decision, Handoff, Token};
use crate::clock::now_ms;
use crate::containers::VolumeFate;

/// Between two looks at whether a CRIU of the daemon before has left the tasks.
const CRIU_LEAVES: Duration = Duration::from_millis(50);

/// What is left of a source.
pub(super) struct Settling {
    conductor: Conductor,
    id: MigrationId,
    container: ContainerId,
    destination: Name,
    record: Migration,
    journal: Journal,
    handoff: SourceHandoff,
}

impl Settling {
    /// Takes up what a daemon before this one has left, and does what comes first. `superseded` as
    /// [`SourceHandoff::recover`] wants it.
    ///
    /// # Errors
    /// The journal cannot be read, or something cannot be undone: the container stays as it is.
    pub async fn after_restart(
        conductor: &Conductor,
        (id, container, destination): (MigrationId, ContainerId, Name),
        record: Migration,
        superseded: bool,
    ) -> Result<Self, HostError> {
        let handoff = SourceHandoff::default();
        let mut settling = Self::new(conductor, (id, container, destination), record, handoff);
        let steps = settling.steps().await?;
        let found = settling.found(superseded).await?;
        let (handoff, effects) = SourceHandoff::recover(found, &steps);
        settling.handoff = handoff;
        tracing::info!(migration_id = %id, role = "source", container = settling.record.container_name, ?steps, ?effects, "taking up a migration");
        settling.carry_out_all(effects).await?;
        Ok(settling)
    }

    /// Takes up what a role of this daemon has ended with `outcome` and could not undo whole, and does it.
    ///
    /// # Errors
    /// The journal cannot be read, or something still cannot be undone.
    pub async fn once_more(
        conductor: &Conductor,
        what: (MigrationId, ContainerId, Name),
        record: Migration,
        outcome: SourceOutcome,
    ) -> Result<Self, HostError> {
        let mut settling = Self::new(conductor, what, record, SourceHandoff::default());
        let steps = settling.steps().await?;
        let found = settling.found(false).await?;
        let (handoff, effects) = SourceHandoff::undo_again(found, &steps, outcome);
        settling.handoff = handoff;
        settling.carry_out_all(effects).await?;
        Ok(settling)
    }

    /// Takes up what a role of this daemon could not find out.
    ///
    /// # Errors
    /// The journal cannot be read.
    pub async fn in_doubt(
        conductor: &Conductor,
        what: (MigrationId, ContainerId, Name),
        record: Migration,
    ) -> Result<Self, HostError> {
        let handoff = SourceHandoff::default();
        let mut settling = Self::new(conductor, what, record, handoff);
        let steps = settling.steps().await?;
        settling.handoff = SourceHandoff::in_doubt(settling.found(false).await?, &steps);
        Ok(settling)
    }

    fn new(
        conductor: &Conductor,
        (id, container, destination): (MigrationId, ContainerId, Name),
        record: Migration,
        handoff: SourceHandoff,
    ) -> Self {
        let registry = conductor.shared.registry().clone();
        Self {
            conductor: conductor.clone(),
            id,
            container,
            destination,
            record,
            journal: Journal::new(registry, id, MigrationRole::Source),
            handoff,
        }
    }

    async fn found(&self, superseded: bool) -> Result<Found, HostError> {
        let rebooted = self.journal.rebooted_since("freezing").await;
        Ok(Found {
            epoch: self.record.epoch,
            superseded,
            arbiter: self.decider().await?.is_arbiter(),
            rebooted: rebooted.map_err(|error| HostError::new("read the journal", error))?,
        })
    }

    /// Who decides is on record from the beginning.
    async fn decider(&self) -> Result<Decider, HostError> {
        let steps = self.journal.steps().await;
        let steps = steps.map_err(|error| HostError::new("read the journal", error))?;
        let token = steps.iter().find_map(|step| step.data["token"].as_i64());
        let shared = &self.conductor.shared;
        shared.decider(Handoff {
            container: self.container.clone(),
            migration: self.id,
            source: shared.own_name()?,
            destination: self.destination.clone(),
            epoch: self.record.epoch,
            token: Token(token.unwrap_or(0)),
        })
    }

    /// What comes of asking whoever decides.
    async fn abandon(&self) -> Result<SourceEvent, HostError> {
        Ok(match self.decider().await?.abandon().await {
            Ok(committed) => SourceEvent::Decided { committed },
            Err(error) => {
                tracing::warn!(migration_id = %self.id, error = %chain(&error), "it is not known yet whose the container is");
                SourceEvent::InDoubt(SourceStep::Committed)
            }
        })
    }

    /// Where the destination is ready and this host's tasks are gone.
    async fn commit(&self) -> Result<SourceEvent, HostError> {
        let decider = self.decider().await?;
        if decider.is_arbiter() {
            match decider.commit().await {
                Ok(Decision::Committed) => {}
                Ok(Decision::Abandoned) => return Ok(SourceEvent::NotRecorded(SourceStep::Committed)),
                Err(_) => return Ok(SourceEvent::InDoubt(SourceStep::Committed)),
            }
        }
        Ok(self.write(SourceStep::Committed).await)
    }

    async fn own(&self, epoch: u64) -> Result<(), HostError> {
        let taken = self.decider().await?.take_back(epoch).await;
        taken.map_err(|error| HostError::new("take the container back", error))?;
        let owned = self.conductor.shared.containers.own(&self.container, epoch).await;
        owned.map_err(|error| HostError::new("take the container back", error))
    }

    /// The journal decides, not the record, which may lag.
    async fn steps(&mut self) -> Result<Vec<SourceStep>, HostError> {
        let failed = |error| HostError::new("read the journal", error);
        self.record.epoch = self.journal.epoch().await.map_err(failed)?;
        self.journal.words().await.map_err(failed)
    }

    /// How it ended; `None` while it goes on.
    pub fn outcome(&self) -> Option<SourceOutcome> {
        self.handoff.outcome()
    }

    /// The commit is on record, or may be: settles that, and asks the destination until it says what became of it, or a person
    /// does.
    ///
    /// # Errors
    /// Something could not be undone; to be taken up again.
    pub async fn settle(&mut self, doubt: &mut Doubt) -> Result<(), HostError> {
        while self.outcome().is_none() {
            self.tell(SourceEvent::Again).await?;
            if self.outcome().is_some() {
                break;
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_AGAIN) => {}
                resolution = doubt.resolved() => self.tell(SourceEvent::Resolved(resolution)).await?,
            }
        }
        Ok(())
    }

    async fn tell(&mut self, event: SourceEvent) -> Result<(), HostError> {
        let (handoff, effects) = self.handoff.on(event);
        self.handoff = handoff;
        self.carry_out_all(effects).await
    }

    async fn carry_out_all(&mut self, mut effects: Vec<SourceEffect>) -> Result<(), HostError> {
        while !effects.is_empty() {
            let mut next = None;
            for effect in std::mem::take(&mut effects) {
                next = self.carry_out(effect).await?;
            }
            if let Some(event) = next {
                (self.handoff, effects) = self.handoff.on(event);
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, effect: SourceEffect) -> Result<Option<SourceEvent>, HostError> {
        Ok(match effect {
            SourceEffect::Record(step) => Some(self.write(step).await),
            SourceEffect::Undo { thaw } => {
                let fail = |injected| HostError::new("undo", injected);
                faults::at("source:settle-undo", fail, self.undo(thaw)).await?;
                Some(SourceEvent::Undone { whole: true })
            }
            SourceEffect::Ask => Some(self.ask().await),
            SourceEffect::RemoveCopy => {
                let fail = |_| SourceEvent::Removed { whole: false };
                let removing = async { Ok(self.remove_copy().await) };
                let removed = faults::at("source:settle-remove-copy", fail, removing).await;
                Some(removed.unwrap_or_else(|event| event))
            }
            SourceEffect::Own { epoch } => {
                let fail = |injected| HostError::new("take the container back", injected);
                faults::at("source:settle-own", fail, self.own(epoch)).await?;
                None
            }
            SourceEffect::Commit { .. } => Some(self.commit().await?),
            SourceEffect::Abandon => Some(self.abandon().await?),
            // The connection went with the role.
            SourceEffect::Send(_) => None,
        })
    }

    async fn write(&self, step: SourceStep) -> SourceEvent {
        let written = self
            .journal
            .append(step, self.record.epoch, serde_json::Value::Null);
        match written.await {
            Ok(()) => SourceEvent::Recorded(step),
            Err(error) => {
                tracing::error!(migration_id = %self.id, ?step, error = %chain(&error), "the journal cannot be written");
                // All is undone: nothing waits for it, but the journal is to say so.
                if matches!(step, SourceStep::Aborted | SourceStep::RolledBack) {
                    tokio::spawn(write_later(self.journal.clone(), step, self.record.epoch));
                }
                SourceEvent::InDoubt(step)
            }
        }
    }

    async fn undo(&self, thaw: bool) -> Result<(), HostError> {
        if thaw {
            self.roll_back().await?;
        } else {
            self.undo_slow_down().await?;
        }
        let shared = &self.conductor.shared;
        shared.networks().let_go(&self.container).await;
        log::forget(&shared.containers.paths(&self.container))
            .map_err(|error| HostError::new("remove what was sent", error))?;
        self.conductor.release(&self.container).await?;
        remove_staging(shared.paths.migration(&self.id)).await
    }

    /// The daemon before may have ended in the middle of the rounds.
    async fn undo_slow_down(&self) -> Result<(), HostError> {
        let containers = &self.conductor.shared.containers;
        let record = containers.record(&self.container).await;
        let record = record.map_err(|error| HostError::new("find the container", error))?;
        full_speed(&containers.paths(&self.container).cgroup, record.spec.nano_cpus)
    }

    /// Network first, so that the first instruction finds it there.
    async fn roll_back(&self) -> Result<(), HostError> {
        let (shared, container) = (&self.conductor.shared, &self.container);
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
        let work_dir = shared.paths.migration(&self.id).join(DUMP_DIR);
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

    async fn ask(&self) -> SourceEvent {
        match self
            .conductor
            .shared
            .ask_destination(self.id, &self.destination)
            .await
        {
            Ok(says) => SourceEvent::Says(says),
            Err(error) => {
                tracing::debug!(migration_id = %self.id, error = %chain(&error), "the handoff is still in doubt");
                SourceEvent::Silent
            }
        }
    }

    async fn remove_copy(&self) -> SourceEvent {
        let shared = &self.conductor.shared;
        let (to, epoch) = (self.destination.as_str(), self.record.epoch);
        shared.networks().let_go(&self.container).await;
        let removed = async {
            let moved = shared
                .containers
                .moved(&self.container, to, epoch, VolumeFate::Remove);
            moved
                .await
                .map_err(|error| HostError::new("remove the moved container's copy", error))?;
            remove_staging(shared.paths.migration(&self.id)).await
        };
        let removed = removed.await;
        if let Err(error) = &removed {
            tracing::debug!(migration_id = %self.id, error = %chain(error), "the copy is still here");
        }
        SourceEvent::Removed {
            whole: removed.is_ok(),
        }
    }

    /// Writes into the record how it ended. Answers whether the container was taken back, of which the destination is to be told.
    pub async fn close(mut self) -> bool {
        let steps = self.steps().await.unwrap_or_default();
        let froze = steps.contains(&SourceStep::Freezing);
        let record = &mut self.record;
        let (outcome, phase) = match self.handoff.outcome() {
            Some(SourceOutcome::Done) => (MigrationOutcome::Done, Phase::Clean),
            _ if steps.is_empty() => (MigrationOutcome::Failed, Phase::Preflight),
            _ if froze => (MigrationOutcome::RolledBack, Phase::Freeze),
            _ => (MigrationOutcome::Failed, Phase::Reserve),
        };
        record.set_outcome(outcome);
        record.set_phase(phase);
        let place = if outcome == MigrationOutcome::Done {
            record.error.clear();
            self.destination.to_string()
        } else {
            // What kept the role from knowing more says more than this.
            if record.error.is_empty() {
                record.error = match steps.contains(&SourceStep::TakenBack) {
                    true => format!("{} did not run it; it was taken back", self.destination),
                    false => "transhipd was restarted".to_owned(),
                };
            }
            record.source.clone()
        };
        record.advice = format!("container {} runs at {place}", record.container_name);
        record.finished_ms = now_ms();
        tracing::info!(migration_id = %self.id, role = "source", container = record.container_name, outcome = outcome.as_str_name(), "the handoff is decided");
        self.conductor.shared.close(self.id, self.record).await;
        steps.contains(&SourceStep::TakenBack) && !steps.contains(&SourceStep::Told)
    }
}

/// Writes the last step as soon as that works, unless it is there.
async fn write_later(journal: Journal, step: SourceStep, epoch: u64) {
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        let known = journal.words::<SourceStep>().await;
        if known.is_ok_and(|steps| steps.contains(&step))
            || journal.append(step, epoch, serde_json::Value::Null).await.is_ok()
        {
            return;
        }
    }
}
