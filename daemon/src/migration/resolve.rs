//! A person decides whose a container is that two hosts cannot agree about, because one of them is gone for ever.

use std::time::Duration;

use tranship_migrate::handoff::{Resolution, is_handed_over};
use tranship_proto::ids::{ContainerId, MigrationId};
use tranship_proto::v1::{Migration, MigrationOutcome, MigrationRole};

use super::conductor::{Conductor, ConductorError};
use super::journal::Journal;

/// For what was decided to be done: a restore of all memory takes the longest.
const DONE: Duration = Duration::from_secs(180);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What a person is told.
#[derive(Debug)]
pub struct Resolved {
    /// The migration: as it is, or as it became.
    pub migration: Migration,
    /// What happens, sentence by sentence.
    pub consequences: Vec<String>,
}

impl Conductor {
    /// Decides that the container of a migration in doubt is `owner`'s. Not `confirmed`, it only says what would happen.
    ///
    /// # Errors
    /// There is no such migration, it is not in doubt, or it cannot be this host's.
    pub async fn resolve(
        &self,
        text: &str,
        owner: &str,
        confirmed: bool,
    ) -> Result<Resolved, ConductorError> {
        let record = self.get(text).await?;
        let not_in_doubt = || ConductorError::NotInDoubt(record.id.clone());
        let id: MigrationId = record.id.parse().map_err(|_| not_in_doubt())?;
        if ![&record.source, &record.destination].contains(&&owner.to_owned()) {
            return Err(ConductorError::NoSuchOwner {
                id: record.id.clone(),
                source_host: record.source.clone(),
                destination: record.destination.clone(),
            });
        }
        if !self.shared.doubts.contains(id) {
            return Err(not_in_doubt());
        }
        let resolution = match owner == self.shared.host_name() {
            true => Resolution::Here,
            false => Resolution::There,
        };
        if record.role() == MigrationRole::Source && resolution == Resolution::Here {
            self.expect_copy(id, &record).await?;
        }
        let consequences = consequences(&record, resolution);
        if !confirmed {
            let migration = record;
            return Ok(Resolved {
                migration,
                consequences,
            });
        }
        tracing::warn!(migration_id = %id, container = record.container_name, owner, "a person decides whose the container is");
        if !self.shared.doubts.resolve(id, resolution) {
            return Err(not_in_doubt());
        }
        let migration = self.until_decided(id, &record).await?;
        // Whoever has taken the source's copy back tells of that himself.
        if resolution == Resolution::Here && record.role() == MigrationRole::Destination {
            self.tell_later(id, MigrationRole::Destination);
        }
        Ok(Resolved {
            migration,
            consequences,
        })
    }

    /// The copy may be gone although that is not on record yet: the destination runs the container then.
    async fn expect_copy(&self, id: MigrationId, record: &Migration) -> Result<(), ConductorError> {
        let nothing = || ConductorError::NothingHere(record.container_name.clone());
        let container: ContainerId = record.container_id.parse().map_err(|_| nothing())?;
        let here = self.shared.registry().containers().get(&container).await?;
        let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Source);
        let epoch = journal.epoch().await.map_err(ConductorError::Journal)?;
        match here {
            Some(here) if is_handed_over(here.epoch, epoch) => Ok(()),
            _ => Err(nothing()),
        }
    }

    async fn until_decided(&self, id: MigrationId, before: &Migration) -> Result<Migration, ConductorError> {
        let give_up_at = tokio::time::Instant::now() + DONE;
        while tokio::time::Instant::now() < give_up_at {
            let now = self.shared.registry().migrations().get(id, before.role()).await?;
            let decided = |record: &Migration| {
                !matches!(
                    record.outcome(),
                    MigrationOutcome::Unspecified | MigrationOutcome::Unknown
                )
            };
            if let Some(now) = now.map(|record| record.migration)
                && decided(&now)
                && !self.shared.board.is_active(id)
            {
                return Ok(now);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Err(ConductorError::StillInDoubt(before.id.clone()))
    }
}

/// What will happen, and what must be true for it to be right.
fn consequences(record: &Migration, resolution: Resolution) -> Vec<String> {
    let Migration {
        container_name: container,
        source,
        destination,
        ..
    } = record;
    let texts = match (record.role(), resolution) {
        (MigrationRole::Destination, Resolution::Here) => [
            format!(
                "container {container} is let run here, at {destination}, from the checkpoint that {source} has sent"
            ),
            format!(
                "{source} is told when it comes back: what is there of {container}, or has gone on from there, ends then, its volumes there are kept"
            ),
            format!(
                "if {source} is not gone but runs {container} after all, there are two of it until then, and what its clients wrote at {source} since is only in the volumes there"
            ),
        ],
        (MigrationRole::Destination, Resolution::There) => [
            format!(
                "what was received of container {container} is removed here, at {destination}, memory and volumes; it has not run here"
            ),
            format!(
                "{source} takes {container} back when it asks, and lets its frozen copy run on, if it was not switched off meanwhile"
            ),
            format!("if {source} is gone for ever, so is {container}"),
        ],
        (_, Resolution::Here) => [
            format!(
                "the frozen copy of container {container} runs on here, at {source}, on its network, from the moment it was frozen"
            ),
            format!(
                "{destination} is told when it comes back: what is there of {container}, or has gone on from there, ends then, its volumes there are kept"
            ),
            format!(
                "if {destination} is not gone but runs {container}, there are two of it until then, and what its clients wrote at {destination} since is only in the volumes there"
            ),
        ],
        (_, Resolution::There) => [
            format!(
                "the frozen copy of container {container} is removed here, at {source}, memory and volumes"
            ),
            format!("{destination} has it from then on; whether it runs there is to be seen there"),
            format!("if {destination} is gone for ever, so is {container}"),
        ],
    };
    texts.into()
}
