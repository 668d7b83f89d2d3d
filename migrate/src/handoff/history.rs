//! What the journals of both hosts may say together. The machines write them; whoever finds one that they cannot have written has found
//! that somebody did something else than they said.
//!
//! The model checks this in every world that it looks at, tests check it in the journals of real hosts.

use super::journal::{DestinationStep, SourceStep};

/// The journals of one handoff.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// At the source, in order.
    pub source: &'a [SourceStep],
    /// At the destination, in order.
    pub destination: &'a [DestinationStep],
    /// Somebody besides the source has a record that decides.
    pub arbiter: bool,
    /// A person may have decided, who needs no record of the other host's.
    pub person: bool,
}

/// Who has the container when nothing more is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// It has never gone, or is back.
    Source,
    /// It runs there.
    Destination,
}

/// What two journals cannot say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// A step is there without another one before it.
    #[error("`{step}` is on record without `{missing}` before it")]
    Without {
        /// What is there.
        step: String,
        /// What had to be before.
        missing: String,
    },
    /// A step is there behind another one.
    #[error("`{step}` is on record behind `{before}`")]
    Behind {
        /// What is there.
        step: String,
        /// What nothing of the kind comes behind.
        before: String,
    },
    /// A step of one host is there without one of the other.
    #[error("one host has `{step}` on record, the other one no `{missing}`")]
    Alone {
        /// What is there.
        step: String,
        /// What the other one had to have written before.
        missing: String,
    },
}

impl History<'_> {
    /// Whether the machines can have written this, at any moment of a handoff.
    ///
    /// # Errors
    /// They cannot.
    pub fn check(&self) -> Result<(), Contradiction> {
        self.check_source()?;
        self.check_destination()?;
        self.check_both()
    }

    /// Who has the container, where both journals are at their ends and agree.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        use DestinationStep::{Dropped, Running};
        let there = self
            .destination
            .iter()
            .rfind(|step| **step != DestinationStep::Told);
        match (SourceStep::deciding(self.source)?, there) {
            (SourceStep::Done, Some(Running)) => Some(Owner::Destination),
            (SourceStep::Aborted | SourceStep::RolledBack, None | Some(Dropped)) => Some(Owner::Source),
            _ => None,
        }
    }

    fn check_source(&self) -> Result<(), Contradiction> {
        use SourceStep::{Committed, Done, Freezing, GivingUp, Intent, RolledBack, TakenBack, Told};
        let steps = self.source;
        for (step, missing) in [
            (Freezing, Intent),
            (Committed, Freezing),
            (GivingUp, Freezing),
            (RolledBack, Freezing),
            (TakenBack, Freezing),
            (Done, Committed),
            (Told, TakenBack),
        ] {
            follows(steps, step, missing)?;
        }
        // What a source says it does not commit it never commits, and what it has committed only a record takes back.
        never_behind(steps, Committed, GivingUp)?;
        never_behind(steps, GivingUp, Committed)?;
        if !steps.contains(&TakenBack) {
            never_behind(steps, RolledBack, Committed)?;
            never_behind(steps, Committed, RolledBack)?;
        }
        Ok(())
    }

    fn check_destination(&self) -> Result<(), Contradiction> {
        use DestinationStep::{Dropped, GivenBack, Prepared, Ready, Reserved, Resuming, Running, TakenOver};
        let steps = self.destination;
        for (step, missing) in [
            (Prepared, Reserved),
            (Ready, Prepared),
            (Resuming, Ready),
            (TakenOver, Ready),
            (GivenBack, Ready),
            (Running, Resuming),
        ] {
            follows(steps, step, missing)?;
        }
        for (step, before) in [
            (Ready, Dropped),
            (Resuming, Dropped),
            (Running, Dropped),
            (Resuming, GivenBack),
            (Running, GivenBack),
            (GivenBack, Running),
        ] {
            never_behind(steps, step, before)?;
        }
        if !self.person {
            never_behind(steps, Dropped, Running)?;
        }
        Ok(())
    }

    fn check_both(&self) -> Result<(), Contradiction> {
        use DestinationStep::{GivenBack, Ready, Resuming, Running, TakenOver};
        use SourceStep::{Committed, Done, TakenBack};
        let (source, destination) = (self.source, self.destination);
        let alone = |step: &dyn std::fmt::Debug, missing: &dyn std::fmt::Debug| Contradiction::Alone {
            step: format!("{step:?}"),
            missing: format!("{missing:?}"),
        };
        let decided = source.contains(&Committed) || destination.contains(&TakenOver);
        if destination.contains(&Resuming) && !decided && !self.arbiter {
            return Err(alone(&Resuming, &Committed));
        }
        if source.contains(&Committed) && !destination.contains(&Ready) {
            return Err(alone(&Committed, &Ready));
        }
        if self.person {
            return Ok(());
        }
        if source.contains(&Done) && !destination.contains(&Running) {
            return Err(alone(&Done, &Running));
        }
        if source.contains(&TakenBack) && !destination.contains(&GivenBack) {
            return Err(alone(&TakenBack, &GivenBack));
        }
        Ok(())
    }
}

/// Every `step` has a `missing` somewhere before it.
fn follows<S: PartialEq + std::fmt::Debug>(steps: &[S], step: S, missing: S) -> Result<(), Contradiction> {
    let first = |wanted: &S| steps.iter().position(|one| one == wanted);
    match (first(&step), first(&missing)) {
        (Some(at), Some(before)) if before < at => Ok(()),
        (None, _) => Ok(()),
        _ => Err(Contradiction::Without {
            step: format!("{step:?}"),
            missing: format!("{missing:?}"),
        }),
    }
}

/// No `step` has a `before` somewhere before it.
fn never_behind<S: PartialEq + std::fmt::Debug>(
    steps: &[S],
    step: S,
    before: S,
) -> Result<(), Contradiction> {
    let last = steps.iter().rposition(|one| *one == step);
    let first = steps.iter().position(|one| *one == before);
    match (last, first) {
        (Some(at), Some(before_it)) if before_it < at => Err(Contradiction::Behind {
            step: format!("{step:?}"),
            before: format!("{before:?}"),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(source: &[SourceStep], destination: &[DestinationStep]) -> Result<Option<Owner>, String> {
        let history = History {
            source,
            destination,
            arbiter: false,
            person: false,
        };
        history
            .check()
            .map(|()| history.owner())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn what_the_machines_write_has_one_owner_in_the_end() {
        use DestinationStep::{Dropped, GivenBack, Prepared, Ready, Reserved, Resuming, Running};
        use SourceStep::{Aborted, Committed, Done, Freezing, GivingUp, Intent, RolledBack, TakenBack};
        let there = [Reserved, Prepared, Ready, Resuming, Running];
        assert_eq!(
            check(&[Intent, Freezing, Committed, Done], &there),
            Ok(Some(Owner::Destination))
        );
        assert_eq!(check(&[Intent, Freezing, Committed], &there), Ok(None));
        assert_eq!(check(&[Intent, Aborted], &[]), Ok(Some(Owner::Source)));
        assert_eq!(
            check(&[Intent, Freezing, GivingUp, RolledBack], &[Reserved, Dropped]),
            Ok(Some(Owner::Source))
        );
        assert_eq!(
            check(
                &[Intent, Freezing, Committed, TakenBack, RolledBack],
                &[Reserved, Prepared, Ready, Resuming, GivenBack, Dropped]
            ),
            Ok(Some(Owner::Source))
        );
    }

    #[test]
    fn what_no_machine_writes_is_told() {
        use DestinationStep::{Dropped, Prepared, Ready, Reserved, Resuming, Running};
        use SourceStep::{Committed, Done, Freezing, GivingUp, Intent, RolledBack, TakenBack};
        let ready = [Reserved, Prepared, Ready];
        let runs = [Reserved, Prepared, Ready, Resuming, Running];
        for (source, destination, wrong) in [
            (
                &[Intent, Committed][..],
                &ready[..],
                "`Committed` is on record without `Freezing` before it",
            ),
            (
                &[Intent, Freezing, GivingUp, Committed],
                &ready,
                "`Committed` is on record behind `GivingUp`",
            ),
            (
                &[Intent, Freezing, Committed, RolledBack],
                &ready,
                "`RolledBack` is on record behind `Committed`",
            ),
            (
                &[Intent, Freezing],
                &runs,
                "one host has `Resuming` on record, the other one no `Committed`",
            ),
            (
                &[Intent, Freezing, Committed],
                &[Reserved],
                "one host has `Committed` on record, the other one no `Ready`",
            ),
            (
                &[Intent, Freezing, Committed, Done],
                &ready,
                "one host has `Done` on record, the other one no `Running`",
            ),
            (
                &[Intent, Freezing, Committed, TakenBack],
                &ready,
                "one host has `TakenBack` on record, the other one no `GivenBack`",
            ),
            (
                &[Intent, Freezing, Committed],
                &[Reserved, Prepared, Ready, Dropped, Resuming],
                "`Resuming` is on record behind `Dropped`",
            ),
            (
                &[Intent, Freezing, Committed],
                &[Reserved, Prepared, Ready, Resuming, Running, Dropped],
                "`Dropped` is on record behind `Running`",
            ),
        ] {
            assert_eq!(check(source, destination), Err(wrong.to_owned()));
        }
    }
}
