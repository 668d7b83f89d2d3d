//! The ownership change: the journal's steps, and what each means to a daemon that finds it after a crash.
//!
//! ```text
//! source:       intent -> freezing -> COMMITTED -> done          destination:  reserved -> prepared -> ready -> resuming -> running
//!                 |          |                                                    |           |          |
//!                 v          v                                                    v           v          v
//!               aborted   rolled back                                          dropped     dropped    in doubt: ask the source
//! ```
//!
//! There is one durable record that decides, `committed` at the source. Before it only the source may run the
//! container; after it only the destination may. A destination that is ready and has not heard does not know which,
//! and must not guess: it asks.

use serde::{Deserialize, Serialize};

/// A step in the source's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceStep {
    /// The destination and the epoch it would own are on record; nothing has been asked of it.
    Intent,
    /// The container is about to be frozen and cut off its network.
    Freezing,
    /// The destination owns the container. The one commit point.
    Committed,
    /// The destination runs it, and the copy here is gone.
    Done,
    /// Given up before anything was frozen.
    Aborted,
    /// Given up after the freeze; the container runs here again.
    RolledBack,
}

/// What a source must do about a migration it finds in its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceRecovery {
    /// It has ended.
    Nothing,
    /// Tell the destination to forget it; the container was never touched.
    Abort,
    /// Give the container its network back, thaw it, tell the destination to forget it.
    RollBack,
    /// Keep the copy frozen, make sure that the destination runs the container, then remove the copy.
    Complete,
}

/// The rule for a source whose newest journal record of a migration is `newest`.
#[must_use]
pub fn recover_source(newest: SourceStep) -> SourceRecovery {
    match newest {
        SourceStep::Intent => SourceRecovery::Abort,
        SourceStep::Freezing => SourceRecovery::RollBack,
        SourceStep::Committed => SourceRecovery::Complete,
        SourceStep::Done | SourceStep::Aborted | SourceStep::RolledBack => SourceRecovery::Nothing,
    }
}

/// A step in the destination's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationStep {
    /// Names, address and space are taken; staging exists.
    Reserved,
    /// Everything has arrived, was verified and is on stable storage.
    Prepared,
    /// CRIU holds the restored tasks; the source has been told or is about to be.
    Ready,
    /// The source has committed; the tasks are about to run. After this the images are only restored again where it is
    /// certain that no task has run.
    Resuming,
    /// The container runs here.
    Running,
    /// Forgotten; nothing of it is left here.
    Dropped,
}

/// What a destination must do about a migration it finds in its journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationRecovery {
    /// It has ended.
    Nothing,
    /// The source cannot have committed: remove everything.
    Drop,
    /// The source may have committed: ask it, and restore again from the prepared images if it has.
    AskSource,
    /// It was resumed, or was about to be: see whether its tasks run, and restore it again only where it is certain that
    /// none ever has.
    Inspect,
}

/// The rule for a destination whose newest journal record of a migration is `newest`.
#[must_use]
pub fn recover_destination(newest: DestinationStep) -> DestinationRecovery {
    match newest {
        DestinationStep::Reserved | DestinationStep::Prepared => DestinationRecovery::Drop,
        DestinationStep::Ready => DestinationRecovery::AskSource,
        DestinationStep::Resuming => DestinationRecovery::Inspect,
        DestinationStep::Running | DestinationStep::Dropped => DestinationRecovery::Nothing,
    }
}

/// What one side's journal says about a handoff that the other is in doubt about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The source has committed.
    Committed,
    /// The source has not committed, and never will.
    Abandoned,
    /// The source is still at it.
    Undecided,
}

/// What a source answers a destination that asks about a migration whose newest record here is `newest`.
///
/// `active` says whether the role that may still commit is running in this daemon.
#[must_use]
pub fn verdict(newest: Option<SourceStep>, active: bool) -> Verdict {
    match newest {
        Some(SourceStep::Committed | SourceStep::Done) => Verdict::Committed,
        Some(SourceStep::Intent | SourceStep::Freezing) if active => Verdict::Undecided,
        Some(SourceStep::Aborted | SourceStep::RolledBack | SourceStep::Intent | SourceStep::Freezing)
        | None => Verdict::Abandoned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: [SourceStep; 6] = [
        SourceStep::Intent,
        SourceStep::Freezing,
        SourceStep::Committed,
        SourceStep::Done,
        SourceStep::Aborted,
        SourceStep::RolledBack,
    ];
    const DESTINATION: [DestinationStep; 6] = [
        DestinationStep::Reserved,
        DestinationStep::Prepared,
        DestinationStep::Ready,
        DestinationStep::Resuming,
        DestinationStep::Running,
        DestinationStep::Dropped,
    ];

    #[test]
    fn whatever_was_recorded_when_both_crashed_one_side_ends_up_with_the_container() {
        for source in SOURCE {
            for destination in DESTINATION {
                let here = recover_source(source);
                let runs_at_source = match here {
                    SourceRecovery::Abort | SourceRecovery::RollBack => true,
                    SourceRecovery::Complete => false,
                    SourceRecovery::Nothing => source != SourceStep::Done,
                };
                let possible = source < SourceStep::Committed
                    || source > SourceStep::Done
                    || destination >= DestinationStep::Ready && destination != DestinationStep::Dropped;
                let resumed = matches!(destination, DestinationStep::Resuming | DestinationStep::Running);
                let committed = matches!(source, SourceStep::Committed | SourceStep::Done);
                if !possible || (resumed && !committed) {
                    continue;
                }
                let runs_at_destination = match recover_destination(destination) {
                    DestinationRecovery::Nothing => destination == DestinationStep::Running,
                    DestinationRecovery::Drop => false,
                    DestinationRecovery::AskSource => verdict(Some(source), false) == Verdict::Committed,
                    DestinationRecovery::Inspect => true,
                };
                assert_ne!(
                    runs_at_source, runs_at_destination,
                    "source {source:?}, destination {destination:?}"
                );
            }
        }
    }

    #[test]
    fn a_source_that_is_still_at_it_decides_nothing_yet() {
        assert_eq!(verdict(Some(SourceStep::Freezing), true), Verdict::Undecided);
        assert_eq!(verdict(Some(SourceStep::Committed), true), Verdict::Committed);
        assert_eq!(verdict(None, false), Verdict::Abandoned);
    }

    #[test]
    fn steps_are_stored_under_these_words() {
        let words: Vec<String> = SOURCE.iter().map(|step| format!("{step:?}")).collect();
        assert_eq!(
            words,
            ["Intent", "Freezing", "Committed", "Done", "Aborted", "RolledBack"]
        );
    }
}
