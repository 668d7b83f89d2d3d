//! Those who wait for the container's answers while it is moved.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;

use crate::crowd::Crowd;

/// Somebody who notices a move.
pub trait Watcher {
    /// A move is about to begin.
    ///
    /// # Errors
    /// The container does not answer.
    fn begin(&mut self) -> Result<()>;

    /// The move has ended: what was noticed since [`Watcher::begin`].
    ///
    /// # Errors
    /// A connection broke, or an answer was lost or wrong.
    fn finish(&mut self, course: &Course) -> Result<Noticed>;
}

/// When what happened.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// When the command was given.
    pub begun: Instant,
    /// How long the container ran on after that.
    pub before_freeze_us: u64,
}

/// What somebody noticed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Noticed {
    /// The longest time without an answer.
    pub stall_us: Option<u64>,
    /// Answers per second just before the move.
    pub rate_before: Option<u64>,
    /// Answers per second from the command to the freeze.
    pub rate_meanwhile: Option<u64>,
}

impl Noticed {
    /// Only a stall.
    #[must_use]
    pub fn stall(us: u64) -> Self {
        Self {
            stall_us: Some(us),
            ..Self::default()
        }
    }
}

impl Watcher for Crowd {
    fn begin(&mut self) -> Result<()> {
        Crowd::begin(self)
    }

    fn finish(&mut self, _: &Course) -> Result<Noticed> {
        Crowd::finish(self).map(Noticed::stall)
    }
}
