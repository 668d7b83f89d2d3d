//! Fault points: steps that have a name, so that a test can have them fail or be the last of their process.
//!
//! What is below the roles of a migration has them here: writes of the registry, syncs, renames, stages of CRIU. The roles' own, and who
//! reads the plans of tests, are the daemon's. Without the feature `fault-points` a step is its work and nothing else.

use std::fmt::Display;
use std::io;

/// A failure that a test wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    /// In the place of the step.
    Instead,
    /// Although the step is done: nobody can tell the one from the other.
    Behind,
}

/// Does the work of a step. With the feature, what is planned for it may have it fail or end the process instead.
///
/// # Errors
/// Those of the work, and those that a test wants.
#[inline]
pub fn step<T, E: Into<io::Error>>(
    point: impl Display,
    work: impl FnOnce() -> Result<T, E>,
) -> io::Result<T> {
    let fail = |_| io::Error::other("injected by a test");
    step_or(point, fail, || work().map_err(Into::into))
}

/// [`step`] where the work fails with an error of its own kind.
///
/// # Errors
/// As [`step`].
#[cfg(not(feature = "fault-points"))]
#[inline]
pub fn step_or<T, E>(
    _point: impl Display,
    _fail: impl FnOnce(Injected) -> E,
    work: impl FnOnce() -> Result<T, E>,
) -> Result<T, E> {
    work()
}

/// [`step_or`] where the work takes its time.
///
/// # Errors
/// As [`step`].
#[cfg(not(feature = "fault-points"))]
#[inline]
pub async fn step_or_later<T, E>(
    _point: impl Display,
    _fail: impl FnOnce(Injected) -> E,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    work.await
}

#[cfg(feature = "fault-points")]
pub use obedient::{Deed, Plan, install, step_or, step_or_later};

#[cfg(feature = "fault-points")]
mod obedient {
    use std::fmt::Display;
    use std::sync::OnceLock;

    use super::Injected;

    static PLAN: OnceLock<&'static dyn Plan> = OnceLock::new();

    /// What is to happen at a point whose process has not ended there.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Deed {
        /// The step is done.
        Nothing,
        /// It fails.
        Fail(Injected),
        /// It is done, and is the last of the process.
        DieAfter,
    }

    /// Knows what is to happen.
    pub trait Plan: Sync {
        /// The point is reached. Does not return where the process is to end before the step.
        fn reach(&self, point: &str) -> Deed;
        /// Ends the process as SIGKILL does.
        fn die(&self) -> !;
    }

    /// Has every step of this process ask `plan` from now on. Only the first call counts.
    pub fn install(plan: &'static dyn Plan) {
        PLAN.set(plan).ok();
    }

    /// [`step`](super::step) where the work fails with an error of its own kind.
    ///
    /// # Errors
    /// As [`step`](super::step).
    pub fn step_or<T, E>(
        point: impl Display,
        fail: impl FnOnce(Injected) -> E,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(plan) = PLAN.get() else {
            return work();
        };
        match plan.reach(&point.to_string()) {
            Deed::Nothing => work(),
            Deed::Fail(Injected::Instead) => Err(fail(Injected::Instead)),
            Deed::Fail(Injected::Behind) => {
                work()?;
                Err(fail(Injected::Behind))
            }
            Deed::DieAfter => {
                work().ok();
                plan.die()
            }
        }
    }

    /// [`step_or`] where the work takes its time.
    ///
    /// # Errors
    /// As [`step`](super::step).
    pub async fn step_or_later<T, E>(
        point: impl Display,
        fail: impl FnOnce(Injected) -> E,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let Some(plan) = PLAN.get() else {
            return work.await;
        };
        match plan.reach(&point.to_string()) {
            Deed::Nothing => work.await,
            Deed::Fail(Injected::Instead) => Err(fail(Injected::Instead)),
            Deed::Fail(Injected::Behind) => {
                work.await?;
                Err(fail(Injected::Behind))
            }
            Deed::DieAfter => {
                work.await.ok();
                plan.die()
            }
        }
    }
}
