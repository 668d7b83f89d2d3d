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
    /// Given up after the freeze; the container runs here again.
    RolledBack,
}

impl SourceStep {
    /// The step that counts of all that are on record. A `committed` is never outweighed by what was written after
    /// it: that may have been written by somebody who did not know whether it was there.
    #[must_use]
    pub fn deciding(steps: &[Self]) -> Option<Self> {
        [Self::Done, Self::Committed]
            .into_iter()
            .find(|step| steps.contains(step))
            .or_else(|| steps.last().copied())
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
}

impl DestinationStep {
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
        use SourceStep::{Committed, Done, Freezing, Intent, RolledBack};
        for (steps, deciding) in [
            (&[][..], None),
            (&[Intent, Freezing], Some(Freezing)),
            (&[Intent, Freezing, Committed, Freezing], Some(Committed)),
            (&[Intent, Freezing, Committed, Done, Done], Some(Done)),
            (&[Intent, Freezing, Freezing, RolledBack], Some(RolledBack)),
        ] {
            assert_eq!(SourceStep::deciding(steps), deciding, "{steps:?}");
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
            SourceStep::RolledBack,
        ];
        let destination = [
            DestinationStep::Reserved,
            DestinationStep::Prepared,
            DestinationStep::Ready,
            DestinationStep::Resuming,
            DestinationStep::Running,
            DestinationStep::Dropped,
        ];
        assert_eq!(
            serde_json::json!(source),
            serde_json::json!([
                "intent",
                "freezing",
                "committed",
                "done",
                "aborted",
                "rolled_back"
            ])
        );
        assert_eq!(
            serde_json::json!(destination),
            serde_json::json!(["reserved", "prepared", "ready", "resuming", "running", "dropped"])
        );
    }
}
