//! A host that a person has decided against obeys when it comes back; and one that the container went on to from there, too.

use tranship_migrate::error::HostError;
use tranship_migrate::handoff::{DestinationStep, Obedience, obedience};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::{ContainerState, Migration, MigrationOutcome, MigrationRole};

use super::conductor::Conductor;
use super::held::remove_staging;
use super::journal::Journal;
use crate::containers::VolumeFate;
use crate::registry::{ContainerRecord, Tombstone};

/// Whose a container is, by a person's decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The host.
    pub owner: Name,
    /// Under which it has the container.
    pub epoch: u64,
}

/// What a host answers that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nothing of the container runs there any more, nor where it went on to.
    Obeyed,
    /// It is to be told again.
    NotYet,
    /// It is to be told again under a higher epoch than this.
    Seen(u64),
}

impl Conductor {
    /// The container of a migration with `peer` is another host's. What is here of it ends, and its volumes are kept; where it has gone
    /// on from here, the next host is told.
    ///
    /// # Errors
    /// Something could not be ended or removed, or the next host does not answer.
    pub(super) async fn obey(
        &self,
        id: MigrationId,
        peer: &Name,
        decided: &Decided,
    ) -> Result<Answer, HostError> {
        let Some(record) = self.migration_with(id, peer).await? else {
            return Ok(Answer::Obeyed);
        };
        // Whoever is at it asks that host himself, and hears the same.
        if self.shared.board.is_active(id) || self.shared.doubts.contains(id) {
            return Ok(Answer::NotYet);
        }
        let failed = |error| HostError::new("find the container", error);
        let container: ContainerId = record
            .container_id
            .parse()
            .map_err(|error| HostError::new("read the migration's record", error))?;
        let containers = self.shared.registry().containers();
        let here = containers.get(&container).await.map_err(failed)?;
        let gone = containers.tombstone(&container).await.map_err(failed)?;
        let gone = gone.filter(|gone| gone.moved_to != decided.owner.as_str());
        let own = here.as_ref().map(|here| here.epoch);
        match obedience(own, gone.as_ref().map(|gone| gone.epoch), decided.epoch) {
            Obedience::Nothing => return Ok(Answer::Obeyed),
            Obedience::Later { seen } => return Ok(Answer::Seen(seen)),
            Obedience::End | Obedience::PassOn => {}
        }
        let name = record.container_name.clone();
        let answer = match (here, gone) {
            (Some(here), _) => self.end_here(id, record, &here, decided).await?,
            (None, Some(gone)) => self.pass_on(&container, &gone, decided).await?,
            (None, None) => Answer::Obeyed,
        };
        if answer == Answer::Obeyed {
            let Decided { owner, epoch } = decided;
            tracing::warn!(migration_id = %id, container = name, %owner, epoch, "a person has decided that the container is another host's; what was here of it, or went on from here, has ended, its volumes are kept");
        }
        Ok(answer)
    }

    async fn migration_with(&self, id: MigrationId, peer: &Name) -> Result<Option<Migration>, HostError> {
        let failed = |error| HostError::new("read the migration", error);
        let migrations = self.shared.registry().migrations();
        for role in [MigrationRole::Source, MigrationRole::Destination] {
            let record = migrations.get(id, role).await.map_err(failed)?;
            if let Some(record) = record.filter(|record| record.peer() == peer.as_str()) {
                return Ok(Some(record.migration));
            }
        }
        Ok(None)
    }

    async fn end_here(
        &self,
        id: MigrationId,
        record: Migration,
        here: &ContainerRecord,
        decided: &Decided,
    ) -> Result<Answer, HostError> {
        match here.state {
            ContainerState::Migrating | ContainerState::InDoubt => return Ok(Answer::NotYet),
            ContainerState::Receiving => {
                let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Destination);
                let epoch = journal.epoch().await;
                // What another migration brings is that one's.
                if epoch.map_err(|error| HostError::new("read the journal", error))? != here.epoch {
                    return Ok(Answer::NotYet);
                }
                self.drop_lost(id, &here.id, decided.epoch).await?;
            }
            _ => {
                let containers = &self.shared.containers;
                let (owner, epoch) = (decided.owner.as_str(), decided.epoch);
                let moved = containers.moved(&here.id, owner, epoch, VolumeFate::Keep);
                moved
                    .await
                    .map_err(|error| HostError::new("end what is here of the container", error))?;
            }
        }
        self.note_obeyed(id, record, &decided.owner).await;
        Ok(Answer::Obeyed)
    }

    /// It was handed over, and never seen to run here.
    async fn drop_lost(&self, id: MigrationId, container: &ContainerId, epoch: u64) -> Result<(), HostError> {
        self.shared.networks().let_go(container).await;
        let dropped = self.shared.containers.drop_incoming(container).await;
        dropped.map_err(|error| HostError::new("remove what was received", error))?;
        remove_staging(self.shared.paths.migration(&id)).await?;
        let journal = Journal::new(self.shared.registry().clone(), id, MigrationRole::Destination);
        let written = journal.append(DestinationStep::Dropped, epoch, serde_json::Value::Null);
        written
            .await
            .map_err(|error| HostError::new("write the journal", error))
    }

    async fn note_obeyed(&self, id: MigrationId, mut record: Migration, owner: &Name) {
        if record.outcome() == MigrationOutcome::Unknown {
            record.set_outcome(MigrationOutcome::RolledBack);
        }
        record.advice = format!(
            "a person has decided that container {} is at {owner}; what was here of it has ended, its volumes here were kept: \
             `tranship volume ls`",
            record.container_name
        );
        self.shared.close(id, record).await;
    }

    /// Tells the host that the container went on to from here.
    async fn pass_on(
        &self,
        container: &ContainerId,
        gone: &Tombstone,
        decided: &Decided,
    ) -> Result<Answer, HostError> {
        let migrations = self.shared.registry().migrations().of_container(container).await;
        let migrations = migrations.map_err(|error| HostError::new("read the migrations", error))?;
        let went_on = |record: &&Migration| {
            record.role() == MigrationRole::Source && record.destination == gone.moved_to
        };
        let mut newest_first = migrations.iter().rev().map(|record| &record.migration);
        let unknown = || HostError::new("find the migration with which it went on", gone.moved_to.clone());
        let record = newest_first.find(went_on).ok_or_else(unknown)?;
        let failed = |error| HostError::new("tell the host that it went on to", error);
        let id: MigrationId = record.id.parse().map_err(|error| failed(Box::from(error)))?;
        let host: Name = gone.moved_to.parse().map_err(|error| failed(Box::from(error)))?;
        self.shared.tell(id, &host, decided).await.map_err(failed)
    }
}
