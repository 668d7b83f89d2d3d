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
//! A destination that has an arbiter to ask, and a source that stays silent, asks it (`Claiming`). Where both hosts cannot agree a person
//! may say whose it is: `TakingOver`, `GivingBack`.
//!
//! Up to `Ready` has been said the source cannot have committed. From `Resuming` on nothing is given up: what fails is tried
//! again: a restore or a release that fails is looked into, as after the death of a daemon (`Inspecting`), and where no task was let
//! go it is restored again, some times, and then given back. Once the tasks were released they are never restored again: that they cannot be seen to
//! run does not mean that they never did. The container is this host's then, and has ended.

use super::journal::DestinationStep;
use super::rules::{Resolution, Verdict};
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
    /// The source was asked, or the arbiter, and did not answer.
    Silent,
    /// A person has decided whose the container is.
    Resolved(Resolution),
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
    /// They are gone, and were released: they may have run. What they have written is here, and nowhere else.
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
    /// Register the container as this host's own, under the new epoch; comes back as `Adopted`. It runs, or has ended since.
    Adopt,
    /// Remove what surrounds the running container.
    DropStaging,
    /// End the held tasks, if there are any, and remove everything; comes back as `Dropped`.
    DropAll,
    /// Ask the source's journal; comes back as `Says` or `Silent`.
    Ask,
    /// Have the arbiter decide for this host, if nothing is decided yet; comes back as `Says` or `Silent`.
    Claim,
    /// See what is left of tasks that were about to be released, and end whoever could still release them; comes back as
    /// `Inspected`.
    Inspect,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationOutcome {
    /// The container is this host's. It runs here, unless it has ended since.
    Runs,
    /// Nothing of it is here.
    Dropped,
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
        /// So many times in a row it has not answered.
        silent: u8,
    },
    /// It is silent: the arbiter is asked to decide for this host.
    Claiming {
        /// The tasks are restored and held here.
        held: bool,
    },
    /// A person says that it is this host's: `taken_over` is being written.
    TakingOver {
        /// The tasks are restored and held here.
        held: bool,
    },
    /// It has not run here and never will: `given_back` is being written.
    GivingBack,
    /// It has, and the images are being restored again.
    Bringing,
    /// It has; `resuming` is being written. The tasks are held.
    Resuming,
    /// The tasks are being let go.
    Releasing,
    /// They run, or have run; the container is being registered.
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
    /// Somebody besides the source knows what is decided.
    arbiter: bool,
    /// A person has decided that it is this host's.
    taken_over: bool,
}

/// A source that does not answer so often in a row has had the time to take the container back.
const PATIENCE: u8 = 3;

/// A daemon that starts holds nothing.
const ASKING: Stage = Stage::Asking {
    held: false,
    silent: 0,
};

/// So many may fail: what fails as often will not succeed before a person has looked at it.
const MOST_SETBACKS: u8 = 3;

type Effects = Vec<DestinationEffect>;

impl Default for DestinationHandoff {
    fn default() -> Self {
        Self::under(false)
    }
}

impl DestinationHandoff {
    /// A handoff that has not begun. `arbiter` says that an arbiter decides it.
    #[must_use]
    pub fn under(arbiter: bool) -> Self {
        Self {
            epoch: 0,
            stage: Stage::New,
            setbacks: 0,
            arbiter,
            taken_over: false,
        }
    }

    /// A handoff that somebody before has taken part in, of whom nothing is left but the journal, and what to do first.
    ///
    /// `taken` says that another migration of the same container was let in here and is not at its end. This one was not, then,
    /// and what is here is not its own.
    #[must_use]
    pub fn recover(epoch: u64, steps: &[DestinationStep], taken: bool, arbiter: bool) -> (Self, Effects) {
        use DestinationStep as S;
        let machine = |stage| Self {
            epoch,
            stage,
            setbacks: 0,
            arbiter,
            taken_over: steps.contains(&S::TakenOver),
        };
        let ended = |outcome| machine(Stage::Ended(outcome)).then(DestinationEffect::DropStaging);
        match S::deciding(steps) {
            None | Some(S::Told) if taken => machine(Stage::New).forget(),
            // The source has not heard `ready`; or what was handed over is its own again.
            None | Some(S::Told | S::Reserved | S::Prepared | S::GivenBack) => machine(Stage::New).drop_all(),
            Some(S::Ready) => machine(ASKING).none(),
            Some(S::TakenOver) => machine(Stage::New).bring(),
            Some(S::Resuming) => machine(Stage::Inspecting).then(DestinationEffect::Inspect),
            Some(S::Running) => ended(DestinationOutcome::Runs),
            Some(S::Dropped) => ended(DestinationOutcome::Dropped),
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
            Stage::TakingOver { .. }
                | Stage::Bringing
                | Stage::Resuming
                | Stage::Releasing
                | Stage::Adopting
                | Stage::Closing
        )
    }

    /// Whether nothing has come of what was tried again since `before`, but perhaps that it was tried.
    #[must_use]
    pub fn waits_like(&self, before: &Self) -> bool {
        let asks = |one: &Self| matches!(one.stage, Stage::Asking { .. });
        self == before || (asks(self) && asks(before))
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
            // There is nothing here; that this can be written is not for the source to wait for.
            E::NotRecorded(_) if self.stage == Stage::Forgetting => {
                self.then(DestinationEffect::Send(Message::Failed))
            }
            E::Says(_) | E::Silent | E::Resolved(_) => self.told(event),
            E::Again | E::Inspected(_) => self.later(event),
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
            (Stage::Ready(_), _) => self.ask_from_now_on(),
            _ if self.can_give_up() => self.drop_all(),
            _ => self.none(),
        }
    }

    fn failed(self, event: DestinationEvent) -> (Self, Effects) {
        match self.stage {
            _ if self.can_give_up() => self.drop_all(),
            Stage::Ready(_) => self.ask_from_now_on(),
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
            (Stage::TakingOver { held: true }, DestinationStep::TakenOver) => self.resume(),
            (Stage::TakingOver { held: false }, DestinationStep::TakenOver) => self.bring(),
            (Stage::GivingBack, DestinationStep::GivenBack) => {
                let (machine, mut effects) = self.drop_all();
                effects.insert(0, DestinationEffect::Send(Message::GivenBack));
                (machine, effects)
            }
            (Stage::Forgetting, DestinationStep::Dropped) => self.forgotten(),
            _ => self.none(),
        }
    }

    /// What somebody else says of it.
    fn told(self, event: DestinationEvent) -> (Self, Effects) {
        use DestinationEvent::{Resolved, Says, Silent};
        let (held, before) = match self.stage {
            Stage::Asking { held, silent } => (held, silent),
            Stage::Claiming { held } => (held, PATIENCE),
            _ => return self.none(),
        };
        let asking = |silent| self.at(Stage::Asking { held, silent });
        match event {
            Says(Verdict::Committed) if held => self.resume(),
            Says(Verdict::Committed) => self.bring(),
            Says(Verdict::Abandoned) => self.drop_all(),
            Says(Verdict::Undecided) => asking(0).none(),
            Silent if before == PATIENCE => asking(PATIENCE - 1).none(),
            Silent if self.arbiter && before + 1 == PATIENCE => {
                self.at(Stage::Claiming { held }).then(DestinationEffect::Claim)
            }
            Silent if self.arbiter => asking(before + 1).none(),
            Resolved(Resolution::Here) => self
                .at(Stage::TakingOver { held })
                .then(DestinationEffect::Record(DestinationStep::TakenOver)),
            Resolved(Resolution::There) => self.give_back(),
            _ => self.none(),
        }
    }

    /// What is asked, looked for or tried again.
    fn later(self, event: DestinationEvent) -> (Self, Effects) {
        use DestinationEvent::{Again, Inspected};
        match (self.stage, event) {
            (Stage::Asking { .. }, Again) => self.then(DestinationEffect::Ask),
            // Whether it is on record is not known, so it must be.
            (Stage::TakingOver { .. }, Again) => {
                self.then(DestinationEffect::Record(DestinationStep::TakenOver))
            }
            (Stage::GivingBack, Again) => self.give_back(),
            (Stage::Dropping, Again) => self.then(DestinationEffect::DropAll),
            (Stage::Resuming, Again) => self.resume(),
            (Stage::Adopting, Again) => self.then(DestinationEffect::Adopt),
            (Stage::Inspecting, Again) => self.then(DestinationEffect::Inspect),
            (Stage::Forgetting, Again) => self.forget(),
            (Stage::Closing, Again) => self.then(DestinationEffect::Record(DestinationStep::Running)),
            (Stage::Inspecting, Inspected(Inspection::Runs | Inspection::MayHaveRun)) => {
                self.at(Stage::Adopting).then(DestinationEffect::Adopt)
            }
            (Stage::Inspecting, Inspected(Inspection::WasAdopted)) => self
                .at(Stage::Closing)
                .then(DestinationEffect::Record(DestinationStep::Running)),
            (Stage::Inspecting, Inspected(Inspection::NeverReleased)) if self.setbacks > MOST_SETBACKS => {
                self.give_back()
            }
            // While this host was away a person may have given the container back to the source.
            (Stage::Inspecting, Inspected(Inspection::NeverReleased))
                if self.setbacks == 0 && !self.taken_over =>
            {
                self.at(ASKING).none()
            }
            (Stage::Inspecting, Inspected(Inspection::NeverReleased)) => self.bring(),
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
        self.setbacks += 1;
        self.at(Stage::Inspecting).then(DestinationEffect::Inspect)
    }

    fn give_back(self) -> (Self, Effects) {
        self.at(Stage::GivingBack)
            .then(DestinationEffect::Record(DestinationStep::GivenBack))
    }

    fn ask_from_now_on(self) -> (Self, Effects) {
        let (held, silent) = (true, 0);
        self.at(Stage::Asking { held, silent }).none()
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
mod tests;
