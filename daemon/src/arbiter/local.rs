//! The source's own journal decides: what two hosts do that share no etcd.
//!
//! One migration has one of these, in the daemon of its source. Its destination cannot reach it; it asks the source
//! ([`verdict`](tranship_migrate::handoff::verdict)).
//!
//! A journal that was written without success may hold the record or not, and what it shows when it is read need not be on
//! the disk. So whoever abandons a handoff writes something first, which proves that the journal can be written and what was
//! before it is there for good or not at all, and then reads (see [`SourceHandoff`](tranship_migrate::handoff::SourceHandoff)).

use async_trait::async_trait;
use tokio::sync::Mutex;
use tranship_migrate::handoff::SourceStep;
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::MigrationRole;

use super::{Arbiter, ArbiterError, Decision, Handoff, Owner, Token};
use crate::migration::journal::{Journal, JournalError};
use crate::registry::Registry;

/// Decides one handoff by the source's journal.
pub struct LocalArbiter {
    journal: Journal,
    /// The daemon that has begun the handoff has ended.
    recovered: bool,
    /// What was answered. Held while something is written, so that of two callers one is the first.
    answered: Mutex<Option<Decision>>,
}

impl LocalArbiter {
    /// For a migration of this daemon.
    #[must_use]
    pub fn new(registry: Registry, migration: MigrationId) -> Self {
        Self {
            journal: Journal::new(registry, migration, MigrationRole::Source),
            recovered: false,
            answered: Mutex::default(),
        }
    }

    /// For a migration that a daemon before this one has left. What it has not committed is abandoned: whether it has told
    /// somebody so is not on record.
    #[must_use]
    pub fn recovered(registry: Registry, migration: MigrationId) -> Self {
        Self {
            recovered: true,
            ..Self::new(registry, migration)
        }
    }

    /// What the journal says. Only a commit that is there is certain before something could be written.
    async fn read(&self) -> Result<Option<Decision>, JournalError> {
        let steps: Vec<SourceStep> = self.journal.words().await?;
        Ok(match SourceStep::deciding(&steps) {
            Some(step) if step.is_committed() => Some(Decision::Committed),
            Some(
                SourceStep::Aborted | SourceStep::GivingUp | SourceStep::RolledBack | SourceStep::TakenBack,
            ) => Some(Decision::Abandoned),
            _ => None,
        })
    }

    async fn append(&self, step: SourceStep, handoff: &Handoff) -> Result<(), JournalError> {
        let data = serde_json::json!({
            "container": handoff.container,
            "destination": handoff.destination,
        });
        self.journal.append(step, handoff.epoch, data).await
    }

    /// Has it decided as `wanted`, unless it is decided already. A step after the final one would have recovery begin anew.
    async fn decide(
        &self,
        handoff: &Handoff,
        wanted: Decision,
        answered: &mut Option<Decision>,
    ) -> Result<Decision, JournalError> {
        let decision = match (self.read().await?, wanted) {
            (Some(decision), _) => decision,
            (None, Decision::Committed) => {
                self.append(SourceStep::Committed, handoff).await?;
                wanted
            }
            (None, Decision::Abandoned) => {
                self.append(SourceStep::Freezing, handoff).await?;
                self.read().await?.unwrap_or(wanted)
            }
        };
        Ok(*answered.insert(decision))
    }
}

#[async_trait]
impl Arbiter for LocalArbiter {
    async fn open(&self, _: &ContainerId, _: &Name, _: u64) -> Result<Token, ArbiterError> {
        Ok(Token(0))
    }

    async fn commit(&self, handoff: &Handoff) -> Result<Decision, ArbiterError> {
        let mut answered = self.answered.lock().await;
        let decided = match *answered {
            Some(decision) => Ok(decision),
            None if self.recovered => self.decide(handoff, Decision::Abandoned, &mut answered).await,
            None => self.decide(handoff, Decision::Committed, &mut answered).await,
        };
        decided.map_err(|error| unknown("the handoff is committed", error))
    }

    async fn abandon(&self, handoff: &Handoff) -> Result<Decision, ArbiterError> {
        let mut answered = self.answered.lock().await;
        let decided = match *answered {
            Some(decision) => Ok(decision),
            None => self.decide(handoff, Decision::Abandoned, &mut answered).await,
        };
        decided.map_err(|error| unknown("the handoff is abandoned", error))
    }

    async fn decision(&self, _: &Handoff) -> Result<Option<Decision>, ArbiterError> {
        let answered = self.answered.lock().await;
        if answered.is_some() {
            return Ok(*answered);
        }
        let read = self.read().await;
        let decided = read.map_err(|error| unknown("the handoff is decided", error))?;
        Ok(decided.or(self.recovered.then_some(Decision::Abandoned)))
    }

    /// Nobody else has a record that would have to change.
    async fn take(&self, _: &ContainerId, _: &Name, _: u64) -> Result<(), ArbiterError> {
        Ok(())
    }

    /// Not on record: each host knows what it has itself.
    async fn owner(&self, _: &ContainerId) -> Result<Option<Owner>, ArbiterError> {
        Ok(None)
    }

    /// There is no record.
    async fn forget(&self, _: &ContainerId, _: &Name) -> Result<(), ArbiterError> {
        Ok(())
    }
}

fn unknown(doing: &'static str, error: JournalError) -> ArbiterError {
    ArbiterError::Unknown {
        doing,
        source: Box::new(error),
    }
}
