//! The handoff journal of one role of one migration.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::MigrationRole;

use super::faults::{self, Injected};
use crate::registry::{JournalStep, Registry, RegistryError};

/// The last steps of either side before the container stands still: a full disk must not keep those behind them from being
/// written, of which one is the commit.
const ROOM_BEHIND: [&str; 2] = ["freezing", "reserved"];

/// Where a step's data has the start of the machine in which it was written.
const BOOT: &str = "boot";

/// Writes and reads the steps of one role.
#[derive(Clone)]
pub struct Journal {
    registry: Registry,
    migration: MigrationId,
    role: MigrationRole,
}

/// A journal that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The database.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A step's word or data that this version does not know.
    #[error("the journal holds a step that this version cannot read")]
    Malformed(#[from] serde_json::Error),
    /// A test wants it so.
    #[error("the journal cannot be used")]
    Injected(#[source] Injected),
}

impl Journal {
    /// The journal of `role` in `migration`.
    #[must_use]
    pub fn new(registry: Registry, migration: MigrationId, role: MigrationRole) -> Self {
        Self {
            registry,
            migration,
            role,
        }
    }

    /// Appends a step; durable when it returns `Ok`, unknown after an error. Before the container stands still it makes certain that
    /// there is room on the disk for the steps to come.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn append(
        &self,
        step: impl Serialize,
        epoch: u64,
        data: serde_json::Value,
    ) -> Result<(), JournalError> {
        let word = match serde_json::to_value(step)? {
            serde_json::Value::String(word) => word,
            other => other.to_string(),
        };
        if ROOM_BEHIND.contains(&word.as_str()) {
            self.registry.keep_room().await?;
        }
        let role = match self.role {
            MigrationRole::Destination => "destination",
            _ => "source",
        };
        let point = format!("{role}:journal-{word}");
        let data = with_boot(data);
        let appending = async {
            let migrations = self.registry.migrations();
            let written = migrations.append_step(self.migration, self.role, &word, epoch, data);
            Ok(written.await.map(drop)?)
        };
        faults::at(point, JournalError::Injected, appending).await
    }

    /// The words of every step, in order.
    ///
    /// # Errors
    /// The database cannot be read, or holds a word this version does not know.
    pub async fn words<S: DeserializeOwned>(&self) -> Result<Vec<S>, JournalError> {
        let steps = self.steps().await?.into_iter();
        let words = steps.map(|step| serde_json::from_value(serde_json::Value::String(step.step)));
        Ok(words.collect::<Result<_, _>>()?)
    }

    /// Whether the machine was started anew since the last `step` was written: nothing of it is left in memory. False where that is
    /// not on record.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn rebooted_since(&self, step: &str) -> Result<bool, JournalError> {
        let steps = self.steps().await?;
        let last = steps.iter().rfind(|known| known.step == step);
        let then = last.and_then(|known| known.data[BOOT].as_str());
        Ok(then.is_some_and(|then| then != crate::boot::id()))
    }

    /// The epoch that the migration is about; 0 while nothing is on record.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn epoch(&self) -> Result<u64, JournalError> {
        Ok(self.steps().await?.last().map_or(0, |step| step.epoch))
    }

    /// Every step, in order.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn steps(&self) -> Result<Vec<JournalStep>, JournalError> {
        Ok(self
            .registry
            .migrations()
            .steps(self.migration, self.role)
            .await?)
    }
}

fn with_boot(mut data: serde_json::Value) -> serde_json::Value {
    if data.is_null() {
        data = serde_json::json!({});
    }
    data[BOOT] = crate::boot::id().into();
    data
}
