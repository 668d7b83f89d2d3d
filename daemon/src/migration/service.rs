//! What other hosts ask of this one about migrations.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};
use tranship_migrate::control::{Control, Conversation};
use tranship_migrate::deadlines::REPLY;
use tranship_migrate::destination::Destination;
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::{self, DestinationSays, DestinationStep, SourceStep, Verdict};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{
    MigrateMessage, Migration, MigrationOutcome, MigrationRole, Phase, PreflightReply, PreflightRequest,
    QueryMigrationReply, QueryMigrationRequest, Reserve, ResolvedMigrationReply, ResolvedMigrationRequest,
};

use super::conductor::{Conductor, Shared};
use super::control::{GrpcControl, MESSAGES_IN_FLIGHT, Outbox};
use super::destination_host::LocalDestination;
use super::faults;
use super::journal::{Journal, JournalError};
use super::obey::{Answer, Decided};
use super::outcome;
use crate::clock::now_ms;
use crate::peers::identity::PeerIdentity;
use crate::peers::migrations::{MigrateReplies, PeerMigrations};

#[async_trait]
impl PeerMigrations for Conductor {
    async fn preflight(
        &self,
        _peer: PeerIdentity,
        request: PreflightRequest,
    ) -> Result<PreflightReply, Status> {
        self.shared
            .answer(&request)
            .await
            .map_err(|error| Status::internal(chain(error.as_ref())))
    }

    async fn migrate(
        &self,
        peer: PeerIdentity,
        messages: Streaming<MigrateMessage>,
    ) -> Result<MigrateReplies, Status> {
        let (outbox, replies) = mpsc::channel(MESSAGES_IN_FLIGHT);
        let control = GrpcControl::new(Outbox::Answerer(outbox.clone()), messages);
        let conductor = self.clone();
        tokio::spawn(async move {
            match conductor.receive(peer.name, control).await {
                Ok(role) => {
                    // The role alone decides when there is nothing more to say.
                    drop(outbox);
                    role.await;
                }
                Err(status) => {
                    tracing::warn!(error = status.message(), "a migration was not taken");
                    // A source that has gone away does not want to know.
                    let _ = outbox.send(Err(status)).await;
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(replies)))
    }

    async fn query(
        &self,
        peer: PeerIdentity,
        request: QueryMigrationRequest,
    ) -> Result<QueryMigrationReply, Status> {
        let id: MigrationId = request
            .migration_id
            .parse()
            .map_err(|_| Status::invalid_argument("not a migration id"))?;
        let answer = self.shared.journal_says(id, &peer.name).await;
        answer.map_err(|error| Status::internal(chain(&error)))
    }

    async fn resolved(
        &self,
        peer: PeerIdentity,
        request: ResolvedMigrationRequest,
    ) -> Result<ResolvedMigrationReply, Status> {
        let id: MigrationId = request
            .migration_id
            .parse()
            .map_err(|_| Status::invalid_argument("not a migration id"))?;
        let owner = request.owner.parse();
        let decided = Decided {
            owner: owner.map_err(|_| Status::invalid_argument("not a host's name"))?,
            epoch: request.epoch,
        };
        let conductor = self.clone();
        // Also when the other host no longer waits: what has begun to end is not left in the middle.
        let obeying = tokio::spawn(async move { conductor.obey(id, &peer.name, &decided).await });
        let answer = obeying.await.map_err(|error| Status::internal(chain(&error)))?;
        let answer = answer.map_err(|error| Status::internal(chain(&error)))?;
        Ok(ResolvedMigrationReply {
            obeyed: answer == Answer::Obeyed,
            seen_epoch: match answer {
                Answer::Seen(epoch) => epoch,
                _ => 0,
            },
        })
    }
}

impl Conductor {
    /// The destination's role for a source that has called, to be played.
    async fn receive(
        &self,
        source: Name,
        mut control: GrpcControl,
    ) -> Result<impl Future<Output = ()> + use<>, Status> {
        let (id, reserve) = first_message(&mut control).await?;
        let shared = Arc::clone(&self.shared);
        if reserve.source != source.as_str() || reserve.destination != shared.host_name() {
            return Err(Status::permission_denied("a reservation between other hosts"));
        }
        let known = Journal::new(shared.registry().clone(), id, MigrationRole::Destination)
            .steps()
            .await;
        if !known.map_err(|error| Status::internal(chain(&error)))?.is_empty() || shared.board.is_active(id) {
            return Err(Status::already_exists("a migration of that id was here before"));
        }
        let host = LocalDestination::new(Arc::clone(&shared), id, source.clone(), &reserve);
        let host = Arc::new(host.map_err(|error| Status::invalid_argument(chain(&error)))?);
        let mut record = received_record(id, &source, &shared.host_name(), &reserve);
        shared
            .store(record.clone())
            .await
            .map_err(|error| Status::internal(chain(&error)))?;
        let cancelled = shared.board.post(id, record.clone());
        let conversation = Conversation::new(id, faults::conversation("destination", control));
        Ok(async move {
            let _cancelled = cancelled;
            let report = Destination::new(id, faults::destination(host), conversation)
                .run(reserve)
                .await;
            shared.doubts.close(id);
            record = shared.board.get(id).unwrap_or(record);
            outcome::of_destination(&mut record, report);
            let (outcome, total_ms) = (record.outcome().as_str_name(), record.total_us / 1000);
            tracing::info!(migration_id = %id, role = "destination", container = record.container_name, peer = record.source, outcome, total_ms, error = record.error, "migration ended");
            shared.close(id, record).await;
        })
    }
}

impl Shared {
    /// Whether another migration than `but` brings the container here, and is not at its end.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn on_its_way(&self, container: &ContainerId, but: MigrationId) -> Result<bool, HostError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            HostError::new("read the container's migrations", error)
        };
        let found = self.registry().migrations().of_container(container).await;
        for other in found.map_err(|error| failed(error.into()))? {
            let id: MigrationId = other
                .migration
                .id
                .parse()
                .map_err(|error| failed(Box::from(error)))?;
            if id == but || other.migration.role() != MigrationRole::Destination {
                continue;
            }
            let journal = Journal::new(self.registry().clone(), id, MigrationRole::Destination);
            let steps = journal.words().await;
            let newest = DestinationStep::deciding(&steps.map_err(|error| failed(error.into()))?);
            // Before its first record it is only known by the role that plays it.
            if newest.map_or_else(|| self.board.is_active(id), |step| !step.is_last()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// What this host's journal says of a migration, to the other host of it.
    async fn journal_says(&self, id: MigrationId, peer: &Name) -> Result<QueryMigrationReply, JournalError> {
        for role in [MigrationRole::Source, MigrationRole::Destination] {
            let record = self.registry().migrations().get(id, role).await?;
            let Some(record) = record.filter(|record| record.peer() == peer.as_str()) else {
                continue;
            };
            let journal = Journal::new(self.registry().clone(), id, role);
            let shown = self.board.get(id).unwrap_or(record.migration);
            return Ok(match role {
                MigrationRole::Source => {
                    let taking_back = self.doubts.is_taking_back(id);
                    source_says(&journal.words().await?, &shown, taking_back)
                }
                _ => destination_says(&journal.words().await?, &shown),
            });
        }
        Ok(QueryMigrationReply::default())
    }
}

/// A verdict as the destination reads it: undecided as long as there is no outcome.
fn source_says(steps: &[SourceStep], shown: &Migration, taking_back: bool) -> QueryMigrationReply {
    // Without an end somebody here may still commit it, or does not know whether he has.
    let active = matches!(
        shown.outcome(),
        MigrationOutcome::Unspecified | MigrationOutcome::Unknown
    );
    let verdict = handoff::verdict(SourceStep::deciding(steps), active, taking_back);
    let outcome = match verdict {
        Verdict::Undecided => MigrationOutcome::Unspecified,
        Verdict::Abandoned if active => MigrationOutcome::RolledBack,
        Verdict::Abandoned | Verdict::Committed => shown.outcome(),
    };
    QueryMigrationReply {
        known: true,
        role: MigrationRole::Source.into(),
        phase: shown.phase,
        outcome: outcome.into(),
        committed: verdict == Verdict::Committed,
        ready: false,
        given_back: false,
        over: !active && SourceStep::is_over(steps),
    }
}

/// What the source reads. A destination that has dropped everything has nothing to say any more.
fn destination_says(steps: &[DestinationStep], shown: &Migration) -> QueryMigrationReply {
    let says = handoff::destination_says(steps);
    let phase = match says {
        DestinationSays::Runs => Phase::Clean,
        DestinationSays::Resuming => Phase::Resume,
        DestinationSays::Ready
        | DestinationSays::Waits
        | DestinationSays::Gone
        | DestinationSays::GivenBack => shown.phase().min(Phase::Commit),
    };
    QueryMigrationReply {
        known: says != DestinationSays::Gone,
        role: MigrationRole::Destination.into(),
        phase: phase.into(),
        outcome: shown.outcome,
        committed: says == DestinationSays::Runs,
        ready: says == DestinationSays::Ready,
        given_back: says == DestinationSays::GivenBack,
        over: false,
    }
}

async fn first_message(control: &mut GrpcControl) -> Result<(MigrationId, Reserve), Status> {
    let due = || Status::invalid_argument("a migration begins with a reservation");
    let received = tokio::time::timeout(REPLY, control.receive()).await;
    let received = received.map_err(|_| Status::deadline_exceeded("no reservation came"))?;
    let message = received
        .map_err(|error| Status::aborted(chain(&error)))?
        .ok_or_else(due)?;
    match message.body {
        Some(Body::Reserve(reserve)) => Ok((message.migration_id.parse().map_err(|_| due())?, reserve)),
        _ => Err(due()),
    }
}

fn received_record(id: MigrationId, source: &Name, here: &str, reserve: &Reserve) -> Migration {
    let container = reserve.container.clone().unwrap_or_default();
    Migration {
        id: id.to_string(),
        container_id: container.id,
        container_name: container.spec.map(|spec| spec.name).unwrap_or_default(),
        source: source.to_string(),
        destination: here.to_owned(),
        role: MigrationRole::Destination.into(),
        phase: Phase::Reserve.into(),
        epoch: reserve.next_epoch,
        started_ms: now_ms(),
        options: reserve.options.clone(),
        ..Migration::default()
    }
}
