//! The destination's part of the handoff as a machine.
//!
//! ```text
//!   New -> Reserving -> Marking -> Receiving -> Drained -> Preparing -> Restoring -> Holding -> Ready --- go
//!    |________|___________|___________|___________|____________|____________|___________|         |        \
//!               whatever fails: Dropping -> Forgetting -> Ended: nothing is here                  v         v
//!                                  ^---------- it did not commit ---------------------------- Asking    Resuming
//!                                                                                                |          |
//!                      Bringing: restores again, where the tasks ended with a daemon <-----------+--------> v
//!                          |                                                           it committed     Releasing
//!                          +-> Resuming                                                                     |
//!                                                       Ended: it runs here <- Closing <- Adopting <--------+
//! ```
//!
//! Up to `Ready` has been said the source cannot have committed. From `Resuming` on nothing is given up: what fails is tried
//! again: a restore or a release that fails is looked into, as after the death of a daemon (`Inspecting`), and where no task was let
//! go it is restored again, some times. Once the tasks were released they are never restored again: that they cannot be seen to
//! run does not mean that they never did.

use super::journal::DestinationStep;
use super::rules::Verdict;
use super::{Digest, Message};

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEvent {
    /// The source has said something.
    Heard(Message),
    /// Name, address and space are taken.
    Reserved,
    /// The container was not let in: what is here of it belongs to somebody else.
    Refused,
    /// Everything has arrived and was verified.
    AllArrived {
        /// What it adds up to.
        digest: Digest,
    },
    /// The tasks are restored and held.
    Held,
    /// The record is on stable storage.
    Recorded(DestinationStep),
    /// The record is not there, or may not be.
    NotRecorded(DestinationStep),
    /// The tasks run.
    Released,
    /// The container is this host's own.
    Adopted,
    /// What was received is gone.
    Dropped,
    /// What is left of a container that was about to run.
    Inspected(Inspection),
    /// Something that this host had to do failed, or the source said what was not due.
    Failed,
    /// The connection is gone.
    Lost,
    /// Nothing came in time.
    Overdue,
    /// The source was asked, and this is its answer.
    Says(Verdict),
    /// The source was asked, and did not answer.
    Silent,
    /// Some time has passed.
    Again,
}

/// What a daemon finds of tasks that were about to be released when the one before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Inspection {
    /// They run.
    Runs,
    /// The container was registered as this host's own. It may have gone on to another since.
    WasAdopted,
    /// They are gone, and were certainly never released.
    NeverReleased,
    /// They are gone, and were released: they may have run.
    MayHaveRun,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationEffect {
    /// Take name, address and space, unless [`admit`](super::admit) refuses; comes back as `Reserved` or `Refused`.
    Reserve,
    /// Write a step to the journal; comes back as `Recorded` or `NotRecorded`.
    Record(DestinationStep),
    /// Say something to the source, if the connection is still there.
    Send(Message),
    /// Restore everything and hold it before a task runs; comes back as `Held`.
    Restore,
    /// Leave a mark that outlives the daemon, then let the tasks run; comes back as `Released` when they do. Done once in the
    /// life of a restore.
    Release,
    /// Register the running container as this host's own, under the new epoch; comes back as `Adopted`.
    Adopt,
    /// Remove what surrounds the running container.
    DropStaging,
    /// End the held tasks, if there are any, and remove everything; comes back as `Dropped`.
    DropAll,
    /// Ask the source's journal; comes back as `Says` or `Silent`.
    Ask,
    /// See what is left of tasks that were about to be released, and end whoever could still release them; comes back as
    /// `Inspected`.
    Inspect,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationOutcome {
    /// The container runs here.
    Runs,
    /// Nothing of it is here.
    Dropped,
    /// It was handed over and does not run here, as far as can be seen. Nothing more is done by this daemon.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Nothing was done.
    New,
    /// Name, address and space are being taken.
    Reserving,
    /// `reserved` is being written.
    Marking,
    /// What the source sends is being received.
    Receiving,
    /// The source has sent everything, and says that it adds up to this.
    Drained(Digest),
    /// It has arrived; `prepared` is being written.
    Preparing(Digest),
    /// It is being restored.
    Restoring(Digest),
    /// It is held; `ready` is being written.
    Holding(Digest),
    /// The source may commit from now on.
    Ready(Digest),
    /// It may have committed: only its journal knows.
    Asking {
        /// The tasks are restored and held here.
        held: bool,
    },
    /// It has, and the images are being restored again.
    Bringing,
    /// It has; `resuming` is being written. The tasks are held.
    Resuming,
    /// The tasks are being let go.
    Releasing,
    /// They run; the container is being registered.
    Adopting,
    /// `running` is being written.
    Closing,
    /// It was about to be released when the daemon before ended, or that failed.
    Inspecting,
    /// Everything is being removed.
    Dropping,
    /// `dropped` is being written.
    Forgetting,
    /// Nothing more to do.
    Ended(DestinationOutcome),
}

/// The destination's part in one handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DestinationHandoff {
    epoch: u64,
    stage: Stage,
    /// Restores and releases that failed behind the commit.
    setbacks: u8,
}

/// So many may fail: what fails as often will not succeed before a person has looked at it.
const MOST_SETBACKS: u8 = 3;

type Effects = Vec<DestinationEffect>;

impl Default for DestinationHandoff {
    fn default() -> Self {
        Self {
            epoch: 0,
            stage: Stage::New,
            setbacks: 0,
        }
    }
}

impl DestinationHandoff {
    /// A handoff that somebody before has taken part in, of whom nothing is left but the journal, whose newest step is
    /// `newest`, and what to do first.
    ///
    /// `taken` says that another migration of the same container was let in here and is not at its end. This one was not, then,
    /// and what is here is not its own.
    #[must_use]
    pub fn recover(epoch: u64, newest: Option<DestinationStep>, taken: bool) -> (Self, Effects) {
        let machine = |stage| Self {
            epoch,
            stage,
            setbacks: 0,
        };
        let ended = |outcome| machine(Stage::Ended(outcome)).then(DestinationEffect::DropStaging);
        match newest {
            None if taken => machine(Stage::New).forget(),
            // The source has not heard `ready`.
            None | Some(DestinationStep::Reserved | DestinationStep::Prepared) => {
                machine(Stage::New).drop_all()
            }
            Some(DestinationStep::Ready) => machine(Stage::Asking { held: false }).none(),
            Some(DestinationStep::Resuming) => machine(Stage::Inspecting).then(DestinationEffect::Inspect),
            Some(DestinationStep::Running) => ended(DestinationOutcome::Runs),
            Some(DestinationStep::Dropped) => ended(DestinationOutcome::Dropped),
        }
    }

    /// How it ended; `None` while it goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<DestinationOutcome> {
        match self.stage {
            Stage::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Whether the source was told `ready`, and has not answered yet.
    #[must_use]
    pub fn awaits_go(&self) -> bool {
        matches!(self.stage, Stage::Ready(_))
    }

    /// Whether the source has certainly committed, and the container is to run here, whatever fails.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        matches!(
            self.stage,
            Stage::Bringing | Stage::Resuming | Stage::Releasing | Stage::Adopting | Stage::Closing
        )
    }

    /// What comes of an event.
    #[must_use]
    pub fn on(self, event: DestinationEvent) -> (Self, Effects) {
        use DestinationEvent as E;
        match event {
            E::Heard(message) => self.heard(message),
            E::Failed | E::Lost | E::Overdue => self.failed(event),
            E::Recorded(step) => self.recorded(step),
            E::NotRecorded(_) if self.can_give_up() => self.drop_all(),
            E::NotRecorded(_) if self.stage == Stage::Forgetting => self.forgotten(),
            E::Says(_) | E::Silent | E::Again | E::Inspected(_) => self.later(event),
            _ => self.done(event),
        }
    }

    fn heard(mut self, message: Message) -> (Self, Effects) {
        match (self.stage, message) {
            (Stage::New, Message::Reserve { epoch }) => {
                self.epoch = epoch;
                self.at(Stage::Reserving).then(DestinationEffect::Reserve)
            }
            (Stage::Receiving, Message::Drained { digest }) => self.at(Stage::Drained(digest)).none(),
            (Stage::Ready(held), Message::Go { epoch, digest }) if epoch == self.epoch && digest == held => {
                self.resume()
            }
            // It says so only when it can never commit any more.
            (Stage::Ready(_), Message::Abort) => self.drop_all(),
            (Stage::Ready(_), _) => self.at(Stage::Asking { held: true }).none(),
            _ if self.can_give_up() => self.drop_all(),
            _ => self.none(),
        }
    }

    fn failed(self, event: DestinationEvent) -> (Self, Effects) {
        match self.stage {
            _ if self.can_give_up() => self.drop_all(),
            Stage::Ready(_) => self.at(Stage::Asking { held: true }).none(),
            Stage::Bringing | Stage::Releasing if event == DestinationEvent::Failed => self.set_back(),
            _ => self.none(),
        }
    }

    /// What this host has done.
    fn done(self, event: DestinationEvent) -> (Self, Effects) {
        use DestinationEvent as E;
        match (self.stage, event) {
            (Stage::Reserving, E::Reserved) => self
                .at(Stage::Marking)
                .then(DestinationEffect::Record(DestinationStep::Reserved)),
            (Stage::Drained(said), E::AllArrived { digest }) if said == digest => self
                .at(Stage::Preparing(digest))
                .then(DestinationEffect::Record(DestinationStep::Prepared)),
            (Stage::Drained(_), E::AllArrived { .. }) => self.drop_all(),
            (Stage::Restoring(digest), E::Held) => self
                .at(Stage::Holding(digest))
                .then(DestinationEffect::Record(DestinationStep::Ready)),
            (Stage::Bringing, E::Held) => self.resume(),
            (Stage::Releasing, E::Released) => self.at(Stage::Adopting).then(DestinationEffect::Adopt),
            (Stage::Adopting, E::Adopted) => self
                .at(Stage::Closing)
                .then(DestinationEffect::Record(DestinationStep::Running)),
            (Stage::Reserving, E::Refused) | (Stage::Dropping, E::Dropped) => self.forget(),
            _ => self.none(),
        }
    }

    fn recorded(self, step: DestinationStep) -> (Self, Effects) {
        match (self.stage, step) {
            (Stage::Marking, DestinationStep::Reserved) => self
                .at(Stage::Receiving)
                .then(DestinationEffect::Send(Message::Reserved)),
            (Stage::Preparing(digest), DestinationStep::Prepared) => {
                let said = DestinationEffect::Send(Message::Prepared { digest });
                (
                    self.at(Stage::Restoring(digest)),
                    vec![said, DestinationEffect::Restore],
                )
            }
            (Stage::Holding(digest), DestinationStep::Ready) => self
                .at(Stage::Ready(digest))
                .then(DestinationEffect::Send(Message::Ready)),
            (Stage::Resuming, DestinationStep::Resuming) => {
                self.at(Stage::Releasing).then(DestinationEffect::Release)
            }
            (Stage::Closing, DestinationStep::Running) => {
                let said = DestinationEffect::Send(Message::Running);
                let machine = self.at(Stage::Ended(DestinationOutcome::Runs));
                (machine, vec![said, DestinationEffect::DropStaging])
            }
            (Stage::Forgetting, DestinationStep::Dropped) => self.forgotten(),
            _ => self.none(),
        }
    }

    /// What is asked, looked for or tried again.
    fn later(self, event: DestinationEvent) -> (Self, Effects) {
        use DestinationEvent::{Again, Inspected, Says};
        match (self.stage, event) {
            (Stage::Asking { .. }, Again) => self.then(DestinationEffect::Ask),
            (Stage::Asking { held: true }, Says(Verdict::Committed)) => self.resume(),
            (Stage::Asking { held: false }, Says(Verdict::Committed)) => self.bring(),
            (Stage::Asking { .. }, Says(Verdict::Abandoned)) => self.drop_all(),
            (Stage::Dropping, Again) => self.then(DestinationEffect::DropAll),
            (Stage::Resuming, Again) => self.resume(),
            (Stage::Adopting, Again) => self.then(DestinationEffect::Adopt),
            (Stage::Inspecting, Again) => self.then(DestinationEffect::Inspect),
            (Stage::Closing, Again) => self.then(DestinationEffect::Record(DestinationStep::Running)),
            (Stage::Inspecting, Inspected(Inspection::Runs)) => {
                self.at(Stage::Adopting).then(DestinationEffect::Adopt)
            }
            (Stage::Inspecting, Inspected(Inspection::WasAdopted)) => self
                .at(Stage::Closing)
                .then(DestinationEffect::Record(DestinationStep::Running)),
            (Stage::Inspecting, Inspected(Inspection::NeverReleased)) => self.bring(),
            (Stage::Inspecting, Inspected(Inspection::MayHaveRun)) => self.lost(),
            _ => self.none(),
        }
    }

    /// As long as the source has not heard `ready` it cannot have committed.
    fn can_give_up(&self) -> bool {
        matches!(
            self.stage,
            Stage::New
                | Stage::Reserving
                | Stage::Marking
                | Stage::Receiving
                | Stage::Drained(_)
                | Stage::Preparing(_)
                | Stage::Restoring(_)
                | Stage::Holding(_)
        )
    }

    /// The record comes before the tasks run.
    fn resume(self) -> (Self, Effects) {
        self.at(Stage::Resuming)
            .then(DestinationEffect::Record(DestinationStep::Resuming))
    }

    fn bring(self) -> (Self, Effects) {
        self.at(Stage::Bringing).then(DestinationEffect::Restore)
    }

    /// Whether a task has run is to be seen.
    fn set_back(mut self) -> (Self, Effects) {
        if self.setbacks == MOST_SETBACKS {
            return self.lost();
        }
        self.setbacks += 1;
        self.at(Stage::Inspecting).then(DestinationEffect::Inspect)
    }

    fn lost(self) -> (Self, Effects) {
        self.at(Stage::Ended(DestinationOutcome::Lost))
            .then(DestinationEffect::Send(Message::Failed))
    }

    fn drop_all(self) -> (Self, Effects) {
        self.at(Stage::Dropping).then(DestinationEffect::DropAll)
    }

    fn forget(self) -> (Self, Effects) {
        self.at(Stage::Forgetting)
            .then(DestinationEffect::Record(DestinationStep::Dropped))
    }

    fn forgotten(self) -> (Self, Effects) {
        self.at(Stage::Ended(DestinationOutcome::Dropped))
            .then(DestinationEffect::Send(Message::Failed))
    }

    fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    fn then(self, effect: DestinationEffect) -> (Self, Effects) {
        (self, vec![effect])
    }

    fn none(self) -> (Self, Effects) {
        (self, Vec::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: Digest = [7; 32];

    const TO_READY: [DestinationEvent; 8] = [
        DestinationEvent::Heard(Message::Reserve { epoch: 4 }),
        DestinationEvent::Reserved,
        DestinationEvent::Recorded(DestinationStep::Reserved),
        DestinationEvent::Heard(Message::Drained { digest: DIGEST }),
        DestinationEvent::AllArrived { digest: DIGEST },
        DestinationEvent::Recorded(DestinationStep::Prepared),
        DestinationEvent::Held,
        DestinationEvent::Recorded(DestinationStep::Ready),
    ];
    const GIVEN_UP: [DestinationEffect; 1] = [DestinationEffect::Send(Message::Failed)];
    const GO: DestinationEvent = DestinationEvent::Heard(Message::Go {
        epoch: 4,
        digest: DIGEST,
    });

    fn after(events: &[DestinationEvent]) -> (DestinationHandoff, Effects) {
        let begin = (DestinationHandoff::default(), Vec::new());
        events
            .iter()
            .fold(begin, |(machine, _), event| machine.on(*event))
    }

    #[test]
    fn the_way_without_failures_runs_the_container_behind_its_record() {
        let mut events = TO_READY.to_vec();
        assert_eq!(after(&events).1, [DestinationEffect::Send(Message::Ready)]);
        events.push(GO);
        let resuming = DestinationEffect::Record(DestinationStep::Resuming);
        assert_eq!(after(&events).1, [resuming]);
        events.push(DestinationEvent::Recorded(DestinationStep::Resuming));
        assert_eq!(after(&events).1, [DestinationEffect::Release]);
        events.extend([DestinationEvent::Released, DestinationEvent::Adopted]);
        events.push(DestinationEvent::Recorded(DestinationStep::Running));
        assert_eq!(after(&events).0.outcome(), Some(DestinationOutcome::Runs));
    }

    #[test]
    fn whatever_fails_before_ready_drops_everything_and_after_it_asks() {
        let endings = [
            DestinationEvent::Failed,
            DestinationEvent::Lost,
            DestinationEvent::Overdue,
        ];
        for told in 0..TO_READY.len() {
            for ending in endings {
                let (_, effects) = after(&TO_READY[..told]).0.on(ending);
                assert_eq!(
                    effects,
                    [DestinationEffect::DropAll],
                    "{told} events, then {ending:?}"
                );
            }
        }
        let other = Message::Go {
            epoch: 5,
            digest: DIGEST,
        };
        for doubt in endings.into_iter().chain([DestinationEvent::Heard(other)]) {
            let (asking, effects) = after(&TO_READY).0.on(doubt);
            assert_eq!((asking.stage, effects), (Stage::Asking { held: true }, vec![]));
            let (same, effects) = asking.on(DestinationEvent::Says(Verdict::Undecided));
            assert!(same == asking && effects.is_empty());
            let (_, effects) = asking.on(DestinationEvent::Says(Verdict::Abandoned));
            assert_eq!(effects, [DestinationEffect::DropAll]);
        }
    }

    #[test]
    fn another_checkpoint_than_the_one_that_was_sent_is_dropped() {
        let mut events = TO_READY[..4].to_vec();
        events.push(DestinationEvent::AllArrived { digest: [8; 32] });
        assert_eq!(after(&events).1, [DestinationEffect::DropAll]);
    }

    #[test]
    fn after_the_commit_nothing_is_given_up() {
        let mut events = TO_READY.to_vec();
        events.push(GO);
        let (resuming, _) = after(&events);
        let unwritten = DestinationEvent::NotRecorded(DestinationStep::Resuming);
        for event in [DestinationEvent::Lost, DestinationEvent::Failed, unwritten] {
            let (same, effects) = resuming.on(event);
            assert!(same == resuming && effects.is_empty(), "{event:?}");
        }
        let again = resuming.on(DestinationEvent::Again).1;
        assert_eq!(again, [DestinationEffect::Record(DestinationStep::Resuming)]);
    }

    #[test]
    fn what_was_released_is_never_restored_again() {
        use DestinationStep::{Prepared, Ready, Reserved, Resuming};
        let found = |newest| DestinationHandoff::recover(4, newest, false);
        for newest in [None, Some(Reserved), Some(Prepared)] {
            assert_eq!(found(newest).1, [DestinationEffect::DropAll]);
        }
        let (asking, _) = found(Some(Ready));
        let (_, effects) = asking.on(DestinationEvent::Says(Verdict::Committed));
        assert_eq!(effects, [DestinationEffect::Restore]);
        let (inspecting, effects) = found(Some(Resuming));
        assert_eq!(effects, [DestinationEffect::Inspect]);
        let inspected = |what| inspecting.on(DestinationEvent::Inspected(what));
        assert_eq!(
            inspected(Inspection::NeverReleased).1,
            [DestinationEffect::Restore]
        );
        assert_eq!(inspected(Inspection::Runs).1, [DestinationEffect::Adopt]);
        let (lost, effects) = inspected(Inspection::MayHaveRun);
        assert_eq!(
            (lost.outcome(), effects),
            (Some(DestinationOutcome::Lost), GIVEN_UP.to_vec())
        );
    }

    #[test]
    fn what_could_not_be_dropped_is_dropped_again() {
        let (dropping, _) = DestinationHandoff::recover(4, Some(DestinationStep::Prepared), false);
        let (same, effects) = dropping.on(DestinationEvent::Failed);
        assert!(same == dropping && effects.is_empty());
        let (_, effects) = dropping.on(DestinationEvent::Again);
        assert_eq!(effects, [DestinationEffect::DropAll]);
    }

    #[test]
    fn what_was_not_released_is_restored_again_some_times() {
        let mut events = TO_READY.to_vec();
        events.extend([GO, DestinationEvent::Recorded(DestinationStep::Resuming)]);
        let (mut machine, effects) = after(&events);
        assert_eq!(effects, [DestinationEffect::Release]);
        for _ in 0..MOST_SETBACKS {
            let (inspecting, effects) = machine.on(DestinationEvent::Failed);
            assert_eq!(effects, [DestinationEffect::Inspect]);
            let (bringing, effects) = inspecting.on(DestinationEvent::Inspected(Inspection::NeverReleased));
            assert_eq!(effects, [DestinationEffect::Restore]);
            machine = bringing;
        }
        let (lost, effects) = machine.on(DestinationEvent::Failed);
        assert_eq!(
            (lost.outcome(), effects),
            (Some(DestinationOutcome::Lost), GIVEN_UP.to_vec())
        );
    }
}
