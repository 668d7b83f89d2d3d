//! The journal's steps: what each role writes down before it goes on.

use serde::{Deserialize, Serialize};

/// A step in the source's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
    /// About to be let run again: this host will not commit any more, and what the destination holds is not the newest state.
    GivingUp,
    /// Given up after the freeze; the container runs here again.
    RolledBack,
    /// What was handed over is this host's again, under an epoch of its own: the destination has given it back without having
    /// run it, or a person has decided so.
    TakenBack,
    /// The destination has been told that this host has taken the container back, and obeys.
    Told,
}

impl SourceStep {
    /// The step that counts of all that are on record. A `committed` is only outweighed by what was written by somebody who
    /// knew of it: anything else behind it may come from somebody who did not know whether it was there.
    #[must_use]
    pub fn deciding(steps: &[Self]) -> Option<Self> {
        let ended = steps.contains(&Self::TakenBack) && steps.contains(&Self::RolledBack);
        [Self::Done, Self::TakenBack, Self::Committed]
            .into_iter()
            .find(|step| steps.contains(step))
            .map(|step| match step {
                Self::TakenBack if ended => Self::RolledBack,
                step => step,
            })
            .or_else(|| steps.iter().rfind(|step| **step != Self::Told).copied())
    }

    /// Whether this host does nothing more about the migration, unless a person's decision is still to be told.
    #[must_use]
    pub fn is_last(self) -> bool {
        matches!(self, Self::Done | Self::Aborted | Self::RolledBack)
    }

    /// Whether nobody asks about the migration any more, nor does anything: the destination is through, or nothing of what it may still
    /// have is of use to it, which is also what it reads from a journal that does not know the migration.
    #[must_use]
    pub fn is_over(steps: &[Self]) -> bool {
        match Self::deciding(steps) {
            None | Some(Self::Done | Self::Aborted) => true,
            Some(Self::RolledBack) => !steps.contains(&Self::TakenBack) || steps.contains(&Self::Told),
            _ => false,
        }
    }

    /// Whether the destination owns the container.
    #[must_use]
    pub fn is_committed(self) -> bool {
        matches!(self, Self::Committed | Self::Done)
    }
}

/// A step in the destination's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationStep {
    /// Names, address and space are taken; staging exists.
    Reserved,
    /// Everything has arrived and was verified.
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
    /// A person has decided that the container is this host's, whatever the source's journal says.
    TakenOver,
    /// What was handed over is the source's again: it has not run here, and never will.
    GivenBack,
    /// The source has been told that this host has taken the container over, and obeys.
    Told,
}

impl DestinationStep {
    /// The step that counts of all that are on record: the newest of those that say where the container is.
    #[must_use]
    pub fn deciding(steps: &[Self]) -> Option<Self> {
        steps.iter().rfind(|step| **step != Self::Told).copied()
    }

    /// Whether this host does nothing more about the migration. The source may still ask how it ended.
    #[must_use]
    pub fn is_over(steps: &[Self]) -> bool {
        let has_told = !steps.contains(&Self::TakenOver) || steps.contains(&Self::Told);
        has_told && Self::deciding(steps).is_none_or(Self::is_last)
    }

    /// Whether nothing more will be done about the migration.
    #[must_use]
    pub fn is_last(self) -> bool {
        matches!(self, Self::Running | Self::Dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_not_outweighed_by_what_comes_after_it() {
        use SourceStep::{Committed, Done, Freezing, Intent, RolledBack, TakenBack, Told};
        for (steps, deciding) in [
            (&[][..], None),
            (&[Intent, Freezing], Some(Freezing)),
            (&[Intent, Freezing, Committed, Freezing], Some(Committed)),
            (&[Intent, Freezing, Committed, Done, Done], Some(Done)),
            (&[Intent, Freezing, Freezing, RolledBack], Some(RolledBack)),
            (
                &[Intent, Freezing, Committed, TakenBack, Freezing],
                Some(TakenBack),
            ),
            (
                &[Intent, Committed, TakenBack, RolledBack, Told],
                Some(RolledBack),
            ),
            (&[Intent, Committed, TakenBack, Done], Some(Done)),
            (&[Freezing, TakenBack, Told], Some(TakenBack)),
        ] {
            assert_eq!(SourceStep::deciding(steps), deciding, "{steps:?}");
        }
    }

    #[test]
    fn a_migration_is_over_when_nothing_of_it_is_left_to_be_asked_or_told() {
        use SourceStep::{Aborted, Committed, Done, Freezing, GivingUp, Intent, RolledBack, TakenBack, Told};
        for (steps, over) in [
            (&[][..], true),
            (&[Intent], false),
            (&[Intent, Aborted], true),
            (&[Intent, Freezing, GivingUp], false),
            (&[Intent, Freezing, GivingUp, RolledBack], true),
            (&[Intent, Freezing, Committed], false),
            // What came of a write that failed, and of the commit before it.
            (&[Intent, Freezing, Committed, RolledBack], false),
            (&[Intent, Freezing, Committed, Done], true),
            (&[Intent, Freezing, Committed, TakenBack, RolledBack], false),
            (&[Intent, Freezing, Committed, TakenBack, RolledBack, Told], true),
        ] {
            assert_eq!(SourceStep::is_over(steps), over, "{steps:?}");
        }
        use DestinationStep::{Dropped, GivenBack, Ready, Reserved, Resuming, Running, TakenOver};
        for (steps, over) in [
            (&[][..], true),
            (&[Reserved, Ready], false),
            (&[Reserved, Dropped], true),
            (&[Reserved, Ready, Resuming, Running], true),
            (&[Reserved, Ready, GivenBack], false),
            (&[Reserved, Ready, GivenBack, Dropped], true),
            (&[Reserved, Ready, TakenOver, Resuming, Running], false),
            (
                &[Reserved, Ready, TakenOver, DestinationStep::Told, Running],
                true,
            ),
        ] {
            assert_eq!(DestinationStep::is_over(steps), over, "{steps:?}");
        }
    }

    #[test]
    fn steps_are_stored_under_these_words() {
        let source = [
            SourceStep::Intent,
            SourceStep::Freezing,
            SourceStep::Committed,
            SourceStep::Done,
            SourceStep::Aborted,
            SourceStep::GivingUp,
            SourceStep::RolledBack,
            SourceStep::TakenBack,
            SourceStep::Told,
        ];
        let destination = [
            DestinationStep::Reserved,
            DestinationStep::Prepared,
            DestinationStep::Ready,
            DestinationStep::Resuming,
            DestinationStep::Running,
            DestinationStep::Dropped,
            DestinationStep::TakenOver,
            DestinationStep::GivenBack,
            DestinationStep::Told,
        ];
        assert_eq!(
            serde_json::json!(source),
            serde_json::json!([
                "intent",
                "freezing",
                "committed",
                "done",
                "aborted",
                "giving_up",
                "rolled_back",
                "taken_back",
                "told"
            ])
        );
        assert_eq!(
            serde_json::json!(destination),
            serde_json::json!([
                "reserved",
                "prepared",
                "ready",
                "resuming",
                "running",
                "dropped",
                "taken_over",
                "given_back",
                "told"
            ])
        );
    }
}
