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
#[must_use]
pub fn verdict(deciding: Option<SourceStep>, active: bool) -> Verdict {
    match deciding {
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
    /// It holds the restored container and waits.
    Waits,
    /// It has never heard of it, or has dropped it.
    Gone,
}

/// What a destination whose newest record of the migration is `newest` answers a source that asks.
#[must_use]
pub fn destination_says(newest: Option<DestinationStep>) -> DestinationSays {
    match newest {
        Some(DestinationStep::Running) => DestinationSays::Runs,
        Some(DestinationStep::Resuming) => DestinationSays::Resuming,
        Some(DestinationStep::Reserved | DestinationStep::Prepared | DestinationStep::Ready) => {
            DestinationSays::Waits
        }
        Some(DestinationStep::Dropped) | None => DestinationSays::Gone,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_is_still_at_it_decides_nothing_yet() {
        assert_eq!(verdict(Some(SourceStep::Freezing), true), Verdict::Undecided);
        assert_eq!(verdict(Some(SourceStep::Freezing), false), Verdict::Abandoned);
        assert_eq!(verdict(Some(SourceStep::Committed), true), Verdict::Committed);
        assert_eq!(verdict(Some(SourceStep::RolledBack), true), Verdict::Abandoned);
        assert_eq!(verdict(None, false), Verdict::Abandoned);
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
    fn a_container_that_has_come_back_is_not_what_was_handed_over() {
        assert!(is_handed_over(4, 5));
        assert!(!is_handed_over(5, 5) && !is_handed_over(6, 5));
    }
}
