//! What can go wrong in a role, with the phase it went wrong in.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use tranship_proto::v1::Phase;

use crate::convergence::Unreachable;
use crate::phase;
use crate::transport::TransportError;

/// Something the daemon did for the migration failed.
#[derive(Debug)]
pub struct HostError {
    /// What was tried, such as `freeze the container`.
    pub action: &'static str,
    /// Why it failed.
    pub source: Box<dyn Error + Send + Sync>,
}

impl HostError {
    /// Names the action an error came from.
    pub fn new(action: &'static str, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            action,
            source: source.into(),
        }
    }
}

impl fmt::Display for HostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.action)
    }
}

impl Error for HostError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.source.as_ref())
    }
}

/// The control connection failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The peer closed it, or it broke.
    #[error("the connection to the peer was lost while waiting for {waiting_for}")]
    Lost {
        /// The message that was due.
        waiting_for: &'static str,
    },
    /// The peer's or the network's own words.
    #[error("the control connection failed")]
    Failed(#[source] Box<dyn Error + Send + Sync>),
    /// Nothing came in time.
    #[error("no {waiting_for} within {} s", deadline.as_secs())]
    Deadline {
        /// The message that was due.
        waiting_for: &'static str,
        /// How long was waited.
        deadline: Duration,
    },
    /// A message that does not belong here.
    #[error("the peer sent {got} where {wanted} was due")]
    Unexpected {
        /// What was due.
        wanted: &'static str,
        /// What came.
        got: &'static str,
    },
}

/// Why a step of a role failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The daemon could not do its part.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The peer cannot be talked to.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The bulk stream failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The destination says that it failed, and that it has dropped everything.
    #[error("the destination failed in {}: {error}", phase::name(*phase))]
    Destination {
        /// The destination's phase.
        phase: Phase,
        /// Its error chain.
        error: String,
        /// The container was handed over, and is the source's again.
        given_back: bool,
        /// [`StepError::is_transient`] there.
        transient: bool,
    },
    /// The source says that it gave up.
    #[error("the source gave up: {0}")]
    Source(String),
    /// Both ends hold different bytes.
    #[error("the destination verified another checkpoint than the one that was sent")]
    Digest,
    /// Go for another epoch or checkpoint than the one reserved.
    #[error("the source committed epoch {got}, not the reserved epoch {reserved}")]
    Epoch {
        /// What the reservation says.
        reserved: u64,
        /// What Go says.
        got: u64,
    },
    /// The wished-for blackout cannot be kept.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A person asked for it.
    #[error("cancelled")]
    Cancelled,
}

impl StepError {
    /// Whether the cause may pass by itself, with nobody doing anything about it: the connection to the peer, or the peer's daemon.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Control(error) => !matches!(error, ControlError::Unexpected { .. }),
            Self::Transport(error) => matches!(
                error,
                TransportError::Unopened(_)
                    | TransportError::Io(_)
                    | TransportError::Cut(_)
                    | TransportError::Stalled(_)
            ),
            Self::Destination { transient, .. } => *transient,
            _ => false,
        }
    }
}

/// A step that failed, and in which phase.
#[derive(Debug, thiserror::Error)]
#[error("{} failed", phase::name(*phase))]
pub struct Failure {
    /// The phase.
    pub phase: Phase,
    /// What happened.
    #[source]
    pub cause: StepError,
}

impl Failure {
    /// Whether time was up.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(&self.cause, StepError::Unreachable(why) if why.is_timeout())
    }

    /// Whether a person's wish was the cause.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        matches!(self.cause, StepError::Cancelled)
    }
}

/// An error and all its sources on one line, each once.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let words = source.to_string();
        if !text.ends_with(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_says_phase_action_and_reason_once_each() {
        let failure = Failure {
            phase: Phase::Drain,
            cause: HostError::new("dump the container", "criu: io_uring is not supported").into(),
        };
        assert_eq!(
            chain(&failure),
            "drain failed: cannot dump the container: criu: io_uring is not supported"
        );
    }

    #[test]
    fn what_a_lost_connection_makes_fail_may_pass_and_what_a_host_cannot_do_does_not() {
        let destination = |transient| StepError::Destination {
            phase: Phase::Seed,
            error: String::new(),
            given_back: false,
            transient,
        };
        let waiting_for = "seeded";
        assert!(StepError::from(ControlError::Lost { waiting_for }).is_transient());
        assert!(StepError::from(TransportError::Cut("a frame")).is_transient());
        assert!(destination(true).is_transient());
        for lasting in [
            destination(false),
            HostError::new("keep a layer", "the disk is full").into(),
            TransportError::Worker.into(),
            StepError::Cancelled,
            StepError::Digest,
        ] {
            assert!(!lasting.is_transient(), "{lasting}");
        }
    }

    #[test]
    fn a_deadline_says_what_was_due_and_for_how_long() {
        let failure = Failure {
            phase: Phase::Hold,
            cause: ControlError::Deadline {
                waiting_for: "ready",
                deadline: Duration::from_secs(20),
            }
            .into(),
        };
        assert_eq!(chain(&failure), "hold failed: no ready within 20 s");
    }
}
