//! The part of the source's role that is about who owns the container: what the machine says, done, and what comes of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tranship_proto::limits::MAX_WARNINGS;
use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{Drained, Go, Phase, Running};

use super::{Setback, Source, SourceEnd};
use crate::control::unexpected;
use crate::deadlines::{ASK_AGAIN, DROP, RESUME};
use crate::error::{ControlError, Failure, HostError, StepError, chain};
use crate::handoff::{
    DestinationSays, Digest, Message, SourceEffect, SourceEvent, SourceOutcome, SourceStep,
};
use crate::host::CommitError;
use crate::timings::blackout_us;

/// How often it is tried to give a container back what it had, and the pause between two attempts: it stands still meanwhile, and
/// nobody else does it before the next start of the daemon.
const ATTEMPTS: u8 = 5;
const PAUSE: Duration = Duration::from_millis(200);

impl Source {
    /// Tells the machine what has happened, does what it says, and tells it what comes of that.
    pub(super) async fn tell(&mut self, event: SourceEvent) -> Result<(), Setback> {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            let (handoff, effects) = self.handoff.on(event);
            self.handoff = handoff;
            for effect in effects {
                next = self.carry_out(effect).await?;
            }
        }
        Ok(())
    }

    async fn carry_out(&mut self, effect: SourceEffect) -> Result<Option<SourceEvent>, Setback> {
        Ok(match effect {
            SourceEffect::Record(step) => Some(self.record(step).await?),
            SourceEffect::Commit { digest } => Some(self.write_commit(digest.unwrap_or_default()).await?),
            SourceEffect::Abandon => Some(self.abandon().await),
            SourceEffect::Own { epoch } => {
                self.host.own(epoch).await?;
                None
            }
            SourceEffect::Send(message) => {
                self.send_message(message).await?;
                None
            }
            SourceEffect::Undo { thaw } => Some(self.undo(thaw).await),
            SourceEffect::Ask => Some(self.ask().await),
            SourceEffect::RemoveCopy => Some(self.remove_copy().await),
        })
    }

    async fn record(&mut self, step: SourceStep) -> Result<SourceEvent, Setback> {
        let Err(error) = self.host.record(step).await else {
            return Ok(SourceEvent::Recorded(step));
        };
        let event = SourceEvent::InDoubt(step);
        match step {
            SourceStep::Done => self.left.push(error),
            SourceStep::GivingUp => {
                tracing::warn!(migration_id = %self.migration, error = %chain(&error), "it cannot be written that the container is about to run here again; until then it stands still");
            }
            SourceStep::Aborted | SourceStep::RolledBack => self.undo.push(error),
            SourceStep::Intent
            | SourceStep::Freezing
            | SourceStep::Committed
            | SourceStep::TakenBack
            | SourceStep::Told => {
                let cause = error.into();
                return Err(Setback { event, cause });
            }
        }
        Ok(event)
    }

    async fn write_commit(&mut self, digest: Digest) -> Result<SourceEvent, Setback> {
        let host = Arc::clone(&self.host);
        let (event, error) = match self.timings.measure("commit record", host.commit(digest)).await {
            Ok(()) => return Ok(SourceEvent::Recorded(SourceStep::Committed)),
            Err(CommitError::NotRecorded(error)) => (SourceEvent::NotRecorded(SourceStep::Committed), error),
            Err(CommitError::Unknown(error)) => (SourceEvent::InDoubt(SourceStep::Committed), error),
        };
        let cause = error.into();
        Err(Setback { event, cause })
    }

    /// Nobody may run the container as long as it is not known.
    async fn abandon(&mut self) -> SourceEvent {
        let host = Arc::clone(&self.host);
        match self.timings.measure("ask whose it is", host.abandon()).await {
            Ok(committed) => SourceEvent::Decided { committed },
            Err(error) => {
                tracing::warn!(migration_id = %self.migration, error = %chain(&error), "it is not known yet whose the container is");
                SourceEvent::InDoubt(SourceStep::Committed)
            }
        }
    }

    async fn send_message(&mut self, message: Message) -> Result<(), Setback> {
        let body = match message {
            Message::Reserve { .. } => Body::Reserve(self.asked.take().unwrap_or_default()),
            Message::Drained { digest } => Body::Drained(Drained {
                digest: digest.to_vec(),
            }),
            Message::Go { epoch, digest } => {
                self.note(Phase::Resume);
                self.go_at = Some(Instant::now());
                Body::Go(Go {
                    epoch,
                    digest: digest.to_vec(),
                })
            }
            Message::Abort => {
                let reason = self.failure.as_ref().map(|failure| chain(failure));
                self.conversation.abort(reason.unwrap_or_default()).await;
                return Ok(());
            }
            // The destination's words.
            Message::Reserved
            | Message::Prepared { .. }
            | Message::Ready
            | Message::Running
            | Message::Failed
            | Message::GivenBack => return Ok(()),
        };
        Ok(self.conversation.say(body).await?)
    }

    async fn undo(&mut self, thaw: bool) -> SourceEvent {
        if let Some(memory) = self.memory.take() {
            self.rounds = memory.rounds().to_vec();
        }
        let slow = self.full_speed().await;
        if thaw {
            self.undo_freeze().await;
        }
        self.undo.extend(slow.err());
        self.undo.extend(self.host.drop_staging().await.err());
        SourceEvent::Undone {
            whole: self.undo.is_empty(),
        }
    }

    /// Network first, so that the first instruction finds it there.
    async fn undo_freeze(&mut self) {
        let host = Arc::clone(&self.host);
        let mending = insist(|| host.mend_network());
        let mended = self.timings.measure("mend the network", mending).await;
        self.undo.extend(mended.err());
        let thawed = self.timings.measure("thaw", insist(|| host.thaw())).await;
        self.undo.extend(thawed.err());
        if let Some(failed_at) = self.failed_at {
            self.timings
                .record("failure to thaw", failed_at, failed_at.elapsed());
        }
    }

    async fn remove_copy(&mut self) -> SourceEvent {
        self.note(Phase::Clean);
        let host = Arc::clone(&self.host);
        let removed = self.timings.measure("remove the copy", host.remove_copy()).await;
        self.left.extend(removed.err());
        self.left.extend(host.drop_staging().await.err());
        SourceEvent::Removed {
            whole: self.left.is_empty(),
        }
    }

    async fn ask(&mut self) -> SourceEvent {
        match self.host.ask_destination().await {
            Ok(says) => {
                self.hopeless |= says == DestinationSays::Gone;
                SourceEvent::Says(says)
            }
            Err(error) => {
                tracing::debug!(migration_id = %self.migration, %error, "the destination does not answer");
                SourceEvent::Silent
            }
        }
    }

    /// Goes on from where the phases have ended, well or not, until the machine has ended or this role can do no more.
    pub(super) async fn follow_through(&mut self, mut setback: Option<Setback>) -> SourceEnd {
        let mut give_up_at = None;
        loop {
            if let Some(Setback { event, cause }) = setback.take() {
                self.failed_at.get_or_insert_with(Instant::now);
                self.hopeless |=
                    self.handoff.awaits_running() && event == SourceEvent::Heard(Message::Failed);
                let cause = self.peers_own_words(cause).await;
                self.failure = Some(self.failure(cause));
                setback = self.tell(event).await.err();
            } else if let Some(outcome) = self.handoff.outcome() {
                return self.end(outcome).await;
            } else if self.handoff.awaits_running() {
                setback = self.hear_running().await.err();
            } else if self.handoff.is_asking() && self.left.is_empty() && !self.hopeless {
                // The connection is of no use, the destination may be: it may have heard Go, or may ask this host's journal.
                self.conversation.hang_up();
                if *give_up_at.get_or_insert_with(|| Instant::now() + RESUME) < Instant::now() {
                    return self.unknown();
                }
                setback = self.ask_again().await.err();
            } else {
                return self.unknown();
            }
        }
    }

    async fn hear_running(&mut self) -> Result<(), Setback> {
        match self.conversation.hear("running", RESUME).await? {
            Body::Running(Running {
                spans,
                go_to_running_us,
                go_to_answer_us,
                warnings,
            }) => {
                let go_at = self.go_at.unwrap_or_else(Instant::now);
                let freeze_to_go = self.frozen_at.map_or(Duration::ZERO, |frozen| go_at - frozen);
                self.blackout_us =
                    blackout_us(freeze_to_go, go_at.elapsed(), go_to_running_us, go_to_answer_us);
                self.timings.record("go to running", go_at, go_at.elapsed());
                self.peer_spans.extend(spans);
                self.warnings.extend(warnings.into_iter().take(MAX_WARNINGS));
                self.tell(SourceEvent::Heard(Message::Running)).await
            }
            other => Err(unexpected("running", &other).into()),
        }
    }

    async fn ask_again(&mut self) -> Result<(), Setback> {
        self.tell(SourceEvent::Again).await?;
        if self.handoff.is_asking() && self.left.is_empty() && !self.hopeless {
            tokio::time::sleep(ASK_AGAIN).await;
        }
        Ok(())
    }

    async fn end(&mut self, outcome: SourceOutcome) -> SourceEnd {
        if outcome == SourceOutcome::Done {
            return SourceEnd::Done { left: Vec::new() };
        }
        let failure = self.last_failure();
        self.await_drop(&failure.cause).await;
        match outcome {
            SourceOutcome::RolledBack => SourceEnd::RolledBack {
                failure,
                undo: std::mem::take(&mut self.undo),
            },
            _ => SourceEnd::Failed {
                failure,
                undo: std::mem::take(&mut self.undo),
            },
        }
    }

    /// Nothing more to find out here: the machine goes on without this role, as the journal has it.
    fn unknown(&mut self) -> SourceEnd {
        if self.left.is_empty() {
            SourceEnd::Unknown(self.last_failure())
        } else {
            let left = std::mem::take(&mut self.left);
            SourceEnd::Done { left }
        }
    }

    fn last_failure(&mut self) -> Failure {
        let waiting_for = "an end";
        let unsaid = |role: &Self| role.failure(ControlError::Lost { waiting_for });
        self.failure.take().unwrap_or_else(|| unsaid(self))
    }

    /// The destination drops what it has, and says so: whoever looks there after this migration has ended finds nothing. It
    /// is not waited for long, since nothing here depends on it.
    async fn await_drop(&mut self, cause: &StepError) {
        if matches!(cause, StepError::Destination { .. }) {
            return;
        }
        let dropped = async { while self.conversation.hear("that all was dropped", DROP).await.is_ok() {} };
        if tokio::time::timeout(DROP, dropped).await.is_err() {
            tracing::warn!(migration_id = %self.migration, "the destination has not said that it has dropped what it had");
        }
    }
}

async fn insist<F>(attempt: impl Fn() -> F) -> Result<(), HostError>
where
    F: Future<Output = Result<(), HostError>>,
{
    for _ in 1..ATTEMPTS {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the container cannot go on here yet; this is tried again");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
    attempt().await
}
