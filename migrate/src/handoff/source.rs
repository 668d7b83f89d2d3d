//! The source's part of the handoff as a machine.
//!
//! ```text
//!   New -> Intending -> Asked -> Reserved -> Marking -> Marked -> Frozen -> Drained -> Prepared -> Committing
//!    |________|__________|_________|___________|_________|_________|__________|__________|             |   \
//!                     whatever fails: Undoing -> Noting -> Ended: it runs here            recorded     |    \ in doubt
//!                                        ^                                                             v     v
//!                                        | it is not there                                         Handed   Unsure
//!                                        +--------------------- Reading <- Settling <--------------|--------+
//!                                                                  | it is there                   v
//!                                                                  +--------------------------> Asking <-> asks
//!                                                                                                  v
//!                                           Ended: it runs there <- Closing <- Removing <- it runs there
//! ```
//!
//! Up to `Committing` nobody but this host can run the container; behind it nothing undoes the freeze but a journal that
//! certainly holds no commit.

use super::journal::SourceStep;
use super::rules::DestinationSays;
use super::{Digest, Message};

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// The container is to go to a destination, where it would have this epoch.
    Begin {
        /// The container's epoch here, plus one.
        epoch: u64,
    },
    /// Little enough is left: the container is to stand still.
    Freeze,
    /// From here on the container may be frozen and off its network.
    StandsStill,
    /// Everything of the container that stands still was sent.
    AllSent {
        /// What it adds up to.
        digest: Digest,
    },
    /// The destination has said something.
    Heard(Message),
    /// The record is on stable storage.
    Recorded(SourceStep),
    /// The record is certainly not there.
    NotRecorded(SourceStep),
    /// The record may be there or not.
    InDoubt(SourceStep),
    /// What the journal holds. Only true when it was read after something could be written.
    Read {
        /// Whether `committed` is on record.
        committed: bool,
    },
    /// Something that this host had to do failed, or the destination said what was not due.
    Failed,
    /// The connection is gone.
    Lost,
    /// Nothing came in time.
    Overdue,
    /// A person wants it to stop.
    Cancelled,
    /// What was done was undone, but for what failed.
    Undone {
        /// Nothing failed.
        whole: bool,
    },
    /// The copy was removed, but for what failed.
    Removed {
        /// Nothing failed.
        whole: bool,
    },
    /// The destination was asked, and this is its answer.
    Says(DestinationSays),
    /// The destination was asked, and did not answer.
    Silent,
    /// Some time has passed.
    Again,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEffect {
    /// Write a step to the journal; comes back as `Recorded`, `NotRecorded` or `InDoubt`.
    Record(SourceStep),
    /// Write the one record that decides; comes back as [`SourceEffect::Record`] does.
    Commit {
        /// What is handed over.
        digest: Digest,
    },
    /// Read the journal; comes back as `Read`.
    Read,
    /// Say something to the destination, if the connection is still there.
    Send(Message),
    /// Give the container back what it had, and remove what was made for it; comes back as `Undone`.
    Undo {
        /// It may be frozen and off its network: first the network, then the freezer.
        thaw: bool,
    },
    /// Ask the destination's journal; comes back as `Says` or `Silent`.
    Ask,
    /// End the frozen copy without letting it run, remove what belongs to it, leave a tombstone; comes back as `Removed`.
    RemoveCopy,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceOutcome {
    /// The destination runs the container.
    Done,
    /// The container was not touched.
    Aborted,
    /// The container runs here again, unless something could not be undone.
    RolledBack,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// Nothing was done.
    New,
    /// `intent` is being written.
    Intending,
    /// The destination was asked to reserve.
    Asked,
    /// It has; the container runs.
    Reserved,
    /// `freezing` is being written.
    Marking,
    /// It is there; the container still runs.
    Marked,
    /// The container may stand still.
    Frozen,
    /// Everything was sent.
    Drained(Digest),
    /// Everything has arrived.
    Prepared(Digest),
    /// `committed` is being written.
    Committing(Digest),
    /// It may be there or not.
    Unsure,
    /// Another record is being written: when that is there, the journal can be believed.
    Settling,
    /// The journal is being read.
    Reading,
    /// The destination owns the container and was told so.
    Handed,
    /// It owns the container, and its journal says what became of it.
    Asking,
    /// It runs the container; the copy is being removed.
    Removing,
    /// `done` is being written.
    Closing,
    /// What was done is being undone.
    Undoing(SourceOutcome),
    /// That is being written.
    Noting(SourceOutcome),
    /// Nothing more to do.
    Ended(SourceOutcome),
}

/// The source's part in one handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceHandoff {
    epoch: u64,
    stage: Stage,
}

type Effects = Vec<SourceEffect>;

impl Default for SourceHandoff {
    fn default() -> Self {
        Self {
            epoch: 0,
            stage: Stage::New,
        }
    }
}

impl SourceHandoff {
    /// A handoff that somebody before has begun, of whom nothing is left but the journal, and what to do first.
    ///
    /// `superseded` says that another migration of the same container has begun here since. It would not have, had this one
    /// not ended: what it did was undone, only the record of that is missing.
    #[must_use]
    pub fn recover(epoch: u64, steps: &[SourceStep], superseded: bool) -> (Self, Effects) {
        let machine = |stage| Self { epoch, stage };
        match SourceStep::deciding(steps) {
            Some(SourceStep::Committed) => machine(Stage::Asking).none(),
            Some(SourceStep::Done) => machine(Stage::Ended(SourceOutcome::Done)).none(),
            Some(SourceStep::Aborted) => machine(Stage::Ended(SourceOutcome::Aborted)).none(),
            Some(SourceStep::RolledBack) => machine(Stage::Ended(SourceOutcome::RolledBack)).none(),
            Some(SourceStep::Freezing) if superseded => machine(Stage::New).note(SourceOutcome::RolledBack),
            Some(SourceStep::Intent) | None if superseded => machine(Stage::New).note(SourceOutcome::Aborted),
            Some(SourceStep::Freezing) => machine(Stage::New).undo(SourceOutcome::RolledBack),
            Some(SourceStep::Intent) | None => machine(Stage::New).undo(SourceOutcome::Aborted),
        }
    }

    /// A handoff whose commit was attempted here, in this very daemon, by a role that has ended without knowing more. What
    /// can be read of the journal must not be believed but for a `committed` that is there.
    #[must_use]
    pub fn in_doubt(epoch: u64, steps: &[SourceStep]) -> Self {
        let stage = match SourceStep::deciding(steps) {
            Some(step) if step.is_committed() => Stage::Asking,
            _ => Stage::Unsure,
        };
        Self { epoch, stage }
    }

    /// How it ended; `None` while it goes on.
    #[must_use]
    pub fn outcome(&self) -> Option<SourceOutcome> {
        match self.stage {
            Stage::Ended(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Whether the destination was told to go, and has not answered yet.
    #[must_use]
    pub fn awaits_running(&self) -> bool {
        self.stage == Stage::Handed
    }

    /// Whether it goes on with [`SourceEvent::Again`].
    #[must_use]
    pub fn awaits_time(&self) -> bool {
        self.is_asking() || self.stage == Stage::Unsure
    }

    /// Whether the commit is on record, and the destination has not said what became of it.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.stage == Stage::Asking
    }

    /// What comes of an event.
    #[must_use]
    pub fn on(self, event: SourceEvent) -> (Self, Effects) {
        use SourceEvent as E;
        match event {
            E::Failed | E::Lost | E::Overdue | E::Cancelled if self.can_give_up() => self.give_up(),
            E::Failed | E::Lost | E::Overdue if self.stage == Stage::Handed => self.at(Stage::Asking).none(),
            E::Heard(message) => self.heard(message),
            E::Recorded(_) | E::NotRecorded(_) | E::InDoubt(_) | E::Read { .. } => self.written(event),
            E::Undone { .. } | E::Removed { .. } | E::Says(_) | E::Silent | E::Again => self.later(event),
            _ => self.begun(event),
        }
    }

    /// What this host does on the way to the commit.
    fn begun(mut self, event: SourceEvent) -> (Self, Effects) {
        match (self.stage, event) {
            (Stage::New, SourceEvent::Begin { epoch }) => {
                self.epoch = epoch;
                self.at(Stage::Intending)
                    .then(SourceEffect::Record(SourceStep::Intent))
            }
            (Stage::Reserved, SourceEvent::Freeze) => self
                .at(Stage::Marking)
                .then(SourceEffect::Record(SourceStep::Freezing)),
            (Stage::Marked, SourceEvent::StandsStill) => self.at(Stage::Frozen).none(),
            (Stage::Frozen, SourceEvent::AllSent { digest }) => self
                .at(Stage::Drained(digest))
                .then(SourceEffect::Send(Message::Drained { digest })),
            _ => self.none(),
        }
    }

    fn heard(self, message: Message) -> (Self, Effects) {
        match (self.stage, message) {
            (Stage::Asked, Message::Reserved) => self.at(Stage::Reserved).none(),
            (Stage::Drained(sent), Message::Prepared { digest }) if digest == sent => {
                self.at(Stage::Prepared(sent)).none()
            }
            // The point of no return is the record.
            (Stage::Prepared(digest), Message::Ready) => self
                .at(Stage::Committing(digest))
                .then(SourceEffect::Commit { digest }),
            (Stage::Handed | Stage::Asking, Message::Running) => {
                self.at(Stage::Removing).then(SourceEffect::RemoveCopy)
            }
            (Stage::Handed, _) => self.at(Stage::Asking).none(),
            _ if self.can_give_up() => self.give_up(),
            _ => self.none(),
        }
    }

    /// What became of a record.
    fn written(self, event: SourceEvent) -> (Self, Effects) {
        use SourceEvent::{InDoubt, NotRecorded, Read, Recorded};
        match (self.stage, event) {
            (Stage::Intending, Recorded(SourceStep::Intent)) => {
                let epoch = self.epoch;
                self.at(Stage::Asked)
                    .then(SourceEffect::Send(Message::Reserve { epoch }))
            }
            (Stage::Marking, Recorded(SourceStep::Freezing)) => self.at(Stage::Marked).none(),
            (Stage::Committing(digest), Recorded(SourceStep::Committed)) => {
                // The destination owns the container now. Nothing from here on lets the copy run.
                let epoch = self.epoch;
                self.at(Stage::Handed)
                    .then(SourceEffect::Send(Message::Go { epoch, digest }))
            }
            (Stage::Committing(_), InDoubt(SourceStep::Committed)) => self.at(Stage::Unsure).none(),
            (Stage::Committing(_), NotRecorded(SourceStep::Committed)) => self.give_up(),
            (Stage::Settling, Recorded(SourceStep::Freezing)) => {
                self.at(Stage::Reading).then(SourceEffect::Read)
            }
            (Stage::Settling, NotRecorded(_) | InDoubt(_)) => self.at(Stage::Unsure).none(),
            (Stage::Reading, Read { committed: true }) => self.at(Stage::Asking).none(),
            (Stage::Reading, Read { committed: false }) => self.give_up(),
            (Stage::Closing, Recorded(SourceStep::Done)) => self.at(Stage::Ended(SourceOutcome::Done)).none(),
            (Stage::Closing, _) => self.at(Stage::Asking).none(),
            // It is undone. Without the record it is undone once more, which changes nothing.
            (Stage::Noting(outcome), _) => self.at(Stage::Ended(outcome)).none(),
            (_, NotRecorded(_) | InDoubt(_)) if self.can_give_up() => self.give_up(),
            _ => self.none(),
        }
    }

    /// What comes after the decision, whichever it was.
    fn later(self, event: SourceEvent) -> (Self, Effects) {
        match (self.stage, event) {
            (Stage::Undoing(outcome), SourceEvent::Undone { whole: true }) => self.note(outcome),
            // The record says what there still is to undo.
            (Stage::Undoing(outcome), SourceEvent::Undone { whole: false }) => {
                self.at(Stage::Ended(outcome)).none()
            }
            (Stage::Unsure, SourceEvent::Again) => self
                .at(Stage::Settling)
                .then(SourceEffect::Record(SourceStep::Freezing)),
            (Stage::Asking, SourceEvent::Again) => self.then(SourceEffect::Ask),
            (Stage::Asking, SourceEvent::Says(DestinationSays::Runs)) => {
                self.at(Stage::Removing).then(SourceEffect::RemoveCopy)
            }
            (Stage::Removing, SourceEvent::Removed { whole: true }) => self
                .at(Stage::Closing)
                .then(SourceEffect::Record(SourceStep::Done)),
            (Stage::Removing, SourceEvent::Removed { whole: false }) => self.at(Stage::Asking).none(),
            _ => self.none(),
        }
    }

    /// Up to the record nobody but this host can run the container, so it may take everything back.
    fn can_give_up(&self) -> bool {
        matches!(
            self.stage,
            Stage::New
                | Stage::Intending
                | Stage::Asked
                | Stage::Reserved
                | Stage::Marking
                | Stage::Marked
                | Stage::Frozen
                | Stage::Drained(_)
                | Stage::Prepared(_)
        )
    }

    fn give_up(self) -> (Self, Effects) {
        let untouched = matches!(
            self.stage,
            Stage::New | Stage::Intending | Stage::Asked | Stage::Reserved | Stage::Marking | Stage::Marked
        );
        let (machine, mut effects) = self.undo(match untouched {
            true => SourceOutcome::Aborted,
            false => SourceOutcome::RolledBack,
        });
        effects.insert(0, SourceEffect::Send(Message::Abort));
        (machine, effects)
    }

    fn undo(self, outcome: SourceOutcome) -> (Self, Effects) {
        let thaw = outcome == SourceOutcome::RolledBack;
        self.at(Stage::Undoing(outcome)).then(SourceEffect::Undo { thaw })
    }

    fn note(self, outcome: SourceOutcome) -> (Self, Effects) {
        let step = match outcome {
            SourceOutcome::Done => SourceStep::Done,
            SourceOutcome::Aborted => SourceStep::Aborted,
            SourceOutcome::RolledBack => SourceStep::RolledBack,
        };
        self.at(Stage::Noting(outcome)).then(SourceEffect::Record(step))
    }

    fn at(self, stage: Stage) -> Self {
        Self { stage, ..self }
    }

    fn then(self, effect: SourceEffect) -> (Self, Effects) {
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

    fn way_to_commit() -> Vec<SourceEvent> {
        vec![
            SourceEvent::Begin { epoch: 4 },
            SourceEvent::Recorded(SourceStep::Intent),
            SourceEvent::Heard(Message::Reserved),
            SourceEvent::Freeze,
            SourceEvent::Recorded(SourceStep::Freezing),
            SourceEvent::StandsStill,
            SourceEvent::AllSent { digest: DIGEST },
            SourceEvent::Heard(Message::Prepared { digest: DIGEST }),
            SourceEvent::Heard(Message::Ready),
        ]
    }

    fn after(events: &[SourceEvent]) -> (SourceHandoff, Effects) {
        let begin = (SourceHandoff::default(), Vec::new());
        events
            .iter()
            .fold(begin, |(machine, _), event| machine.on(*event))
    }

    #[test]
    fn the_way_without_failures_commits_and_removes_the_copy() {
        let mut events = way_to_commit();
        let (_, effects) = after(&events);
        assert_eq!(effects, [SourceEffect::Commit { digest: DIGEST }]);
        events.push(SourceEvent::Recorded(SourceStep::Committed));
        let go = Message::Go {
            epoch: 4,
            digest: DIGEST,
        };
        assert_eq!(after(&events).1, [SourceEffect::Send(go)]);
        events.push(SourceEvent::Heard(Message::Running));
        assert_eq!(after(&events).1, [SourceEffect::RemoveCopy]);
        events.push(SourceEvent::Removed { whole: true });
        events.push(SourceEvent::Recorded(SourceStep::Done));
        assert_eq!(after(&events).0.outcome(), Some(SourceOutcome::Done));
    }

    #[test]
    fn whatever_ends_it_before_the_commit_undoes_it_and_nothing_after_does() {
        let mut events = way_to_commit();
        events.push(SourceEvent::Recorded(SourceStep::Committed));
        let endings = [
            SourceEvent::Failed,
            SourceEvent::Lost,
            SourceEvent::Overdue,
            SourceEvent::Cancelled,
            SourceEvent::Heard(Message::Failed),
        ];
        for told in 0..=events.len() {
            for ending in endings {
                let (_, effects) = after(&events[..told]).0.on(ending);
                let undone = effects
                    .iter()
                    .any(|effect| matches!(effect, SourceEffect::Undo { .. }));
                assert_eq!(
                    undone,
                    told < way_to_commit().len(),
                    "{told} events, then {ending:?}"
                );
                let thaw = effects.contains(&SourceEffect::Undo { thaw: true });
                assert_eq!(thaw, undone && told >= 6, "{told} events, then {ending:?}");
            }
        }
    }

    #[test]
    fn a_commit_nobody_knows_of_is_only_judged_by_a_journal_that_can_be_written() {
        let mut events = way_to_commit();
        events.push(SourceEvent::InDoubt(SourceStep::Committed));
        let (unsure, effects) = after(&events);
        assert!(effects.is_empty() && unsure.awaits_time());
        let (settling, effects) = unsure.on(SourceEvent::Again);
        assert_eq!(effects, [SourceEffect::Record(SourceStep::Freezing)]);
        assert_eq!(settling.on(SourceEvent::InDoubt(SourceStep::Freezing)).0, unsure);
        let (reading, effects) = settling.on(SourceEvent::Recorded(SourceStep::Freezing));
        assert_eq!(effects, [SourceEffect::Read]);
        let (asking, effects) = reading.on(SourceEvent::Read { committed: true });
        assert!(asking.is_asking() && effects.is_empty());
        let (_, effects) = reading.on(SourceEvent::Read { committed: false });
        assert!(effects.contains(&SourceEffect::Undo { thaw: true }));
    }

    #[test]
    fn what_is_found_after_a_crash_is_undone_up_to_the_commit_and_finished_after_it() {
        use SourceStep::{Committed, Done, Freezing, Intent, RolledBack};
        let found = |steps: &[SourceStep], superseded| SourceHandoff::recover(4, steps, superseded);
        assert_eq!(found(&[], false).1, [SourceEffect::Undo { thaw: false }]);
        assert_eq!(found(&[Intent], false).1, [SourceEffect::Undo { thaw: false }]);
        assert_eq!(
            found(&[Intent, Freezing], false).1,
            [SourceEffect::Undo { thaw: true }]
        );
        assert_eq!(
            found(&[Intent, Freezing], true).1,
            [SourceEffect::Record(RolledBack)]
        );
        for steps in [
            &[Intent, Freezing, Committed][..],
            &[Intent, Freezing, Committed, Freezing],
        ] {
            let (machine, effects) = found(steps, true);
            assert!(machine.is_asking() && effects.is_empty());
        }
        assert_eq!(
            found(&[Intent, Committed, Done], false).0.outcome(),
            Some(SourceOutcome::Done)
        );
    }
}
