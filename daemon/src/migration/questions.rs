//! What this host asks another about a migration of theirs, and what it tells it.

use std::time::Duration;

use tonic::{Response, Status};
use tranship_migrate::deadlines::ANSWER;
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::{DestinationSays, DestinationStep, SourceStep, Verdict};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::{
    ContainerState, MigrationOutcome, MigrationRole, Phase, QueryMigrationReply, QueryMigrationRequest,
    ResolvedMigrationReply, ResolvedMigrationRequest,
};

use super::conductor::{Conductor, Shared};
use super::journal::Journal;
use super::obey::{Answer, Decided};

/// Between two attempts to tell a host what a person has decided: it is to obey within ten seconds of its return.
const TELL_AGAIN: Duration = Duration::from_secs(2);

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Shared {
    /// What the source's journal says of a migration that came here.
    ///
    /// # Errors
    /// It does not answer in time, or with something that means nothing.
    pub async fn ask_source(&self, id: MigrationId, host: &Name) -> Result<Verdict, HostError> {
        let reply = self.query(id, host).await;
        let reply = reply.map_err(|error| HostError::new("ask the source", error))?;
        Ok(match (reply.committed, reply.outcome()) {
            (true, _) => Verdict::Committed,
            (false, MigrationOutcome::Unspecified) if reply.known => Verdict::Undecided,
            (false, _) => Verdict::Abandoned,
        })
    }

    /// What the destination's journal says of a migration that began here.
    ///
    /// # Errors
    /// It does not answer in time, or with something that means nothing.
    pub async fn ask_destination(&self, id: MigrationId, host: &Name) -> Result<DestinationSays, HostError> {
        let reply = self.query(id, host).await;
        let reply = reply.map_err(|error| HostError::new("ask the destination", error))?;
        Ok(match (reply.known, reply.committed) {
            _ if reply.given_back => DestinationSays::GivenBack,
            (_, true) => DestinationSays::Runs,
            (false, _) => DestinationSays::Gone,
            _ if reply.ready => DestinationSays::Ready,
            (true, _) if reply.phase() >= Phase::Resume => DestinationSays::Resuming,
            (true, _) => DestinationSays::Waits,
        })
    }

    /// Whether the source will ask nothing more about a migration that came here: it has ended there, or is not known there any more.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn is_over_at_source(&self, id: MigrationId, host: &Name) -> Result<bool, HostError> {
        let reply = self.query(id, host).await;
        let reply = reply.map_err(|error| HostError::new("ask the source", error))?;
        Ok(reply.over || !reply.known)
    }

    async fn query(&self, id: MigrationId, host: &Name) -> Result<QueryMigrationReply, AnyError> {
        let mut client = self.peers().control(host)?;
        let request = QueryMigrationRequest {
            migration_id: id.to_string(),
        };
        self.in_time(host, client.query_migration(request)).await
    }

    /// What a host answers. One that does not is called on another connection the next time.
    async fn in_time<T>(
        &self,
        host: &Name,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, AnyError> {
        match tokio::time::timeout(ANSWER, call).await {
            Ok(answer) => Ok(answer?.into_inner()),
            Err(late) => {
                self.peers().hang_up(host);
                Err(late.into())
            }
        }
    }

    /// Tells a host that a person has decided against it.
    ///
    /// # Errors
    /// It does not answer in time, or cannot obey.
    pub async fn tell(&self, id: MigrationId, host: &Name, decided: &Decided) -> Result<Answer, AnyError> {
        let mut client = self.peers().control(host)?;
        let request = ResolvedMigrationRequest {
            migration_id: id.to_string(),
            epoch: decided.epoch,
            owner: decided.owner.to_string(),
        };
        let reply = self.in_time(host, client.resolved_migration(request)).await?;
        Ok(match reply {
            ResolvedMigrationReply { obeyed: true, .. } => Answer::Obeyed,
            ResolvedMigrationReply { seen_epoch: 0, .. } => Answer::NotYet,
            ResolvedMigrationReply { seen_epoch, .. } => Answer::Seen(seen_epoch),
        })
    }

    /// Whose a container is for all that this host knows, which was decided to be its own under `epoch`, and may have gone on since.
    async fn decided(&self, container: &ContainerId, epoch: u64) -> Result<Decided, AnyError> {
        let containers = self.registry().containers();
        let here = containers.get(container).await?;
        if let Some(here) = here.filter(|here| here.state != ContainerState::Receiving) {
            let (owner, epoch) = (self.host_name().parse()?, epoch.max(here.epoch));
            return Ok(Decided { owner, epoch });
        }
        let gone = containers.tombstone(container).await?;
        Ok(match gone.filter(|gone| gone.epoch > epoch) {
            Some(gone) => Decided {
                owner: gone.moved_to.parse()?,
                epoch: gone.epoch,
            },
            None => Decided {
                owner: self.host_name().parse()?,
                epoch,
            },
        })
    }

    /// The container has gone on from a host that was decided against, or has come back to it, under the epoch `seen`: it is to be this
    /// host's own under a higher one. Not while it is moving, and not where etcd decides, which lets nobody take a container back that
    /// has gone on. Answers whether it still is for this migration to say whose it is: the container is here, and has not moved between
    /// the two hosts since.
    async fn outbid(
        &self,
        id: MigrationId,
        host: &Name,
        container: &ContainerId,
        seen: u64,
    ) -> Result<bool, AnyError> {
        let migrations = self.registry().migrations().of_container(container).await?;
        let newest = migrations.iter().rfind(|record| record.peer() == host.as_str());
        if newest.is_some_and(|record| record.migration.id != id.to_string())
            || self.registry().containers().get(container).await?.is_none()
        {
            return Ok(false);
        }
        if self.arbiter.is_none() && self.containers.outbid(container, seen + 1).await? {
            tracing::warn!(%container, seen, "the container has gone on from a host that a person has decided against; it is this host's under a higher epoch now");
        }
        Ok(true)
    }
}

impl Conductor {
    /// Tells the other hosts of all migrations that a person has decided here what he has, as far as they have not obeyed yet.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub(super) async fn tell_all(&self) -> Result<(), HostError> {
        let failed = |error| HostError::new("read the journal", error);
        let migrations = self.shared.registry().migrations();
        for (id, role) in migrations.untold().await.map_err(failed)? {
            self.tell_later(id, role);
        }
        Ok(())
    }

    /// Tells the other host, however long it stays away.
    pub(super) fn tell_later(&self, id: MigrationId, role: MigrationRole) {
        let conductor = self.clone();
        tokio::spawn(async move {
            while let Err(error) = conductor.tell_once(id, role).await {
                tracing::debug!(migration_id = %id, error = %chain(&error), "the other host has not obeyed yet");
                tokio::time::sleep(TELL_AGAIN).await;
            }
        });
    }

    async fn tell_once(&self, id: MigrationId, role: MigrationRole) -> Result<(), HostError> {
        let failed = |error: AnyError| HostError::new("tell the other host", error);
        let shared = &self.shared;
        let record = shared.registry().migrations().get(id, role).await;
        let Some(record) = record.map_err(|error| failed(error.into()))? else {
            return Ok(());
        };
        let host: Name = record.peer().parse().map_err(|error| failed(Box::from(error)))?;
        let journal = Journal::new(shared.registry().clone(), id, role);
        let epoch = journal.epoch().await.map_err(|error| failed(error.into()))?;
        let of_destination = role == MigrationRole::Destination;
        let own = if of_destination { epoch } else { epoch + 1 };
        if of_destination {
            let steps = journal.words().await.map_err(|error| failed(error.into()))?;
            if steps.contains(&DestinationStep::GivenBack) {
                return Ok(());
            }
            if DestinationStep::deciding(&steps) != Some(DestinationStep::Running) {
                return Err(failed("the container does not run here yet".into()));
            }
        }
        let container = record.migration.container_id.parse();
        let container: ContainerId = container.map_err(|error| failed(Box::from(error)))?;
        let decided = shared.decided(&container, own).await.map_err(failed)?;
        match shared.tell(id, &host, &decided).await.map_err(failed)? {
            Answer::Obeyed => {}
            Answer::NotYet => return Err(failed("it does not obey yet".into())),
            Answer::Seen(seen) => {
                let outbid = shared.outbid(id, &host, &container, seen).await;
                if outbid.map_err(failed)? {
                    return Err(failed(format!("it has seen epoch {seen}").into()));
                }
            }
        }
        tracing::info!(migration_id = %id, %host, epoch = decided.epoch, "the other host was told what a person has decided here");
        let step = match role {
            MigrationRole::Destination => serde_json::json!(DestinationStep::Told),
            _ => serde_json::json!(SourceStep::Told),
        };
        let written = journal.append(step, epoch, serde_json::Value::Null);
        written.await.map_err(|error| failed(error.into()))
    }
}
