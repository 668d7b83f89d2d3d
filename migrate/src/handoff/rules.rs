//! What a host answers when it is asked: whether it takes a container in, what its journal says of a handoff, and whether
//! a copy is still its own.

use super::journal::{DestinationStep, SourceStep};

/// What one side's journal says about a handoff that the other is in doubt about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The source has committed.
    Committed,
    /// The source has not committed, and never will.
    Abandoned,
    /// The source is still at it.
    Undecided,
}

/// What a source answers a destination that asks about a migration whose deciding record here is `deciding`
/// ([`SourceStep::deciding`]).
///
/// `active` says whether somebody here may still commit it, or has tried to and does not know whether the record is there.
/// `taking_back` says that a person has decided against the destination, and that this may not be on record yet.
#[must_use]
pub fn verdict(deciding: Option<SourceStep>, active: bool, taking_back: bool) -> Verdict {
    match deciding {
        Some(step) if step.is_committed() && taking_back => Verdict::Undecided,
        Some(step) if step.is_committed() => Verdict::Committed,
        Some(SourceStep::Intent | SourceStep::Freezing) if active => Verdict::Undecided,
        _ => Verdict::Abandoned,
    }
}

/// What the destination says when the source asks whether it has the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DestinationSays {
    /// It runs there.
    Runs,
    /// It is on its way to run.
    Resuming,
    /// It holds the restored container, and the source may commit.
    Ready,
    /// It is still receiving or restoring it.
    Waits,
    /// It has never heard of it, or has dropped it.
    Gone,
    /// It was handed over, has not run there, and never will.
    GivenBack,
}

/// What a destination that has these records of the migration answers a source that asks.
#[must_use]
pub fn destination_says(steps: &[DestinationStep]) -> DestinationSays {
    if steps.contains(&DestinationStep::GivenBack) {
        return DestinationSays::GivenBack;
    }
    match DestinationStep::deciding(steps) {
        Some(DestinationStep::Running) => DestinationSays::Runs,
        Some(DestinationStep::Resuming | DestinationStep::TakenOver) => DestinationSays::Resuming,
        Some(DestinationStep::Ready) => DestinationSays::Ready,
        Some(DestinationStep::Reserved | DestinationStep::Prepared) => DestinationSays::Waits,
        _ => DestinationSays::Gone,
    }
}

/// Whose a person says a container is that two hosts cannot agree about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resolution {
    /// This host's.
    Here,
    /// The other one's.
    There,
}

/// What a host has of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stay {
    /// It is this host's own, or a copy that it has not let go yet.
    Own {
        /// Its epoch.
        epoch: u64,
    },
    /// It is being received.
    Arriving {
        /// The epoch it would have here.
        epoch: u64,
    },
}

/// Why a container is not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is here.
    #[error("it is here already")]
    Here,
    /// Another migration is bringing it here.
    #[error("another migration of it to this host is not at its end")]
    OnItsWay,
    /// This host has seen a later epoch of it.
    #[error("this host has had a later one, of epoch {seen}")]
    OldEpoch {
        /// The latest it has seen.
        seen: u64,
    },
}

/// Whether a host takes in a container that would have `next_epoch` here. `on_its_way` says that another migration of it to
/// this host is not at its end: what is here of the container is that one's. `tombstone` is the epoch under which it went from
/// here, if it was here before.
///
/// # Errors
/// It does not.
pub fn admit(
    here: Option<Stay>,
    on_its_way: bool,
    tombstone: Option<u64>,
    next_epoch: u64,
) -> Result<(), Refusal> {
    match (here, tombstone) {
        _ if on_its_way => Err(Refusal::OnItsWay),
        // What a migration that has ended could not remove may be used again.
        (Some(Stay::Arriving { epoch }), _) if epoch == next_epoch => Ok(()),
        (Some(_), _) => Err(Refusal::Here),
        (None, Some(seen)) if seen >= next_epoch => Err(Refusal::OldEpoch { seen }),
        (None, _) => Ok(()),
    }
}

/// Whether the copy of epoch `own` is what was handed over under `epoch`. If not, the container has come back since.
#[must_use]
pub fn is_handed_over(own: u64, epoch: u64) -> bool {
    own < epoch
}

/// What a host does that learns that a person has decided against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obedience {
    /// Nothing: nothing of the container is here, and it went nowhere else from here.
    Nothing,
    /// It ends what is here.
    End,
    /// The container has gone on from here: it tells the host that took it.
    PassOn,
    /// It cannot say which of the two is older: what is here, or has gone on from here, has an epoch that is not below the owner's.
    /// The owner must have a higher one first, if he is still the owner.
    Later {
        /// The epoch it has here, or had at the next host.
        seen: u64,
    },
}

/// How a host obeys that a person has decided against: the container is another one's under `epoch`. `here` is the epoch of what is
/// here of it; `gone_on` is the one under which it went from here to a host that is not its owner.
#[must_use]
pub fn obedience(here: Option<u64>, gone_on: Option<u64>, epoch: u64) -> Obedience {
    match (here, gone_on) {
        (Some(own), _) if is_handed_over(own, epoch) => Obedience::End,
        (None, Some(next)) if is_handed_over(next, epoch) => Obedience::PassOn,
        (Some(seen), _) | (None, Some(seen)) => Obedience::Later { seen },
        (None, None) => Obedience::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_older_than_the_owners_is_neither_ended_nor_passed_over() {
        assert_eq!(obedience(None, None, 5), Obedience::Nothing);
        assert_eq!(obedience(Some(4), None, 5), Obedience::End);
        assert_eq!(obedience(None, Some(4), 5), Obedience::PassOn);
        for seen in [5, 6] {
            assert_eq!(obedience(Some(seen), None, 5), Obedience::Later { seen });
            assert_eq!(obedience(None, Some(seen), 5), Obedience::Later { seen });
        }
        // What came back counts, not that it was away.
        assert_eq!(obedience(Some(4), Some(6), 5), Obedience::End);
        assert_eq!(obedience(Some(6), Some(4), 5), Obedience::Later { seen: 6 });
    }

    #[test]
    fn a_source_that_is_still_at_it_decides_nothing_yet() {
        assert_eq!(
            verdict(Some(SourceStep::Freezing), true, false),
            Verdict::Undecided
        );
        assert_eq!(
            verdict(Some(SourceStep::Freezing), false, false),
            Verdict::Abandoned
        );
        assert_eq!(
            verdict(Some(SourceStep::Committed), true, false),
            Verdict::Committed
        );
        assert_eq!(
            verdict(Some(SourceStep::RolledBack), true, false),
            Verdict::Abandoned
        );
        assert_eq!(verdict(None, false, false), Verdict::Abandoned);
        assert_eq!(
            verdict(Some(SourceStep::Committed), true, true),
            Verdict::Undecided
        );
        assert_eq!(
            verdict(Some(SourceStep::TakenBack), true, true),
            Verdict::Abandoned
        );
    }

    #[test]
    fn what_is_here_or_was_here_later_is_not_taken_in() {
        let arriving = Some(Stay::Arriving { epoch: 5 });
        assert_eq!(admit(None, false, None, 5), Ok(()));
        assert_eq!(admit(None, false, Some(4), 5), Ok(()));
        assert_eq!(admit(None, false, Some(5), 5), Err(Refusal::OldEpoch { seen: 5 }));
        assert_eq!(
            admit(Some(Stay::Own { epoch: 4 }), false, None, 5),
            Err(Refusal::Here)
        );
        assert_eq!(admit(arriving, false, None, 5), Ok(()));
        assert_eq!(admit(arriving, false, None, 6), Err(Refusal::Here));
        for here in [None, arriving] {
            assert_eq!(admit(here, true, None, 5), Err(Refusal::OnItsWay));
        }
    }

    #[test]
    fn what_was_given_back_stays_so_whatever_is_written_behind_it() {
        use DestinationStep::{Dropped, GivenBack, Ready, Reserved, Resuming, Running, TakenOver, Told};
        for (steps, says) in [
            (&[][..], DestinationSays::Gone),
            (&[Reserved], DestinationSays::Waits),
            (&[Reserved, Ready], DestinationSays::Ready),
            (&[Ready, TakenOver], DestinationSays::Resuming),
            (&[Ready, Resuming], DestinationSays::Resuming),
            (
                &[Ready, TakenOver, Resuming, Running, Told],
                DestinationSays::Runs,
            ),
            (&[Ready, Resuming, GivenBack], DestinationSays::GivenBack),
            (&[Ready, Resuming, GivenBack, Dropped], DestinationSays::GivenBack),
            (&[Ready, Dropped], DestinationSays::Gone),
        ] {
            assert_eq!(destination_says(steps), says, "{steps:?}");
        }
    }

    #[test]
    fn a_container_that_has_come_back_is_not_what_was_handed_over() {
        assert!(is_handed_over(4, 5));
        assert!(!is_handed_over(5, 5) && !is_handed_over(6, 5));
    }
}
