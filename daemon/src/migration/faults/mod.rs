//! Fault points: every step of a handoff has a name, at which a build for tests (feature `fault-points`) ends the daemon, has
//! the step fail or holds it up, as a plan says ([`points`]). In any other build what is here does nothing and costs nothing.

#[cfg(feature = "fault-points")]
mod hosts;
#[cfg(feature = "fault-points")]
pub mod points;

#[cfg(feature = "fault-points")]
pub use hosts::{conversation, destination, source};
#[cfg(feature = "fault-points")]
pub use points::{at, obey_plans, told_boot_id};

#[cfg(not(feature = "fault-points"))]
pub use nothing::{at, conversation, destination, source, told_boot_id};

/// What was injected in the place of a step's own error.
#[derive(Debug, thiserror::Error)]
#[error("injected by a test")]
pub struct Injected;

#[cfg(not(feature = "fault-points"))]
mod nothing {
    use std::fmt::Display;
    use std::sync::Arc;

    use tranship_migrate::control::Control;
    use tranship_migrate::host::{DestinationHost, SourceHost};

    use super::Injected;

    /// Nobody tells it but the kernel.
    pub fn told_boot_id() -> Option<String> {
        None
    }

    /// Does the work.
    pub async fn at<T, E>(
        _point: impl Display,
        _fail: impl FnOnce(Injected) -> E,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        work.await
    }

    /// The host as it is.
    pub fn source<H: SourceHost + 'static>(host: Arc<H>) -> Arc<dyn SourceHost> {
        host
    }

    /// The host as it is.
    pub fn destination<H: DestinationHost + 'static>(host: Arc<H>) -> Arc<dyn DestinationHost> {
        host
    }

    /// The connection as it is.
    pub fn conversation<C: Control + 'static>(_role: &'static str, control: C) -> Box<dyn Control> {
        Box::new(control)
    }
}
