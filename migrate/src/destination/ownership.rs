//! The part of the destination's role that is about who owns the container: what the machine says, done, and what comes of it.

use std::sync::Arc;
use std::time::Instant;

use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{Failed, Phase, Prepared, Ready, Running};

use super::{Destination, DestinationEnd, Setback};
use crate::control::unexpected;
use crate::deadlines::{ASK_AGAIN, IMAGES};
use crate::error::{Failure, HostError, StepError, chain};
use crate::handoff::{
    DestinationEffect, DestinationEvent, DestinationOutcome, DestinationStep, Digest, Inspection, Message,
    Verdict,
};
use crate::host::ReserveError;
use crate::timings::micros;

/// What a person should know of a container whose processes are gone.
const ENDED: &str = "the container's processes were let run at the destination and ended there before anybody saw them, with their host or \
                     its transhipd; the container has ended, and what it wrote is on its volumes at the destination";

/// How often it is tried to remove what is left over.
const CLEANINGS: u8 = 3;

impl Destination {
    /// Tells the machine what has happened, does what it says, and tells it what comes of that.
    pub(super) async fn tell(&mut self, event: DestinationEvent) -> Result<(), Setback> {
        let (handoff, effects) = self.handoff.on(event);
        self.handoff = handoff;
        self.carry_out_all(effects).await
    }

    /// Does what the machine has said, and tells it what comes of it.
    pub(super) async fn carry_out_all(&mut self, mut effects: Vec<DestinationEffect>) -> Result<(), Setback> {
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

    async fn carry_out(&mut self, effect: DestinationEffect) -> Result<Option<DestinationEvent>, Setback> {
        let host = Arc::clone(&self.host);
        Ok(match effect {
            DestinationEffect::Reserve => Some(self.take_places().await?),
            DestinationEffect::Record(step) => Some(self.record(step).await?),
            DestinationEffect::Send(message) => {
                self.send_message(message).await?;
                None
            }
            DestinationEffect::Restore => {
                self.restore().await?;
                Some(DestinationEvent::Held)
            }
            DestinationEffect::Release => {
                let held = self.held.take();
                let held = held.ok_or_else(|| HostError::new("let the container run", "nothing is held"))?;
                self.resume(held).await?;
                Some(DestinationEvent::Released)
            }
            DestinationEffect::Adopt => match self.timings.measure("adopt", host.adopt()).await {
                Ok(()) => Some(DestinationEvent::Adopted),
                Err(error) => {
                    self.not_yet(&error);
                    Some(DestinationEvent::Failed)
                }
            },
            DestinationEffect::DropStaging => {
                self.note(Phase::Clean);
                self.drop_staging().await;
                None
            }
            DestinationEffect::DropAll => Some(self.drop_all().await),
            DestinationEffect::Ask => Some(self.ask().await),
            DestinationEffect::Claim => Some(self.claim().await),
            DestinationEffect::Inspect => Some(self.inspect().await?),
        })
    }

    async fn take_places(&mut self) -> Result<DestinationEvent, Setback> {
        let host = Arc::clone(&self.host);
        let reserved = self.timings.measure("reserve", host.reserve(&self.reserve)).await;
        match reserved {
            Ok(reservation) => {
                self.reserved.data_token = reservation.data_token;
                self.reserved.layers_missing = reservation.layers_missing;
                Ok(DestinationEvent::Reserved)
            }
            Err(ReserveError::Failed(error)) => Err(error.into()),
            Err(ReserveError::Refused(error)) => Err(Setback {
                event: DestinationEvent::Refused,
                cause: error.into(),
            }),
        }
    }

    async fn record(&mut self, step: DestinationStep) -> Result<DestinationEvent, Setback> {
        let host = Arc::clone(&self.host);
        let recorded = match step {
            DestinationStep::Resuming => {
                if self.go_at.is_none() {
                    self.go_at = Some(Instant::now());
                    self.note(Phase::Resume);
                }
                self.timings.measure("resuming record", host.record(step)).await
            }
            _ => host.record(step).await,
        };
        let Err(error) = recorded else {
            return Ok(DestinationEvent::Recorded(step));
        };
        let event = DestinationEvent::NotRecorded(step);
        match step {
            DestinationStep::Resuming
            | DestinationStep::Running
            | DestinationStep::TakenOver
            | DestinationStep::GivenBack => self.not_yet(&error),
            DestinationStep::Dropped => {
                tracing::debug!(migration_id = %self.migration, error = %chain(&error), "it cannot be written yet that nothing is left here; this is tried again");
            }
            DestinationStep::Told => self.undo.push(error),
            DestinationStep::Reserved | DestinationStep::Prepared | DestinationStep::Ready => {
                let cause = error.into();
                return Err(Setback { event, cause });
            }
        }
        Ok(event)
    }

    async fn send_message(&mut self, message: Message) -> Result<(), Setback> {
        let body = match message {
            Message::Reserved => Body::Reserved(std::mem::take(&mut self.reserved)),
            Message::Prepared { digest } => Body::Prepared(Prepared {
                digest: digest.to_vec(),
            }),
            Message::Ready => {
                let spans = self.timings.spans().to_vec();
                self.conversation.say(Body::Ready(Ready { spans })).await?;
                self.note(Phase::Commit);
                return Ok(());
            }
            Message::Running => {
                self.tell_running().await;
                return Ok(());
            }
            Message::Failed | Message::GivenBack => {
                self.tell_failed(message == Message::GivenBack).await;
                return Ok(());
            }
            // The source's words.
            Message::Reserve { .. } | Message::Drained { .. } | Message::Go { .. } | Message::Abort => {
                return Ok(());
            }
        };
        Ok(self.conversation.say(body).await?)
    }

    async fn tell_running(&mut self) {
        let running = Running {
            spans: self.resume_spans(),
            go_to_running_us: micros(self.go_to_running),
            go_to_answer_us: self.go_at.map_or(0, |go_at| micros(go_at.elapsed())),
            warnings: self.warnings.clone(),
        };
        if let Err(error) = self.conversation.say(Body::Running(running)).await {
            tracing::warn!(migration_id = %self.migration, error = %chain(&error), "the source was not told; it will ask");
        }
    }

    async fn tell_failed(&mut self, given_back: bool) {
        let failure = self.last_failure();
        let failed = Failed {
            phase: failure.phase.into(),
            error: chain(&failure.cause),
            given_back,
            transient: failure.cause.is_transient(),
        };
        self.failure = Some(failure);
        if let Err(error) = self.conversation.say(Body::Failed(failed)).await {
            tracing::debug!(migration_id = %self.migration, error = %chain(&error), "the source could not be told");
        }
    }

    /// Again, after the tasks that were held ended with a daemon: nothing waits to be told, and nothing else is to be checked.
    async fn restore(&mut self) -> Result<(), StepError> {
        if self.handoff.is_handed_over() {
            self.held = Some(self.host.restore_held().await?);
            return Ok(());
        }
        self.hold().await
    }

    /// Nothing depends on it, so it is not tried for ever.
    async fn drop_staging(&mut self) {
        for left in (0..CLEANINGS).rev() {
            let Err(error) = self.host.drop_staging().await else {
                return;
            };
            tracing::error!(migration_id = %self.migration, error = %chain(&error), left, "staging could not be removed");
            if left > 0 {
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }

    async fn drop_all(&mut self) -> DestinationEvent {
        if let Some(held) = self.held.take() {
            self.undo.extend(held.abandon().await.err());
        }
        match self.host.drop_all().await {
            Ok(()) => DestinationEvent::Dropped,
            Err(error) => {
                tracing::error!(migration_id = %self.migration, error = %chain(&error), "what was received could not be removed; this is tried again");
                DestinationEvent::Failed
            }
        }
    }

    async fn ask(&mut self) -> DestinationEvent {
        // The connection is of no use; a source that still waits there for words that were lost gives up.
        self.conversation.hang_up();
        match self.host.ask_source().await {
            Ok(verdict) => {
                if verdict == Verdict::Abandoned {
                    let words = "its journal says that it did not commit".to_owned();
                    self.failure = Some(self.failure(StepError::Source(words)));
                }
                DestinationEvent::Says(verdict)
            }
            Err(error) => {
                tracing::debug!(migration_id = %self.migration, error = %chain(&error), "the source does not answer");
                DestinationEvent::Silent
            }
        }
    }

    /// The source stays silent.
    async fn claim(&mut self) -> DestinationEvent {
        match self.host.claim().await {
            Ok(verdict) => {
                tracing::warn!(migration_id = %self.migration, ?verdict, "the source does not answer; the arbiter has decided");
                if verdict == Verdict::Abandoned {
                    let words = "the arbiter says that it did not commit".to_owned();
                    self.failure = Some(self.failure(StepError::Source(words)));
                }
                DestinationEvent::Says(verdict)
            }
            Err(error) => {
                tracing::debug!(migration_id = %self.migration, error = %chain(&error), "the arbiter does not answer");
                DestinationEvent::Silent
            }
        }
    }

    async fn inspect(&mut self) -> Result<DestinationEvent, Setback> {
        let inspection = self.host.inspect().await?;
        if inspection == Inspection::Runs {
            // The daemon before may have ended between the release and this.
            let plugged = self.host.plug_network().await;
            self.note_plugged(plugged);
        }
        if inspection == Inspection::MayHaveRun {
            tracing::error!(migration_id = %self.migration, "the container was let run, and has ended");
            self.warnings.push(ENDED.to_owned());
        }
        Ok(DestinationEvent::Inspected(inspection))
    }

    /// Goes on from where the phases have ended, well or not, until the machine has ended.
    pub(super) async fn follow_through(&mut self, mut setback: Option<Setback>) -> DestinationEnd {
        loop {
            if let Some(Setback { event, cause }) = setback.take() {
                if self.handoff.awaits_go() && event != DestinationEvent::Heard(Message::Abort) {
                    tracing::warn!(migration_id = %self.migration, error = %chain(&cause), "in doubt whether the source has committed; asking it");
                }
                self.failure = Some(self.failure(cause));
                setback = self.tell(event).await.err();
            } else if let Some(outcome) = self.handoff.outcome() {
                return self.end(outcome);
            } else if self.handoff.awaits_go() {
                setback = self.hear_go().await.err();
            } else {
                setback = self.go_on().await.err();
            }
        }
    }

    async fn hear_go(&mut self) -> Result<(), Setback> {
        match self.conversation.hear("go", IMAGES).await? {
            Body::Go(go) => {
                let digest = Digest::try_from(go.digest.as_slice()).map_err(|_| StepError::Digest)?;
                let epoch = go.epoch;
                self.tell(DestinationEvent::Heard(Message::Go { epoch, digest }))
                    .await
            }
            other => Err(unexpected("go", &other).into()),
        }
    }

    /// Asks once more, or tries once more what must not be given up.
    async fn go_on(&mut self) -> Result<(), Setback> {
        let before = self.handoff;
        let told = self.tell(DestinationEvent::Again).await;
        if !self.handoff.waits_like(&before) || told.is_err() {
            return told;
        }
        let host = Arc::clone(&self.host);
        tokio::select! {
            () = tokio::time::sleep(ASK_AGAIN) => Ok(()),
            resolution = host.resolved() => {
                tracing::warn!(migration_id = %self.migration, ?resolution, "a person has decided whose the container is");
                self.tell(DestinationEvent::Resolved(resolution)).await
            }
        }
    }

    fn end(&mut self, outcome: DestinationOutcome) -> DestinationEnd {
        match outcome {
            DestinationOutcome::Runs => DestinationEnd::Runs,
            DestinationOutcome::Dropped => DestinationEnd::Dropped {
                failure: self.last_failure(),
                undo: std::mem::take(&mut self.undo),
            },
        }
    }

    /// After the commit nothing is given up.
    fn not_yet(&self, error: &HostError) {
        tracing::error!(migration_id = %self.migration, error = %chain(error), "the container is this host's, but cannot go on yet; this is tried again");
    }

    fn last_failure(&mut self) -> Failure {
        let restarted = || HostError::new("go on", "transhipd was restarted");
        let failure = self.failure.take();
        failure.unwrap_or_else(|| self.failure(restarted().into()))
    }
}
