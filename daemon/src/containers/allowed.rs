//! Which verb is allowed in which state: a table, no I/O.

use tranship_proto::v1::ContainerState;

use super::error::ContainerError;
use crate::registry::ContainerRecord;

/// What a user or a migration does to a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Ask it to end, then make it.
    Stop,
    /// Send it a signal.
    Kill,
    /// Stand still.
    Pause,
    /// Go on.
    Unpause,
    /// Run another program in it.
    Exec,
    /// Read what it wrote.
    Logs,
    /// Wait for its end.
    Wait,
    /// Remove it once it has ended.
    Remove,
    /// Remove it whether it runs or not.
    RemoveForced,
    /// Hand it to another host.
    Migrate,
}

/// What a verb finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Go ahead.
    Do,
    /// It is so already: nothing to do, no error.
    Already,
    /// Not now.
    Refuse(&'static str),
}

impl Verb {
    /// The word for messages.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Kill => "send a signal to",
            Self::Pause => "pause",
            Self::Unpause => "unpause",
            Self::Exec => "run a program in",
            Self::Logs => "read the log of",
            Self::Wait => "wait for",
            Self::Remove | Self::RemoveForced => "remove",
            Self::Migrate => "migrate",
        }
    }

    /// What this verb finds in that state.
    #[must_use]
    pub fn in_state(self, state: ContainerState) -> Answer {
        use ContainerState as S;
        match (self, state) {
            (Self::Logs | Self::Wait, _) => Answer::Do,
            // A migrating container can be looked into and talked to, but belongs to the migration.
            (Self::Exec, S::Running | S::Migrating) => Answer::Do,
            (_, S::Migrating) => Answer::Refuse("; wait for it, or cancel it with `tranship migrate cancel`"),
            (_, S::Receiving) => Answer::Refuse("; the migration decides what becomes of it"),
            (_, S::InDoubt) => Answer::Refuse("; see `tranship migrate status` for what is known"),

            (Self::Stop | Self::Kill, S::Running | S::Paused) => Answer::Do,
            (Self::Stop, S::Exited | S::Created) => Answer::Already,
            (Self::Pause | Self::Migrate, S::Running) => Answer::Do,
            (Self::Unpause, S::Paused) => Answer::Do,
            (Self::Exec | Self::Migrate, S::Paused) => Answer::Refuse("; unpause it first"),

            (Self::Remove | Self::RemoveForced, S::Exited | S::Created) => Answer::Do,
            (Self::RemoveForced, S::Running | S::Paused) => Answer::Do,
            (Self::Remove, S::Running | S::Paused) => Answer::Refuse("; stop it first, or force the removal"),
            _ => Answer::Refuse(""),
        }
    }

    /// The verb's answer for a container; a refusal as an error.
    ///
    /// # Errors
    /// [`ContainerError::State`].
    pub fn check(self, record: &ContainerRecord) -> Result<Answer, ContainerError> {
        match self.in_state(record.state) {
            Answer::Refuse(advice) => Err(ContainerError::State {
                verb: self.word(),
                name: record.name.to_string(),
                state: record.state,
                advice,
            }),
            answer => Ok(answer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [ContainerState; 8] = [
        ContainerState::Created,
        ContainerState::Running,
        ContainerState::Paused,
        ContainerState::Exited,
        ContainerState::Migrating,
        ContainerState::Receiving,
        ContainerState::Moved,
        ContainerState::InDoubt,
    ];
    const VERBS: [Verb; 8] = [
        Verb::Stop,
        Verb::Kill,
        Verb::Pause,
        Verb::Unpause,
        Verb::Exec,
        Verb::Remove,
        Verb::RemoveForced,
        Verb::Migrate,
    ];

    #[test]
    fn nothing_changes_a_container_that_belongs_to_a_migration() {
        for state in [
            ContainerState::Migrating,
            ContainerState::Receiving,
            ContainerState::InDoubt,
        ] {
            for verb in VERBS {
                let may = verb == Verb::Exec && state == ContainerState::Migrating;
                assert_eq!(verb.in_state(state) == Answer::Do, may, "{verb:?} {state:?}");
            }
        }
    }

    #[test]
    fn only_a_running_container_migrates_and_only_force_removes_one() {
        let may = |verb: Verb| {
            STATES
                .into_iter()
                .filter(move |state| verb.in_state(*state) == Answer::Do)
        };
        assert_eq!(may(Verb::Migrate).collect::<Vec<_>>(), [ContainerState::Running]);
        assert!(!may(Verb::Remove).any(|state| state == ContainerState::Running));
        assert!(may(Verb::RemoveForced).any(|state| state == ContainerState::Running));
        assert_eq!(Verb::Stop.in_state(ContainerState::Exited), Answer::Already);
    }
}
