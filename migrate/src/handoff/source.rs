//! The source's part of the handoff as a machine.
//!
//! ```text
//!   New -> Intending -> Asked -> Reserved -> Marking -> Marked -> Frozen -> Drained -> Prepared -> Committing
//!    |________|__________|_________|___________|_________|_________|__________|__________|             |   \
//!        whatever fails: GivingUp -> Undoing -> Noting -> Ended: it runs here            recorded     |    \ in doubt
//!                                        ^                                                             v     v
//!                                        | decided for this host                                   Handed   Unsure
//!                                        +------------------------------- Abandoning <-------------|--------+
//!                                                                              | decided for the   v
//!                                                                  Mirroring <-+ destination    Asking <-> asks
//!                                                                      +--------------------------^
//!                                                                                                  v
//!                                           Ended: it runs there <- Closing <- Removing <- it runs there
//!                    Undoing <- TakenBack <- TakingBack <- given back, or a person says so
//! ```
//!
//! Up to `Committing` nobody but this host can run the container; behind it nothing undoes the freeze but a journal that
//! certainly holds no commit. A container that may stand still is let run when `giving_up` is on record, and not before.
//!
//! With an arbiter that holds from `Drained` on: the destination may be ready then, and may ask the arbiter for itself. So what
//! fails leads to `Abandoning`: the arbiter is asked to decide for this host, and says what is decided.
//!
//! A host that has rebooted has no tasks left to let run. A destination that is ready has: `Stranded` asks it, and commits then.

use super::journal::SourceStep;
use super::rules::{DestinationSays, Resolution};
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
    /// It is certain now what is decided.
    Decided {
        /// For the destination.
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
    /// A person has decided whose the container is.
    Resolved(Resolution),
    /// Some time has passed.
    Again,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SourceEffect {
    /// Write a step to the journal; comes back as `Recorded`, `NotRecorded` or `InDoubt`.
    Record(SourceStep),
    /// Have the one record written that decides; comes back as [`SourceEffect::Record`] does.
    Commit {
        /// What is handed over; `None` where that is only known to the destination.
        digest: Option<Digest>,
    },
    /// Have it decided for this host, if nothing is decided yet; comes back as `Decided` or `InDoubt`. An arbiter is asked.
    /// Without one this host's journal is read, which only says what is so once something could be written to it.
    Abandon,
    /// Register the container as this host's own under this epoch.
    Own {
        /// Above every one it had.
        epoch: u64,
    },
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
    /// It is being decided for this host, unless it is decided already.
    Abandoning,
    /// It was decided for the destination; `committed` is being written here as well.
    Mirroring,
    /// This host's tasks ended with its kernel: whether the destination is ready is to be seen.
    Stranded,
    /// It is; `committed` is being written.
    Rescuing,
    /// The destination owns the container and was told so.
    Handed,
    /// It owns the container, and its journal says what became of it.
    Asking,
    /// It runs the container; the copy is being removed.
    Removing,
    /// `done` is being written.
    Closing,
    /// `taken_back` is being written.
    TakingBack {
        /// `committed` is certainly on record.
        committed: bool,
    },
    /// It is there: the container is this host's own again.
    TakenBack,
    /// `giving_up` is being written, or is to be once more.
    GivingUp {
        /// It has failed before.
        again: bool,
    },
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
    /// Somebody besides this host may have it decided.
    arbiter: bool,
    /// The tasks ended with the kernel that ran them.
    rebooted: bool,
}

/// What is found of a handoff besides its journal, by a daemon that starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Found {
    /// The epoch that the destination would own.
    pub epoch: u64,
    /// Another migration of the same container has begun here since, which it would not have, had this one not ended; or this one has
    /// been reported as ended: what it did was undone, only the record of that is missing.
    pub superseded: bool,
    /// The handoff is decided by an arbiter.
    pub arbiter: bool,
    /// The host has been started anew since: nothing of the container runs or stands still here.
    pub rebooted: bool,
}

type Effects = Vec<SourceEffect>;

impl Default for SourceHandoff {
    fn default() -> Self {
        Self::under(false)
    }
}

impl SourceHandoff {
    /// A handoff that has not begun. `arbiter` says that an arbiter decides it.
    #[must_use]
    pub fn under(arbiter: bool) -> Self {
        Self {
            epoch: 0,
            stage: Stage::New,
            arbiter,
            rebooted: false,
        }
    }

    /// A handoff that somebody before has begun, of whom nothing is left but the journal, and what to do first.
    #[must_use]
    pub fn recover(found: Found, steps: &[SourceStep]) -> (Self, Effects) {
        let machine = |stage| Self {
            epoch: found.epoch,
            stage,
            arbiter: found.arbiter,
            rebooted: found.rebooted,
        };
        let new = machine(Stage::New);
        match SourceStep::deciding(steps) {
            Some(SourceStep::Committed) => machine(Stage::Asking).none(),
            Some(SourceStep::Done) => machine(Stage::Ended(SourceOutcome::Done)).none(),
            Some(SourceStep::Aborted) => machine(Stage::Ended(SourceOutcome::Aborted)).none(),
            Some(SourceStep::RolledBack) => machine(Stage::Ended(SourceOutcome::RolledBack)).none(),
            Some(SourceStep::Freezing | SourceStep::GivingUp | SourceStep::TakenBack) if found.superseded => {
                new.note(SourceOutcome::RolledBack)
            }
            Some(SourceStep::Intent | SourceStep::Told) | None if found.superseded => {
                new.note(SourceOutcome::Aborted)
            }
            Some(SourceStep::TakenBack) => machine(Stage::TakenBack).own(),
            Some(SourceStep::Freezing) if found.rebooted => machine(Stage::Stranded).then(SourceEffect::Ask),
            Some(SourceStep::Freezing) if found.arbiter => new.abandon(),
            Some(SourceStep::Freezing) => new.record_giving_up(),
            Some(SourceStep::GivingUp) => new.undo(SourceOutcome::RolledBack),
            Some(SourceStep::Intent | SourceStep::Told) | None => new.undo(SourceOutcome::Aborted),
        }
    }

    /// A handoff whose commit was attempted here, in this very daemon, by a role that has ended without knowing more; or one
    /// that was taken up after a start and is not decided yet. What can be read of the journal must not be believed but for a
    /// `committed`, or what is only written behind one, that is there.
    #[must_use]
    pub fn in_doubt(found: Found, steps: &[SourceStep]) -> Self {
        let stage = match SourceStep::deciding(steps) {
            Some(SourceStep::TakenBack) => Stage::TakenBack,
            Some(step) if step.is_committed() => Stage::Asking,
            Some(SourceStep::GivingUp) => Stage::GivingUp { again: true },
            _ if found.rebooted => Stage::Stranded,
            _ => Stage::Unsure,
        };
        Self {
            epoch: found.epoch,
            stage,
            arbiter: found.arbiter,
            rebooted: found.rebooted,
        }
    }

    /// A handoff that a role of this very daemon has ended with `outcome`, but could not undo whole: that once more.
    #[must_use]
    pub fn undo_again(found: Found, steps: &[SourceStep], outcome: SourceOutcome) -> (Self, Effects) {
        match SourceStep::deciding(steps) {
            Some(SourceStep::TakenBack) => Self::recover(found, steps),
            // Whatever a role says, nothing undoes a freeze behind a commit.
            Some(step) if step.is_committed() => Self::in_doubt(found, steps).none(),
            _ => Self {
                epoch: found.epoch,
                stage: Stage::New,
                arbiter: found.arbiter,
                rebooted: found.rebooted,
            }
            .undo(outcome),
        }
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
        self.is_asking()
            || matches!(
                self.stage,
                Stage::Unsure | Stage::Stranded | Stage::TakenBack | Stage::GivingUp { again: true }
            )
    }

    /// Whether the commit is on record, and the destination has not said what became of it.
    #[must_use]
    pub fn is_asking(&self) -> bool {
        self.stage == Stage::Asking
    }

    /// Whether `taken_back` is being written.
    #[must_use]
    pub fn is_taking_back(&self) -> bool {
        matches!(self.stage, Stage::TakingBack { .. })
    }

    /// What comes of an event.
    #[must_use]
    pub fn on(self, event: SourceEvent) -> (Self, Effects) {
        use SourceEvent as E;
        match event {
            E::Failed | E::Lost | E::Overdue | E::Cancelled if self.can_give_up() => self.give_up(),
            E::Failed | E::Lost | E::Overdue if self.stage == Stage::Handed => self.at(Stage::Asking).none(),
            E::Heard(message) => self.heard(message),
            E::Recorded(_) | E::NotRecorded(_) | E::InDoubt(_) | E::Decided { .. } => self.written(event),
            E::Says(says) => self.says(says),
            E::Resolved(resolution) => self.resolved(resolution),
            E::Undone { .. } | E::Removed { .. } | E::Silent | E::Again => self.later(event),
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
                .then(SourceEffect::Commit { digest: Some(digest) }),
            (Stage::Handed | Stage::Asking, Message::Running) => {
                self.at(Stage::Removing).then(SourceEffect::RemoveCopy)
            }
            (Stage::Handed | Stage::Asking, Message::GivenBack) => self.take_back(),
            (Stage::Handed, _) => self.at(Stage::Asking).none(),
            _ if self.can_give_up() => self.give_up(),
            _ => self.none(),
        }
    }

    /// What became of a record.
    fn written(self, event: SourceEvent) -> (Self, Effects) {
        use SourceEvent::{Decided, InDoubt, NotRecorded, Recorded};
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
            (Stage::Committing(_), NotRecorded(SourceStep::Committed)) if self.arbiter => self.abandon(),
            (Stage::Committing(_), NotRecorded(SourceStep::Committed)) => self.undo_all(true),
            (Stage::Abandoning, Decided { committed: true }) => self.mirror(),
            (Stage::Abandoning, Decided { committed: false }) if self.rebooted && !self.arbiter => {
                self.at(Stage::Stranded).none()
            }
            (Stage::Abandoning, Decided { committed: false }) => self.undo_all(true),
            (Stage::Abandoning, _) => self.at(Stage::Unsure).none(),
            (Stage::Mirroring | Stage::Rescuing, Recorded(SourceStep::Committed)) => {
                self.at(Stage::Asking).none()
            }
            // It is decided, but a destination that asks this host's journal would not hear of it.
            (Stage::Mirroring, _) => self.at(Stage::Unsure).none(),
            (Stage::Rescuing, NotRecorded(_)) if self.arbiter => self.abandon(),
            (Stage::Rescuing, NotRecorded(_)) => self.at(Stage::Stranded).none(),
            (Stage::Rescuing, InDoubt(_)) => self.at(Stage::Unsure).none(),
            (Stage::TakingBack { .. }, Recorded(SourceStep::TakenBack)) => self.own(),
            (Stage::TakingBack { committed: true }, _) => self.at(Stage::Asking).none(),
            (Stage::TakingBack { committed: false }, _) => self.at(Stage::Unsure).none(),
            (Stage::Closing, Recorded(SourceStep::Done)) => self.at(Stage::Ended(SourceOutcome::Done)).none(),
            (Stage::Closing, _) => self.at(Stage::Asking).none(),
            (Stage::GivingUp { .. }, Recorded(SourceStep::GivingUp)) => {
                self.undo_and_tell(SourceOutcome::RolledBack)
            }
            // Nothing is let run as long as a power cut could have the destination run what it holds.
            (Stage::GivingUp { again: false }, _) => self.write_giving_up(true),
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
            (Stage::Unsure, SourceEvent::Again) => self.abandon(),
            (Stage::GivingUp { .. }, SourceEvent::Again) => self.write_giving_up(true),
            (Stage::Asking | Stage::Stranded, SourceEvent::Again) => self.then(SourceEffect::Ask),
            (Stage::TakenBack, SourceEvent::Again) => self.own(),
            (Stage::Removing, SourceEvent::Removed { whole: true }) => self
                .at(Stage::Closing)
                .then(SourceEffect::Record(SourceStep::Done)),
            (Stage::Removing, SourceEvent::Removed { whole: false }) => self.at(Stage::Asking).none(),
            _ => self.none(),
        }
    }

    /// What the destination's journal says.
    fn says(self, says: DestinationSays) -> (Self, Effects) {
        use DestinationSays as D;
        match (self.stage, says) {
            (Stage::Asking, D::Runs) => self.at(Stage::Removing).then(SourceEffect::RemoveCopy),
            (Stage::Asking, D::GivenBack) => self.take_back(),
            (Stage::Stranded, D::Ready) => self
                .at(Stage::Rescuing)
                .then(SourceEffect::Commit { digest: None }),
            // Somebody else has decided so.
            (Stage::Stranded, D::Resuming | D::Runs) => self.mirror(),
            (Stage::Stranded, D::Waits | D::Gone | D::GivenBack) if self.arbiter => self.abandon(),
            (Stage::Stranded, D::Waits | D::Gone | D::GivenBack) => self.record_giving_up(),
            _ => self.none(),
        }
    }

    /// A person answers for what cannot be known here.
    fn resolved(self, resolution: Resolution) -> (Self, Effects) {
        match (self.stage, resolution) {
            (Stage::Asking, Resolution::Here) => self.take_back(),
            (Stage::Unsure | Stage::Stranded, Resolution::Here) => self
                .at(Stage::TakingBack { committed: false })
                .then(SourceEffect::Record(SourceStep::TakenBack)),
            (Stage::Asking, Resolution::There) => self.at(Stage::Removing).then(SourceEffect::RemoveCopy),
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
        match self.stage {
            Stage::Drained(_) | Stage::Prepared(_) if self.arbiter => self.abandon(),
            Stage::New
            | Stage::Intending
            | Stage::Asked
            | Stage::Reserved
            | Stage::Marking
            | Stage::Marked => self.undo_all(false),
            _ => self.undo_all(true),
        }
    }

    fn undo_all(self, thaw: bool) -> (Self, Effects) {
        match thaw {
            true => self.record_giving_up(),
            false => self.undo_and_tell(SourceOutcome::Aborted),
        }
    }

    /// The destination may drop what it has.
    fn undo_and_tell(self, outcome: SourceOutcome) -> (Self, Effects) {
        let (machine, mut effects) = self.undo(outcome);
        effects.insert(0, SourceEffect::Send(Message::Abort));
        (machine, effects)
    }

    /// Once the container has run again, what the destination holds must not be run, not even when this host is switched off. An arbiter
    /// has that on record.
    fn record_giving_up(self) -> (Self, Effects) {
        if self.arbiter {
            return self.undo_and_tell(SourceOutcome::RolledBack);
        }
        self.write_giving_up(false)
    }

    fn write_giving_up(self, again: bool) -> (Self, Effects) {
        self.at(Stage::GivingUp { again })
            .then(SourceEffect::Record(SourceStep::GivingUp))
    }

    fn abandon(self) -> (Self, Effects) {
        self.at(Stage::Abandoning).then(SourceEffect::Abandon)
    }

    fn mirror(self) -> (Self, Effects) {
        self.at(Stage::Mirroring)
            .then(SourceEffect::Record(SourceStep::Committed))
    }

    fn take_back(self) -> (Self, Effects) {
        self.at(Stage::TakingBack { committed: true })
            .then(SourceEffect::Record(SourceStep::TakenBack))
    }

    /// Under an epoch that the destination has never had.
    fn own(self) -> (Self, Effects) {
        let epoch = self.epoch + 1;
        let (machine, mut effects) = self.undo(SourceOutcome::RolledBack);
        effects.insert(0, SourceEffect::Own { epoch });
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
mod tests;
