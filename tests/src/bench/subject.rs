//! What somebody has to offer who moves containers.

use std::net::SocketAddr;

use anyhow::Result;
use serde::Serialize;

use super::watcher::Noticed;

/// A mover with its container, somewhere on the testbed. It is gone with the testbed.
pub trait Subject {
    /// As the report calls it.
    fn name(&self) -> &'static str;

    /// Where the container answers, before and after every move; none for one who has no container, but only its bytes.
    fn address(&self) -> Option<SocketAddr>;

    /// Moves the container to the other host.
    ///
    /// # Errors
    /// It did not arrive; the bench cannot go on.
    fn move_over(&mut self) -> Result<Moved>;
}

/// What the mover itself tells of one move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Moved {
    /// Name of the host it left.
    pub from: String,
    /// Name of the host it went to.
    pub to: String,
    /// How long the container stood still.
    pub blackout_us: Option<u64>,
    /// From the command to its success.
    pub total_us: u64,
    /// From the command until the container stood still.
    pub before_freeze_us: u64,
    /// Everything that went over the wire to the destination.
    pub bytes: u64,
    /// The most resident memory of the mover's daemons while it moved: at the source, at the destination.
    pub daemons_peak_bytes: Vec<u64>,
    /// What took how long, in order.
    pub spans: Vec<Stretch>,
}

/// One measured part of a move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stretch {
    /// What was done, with the phase and the role where there are such.
    pub name: String,
    /// How long it took.
    pub duration_us: u64,
}

/// One move as everybody saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Move {
    /// Which mover.
    pub subject: &'static str,
    /// What those noticed who waited for answers.
    #[serde(flatten)]
    pub noticed: Noticed,
    /// What the mover tells.
    #[serde(flatten)]
    pub moved: Moved,
}
