//! Who decides a handoff: whether a container goes to the destination or stays at the source.
//!
//! ```text
//!              open                 commit, by source or destination, whoever is first
//!   (nothing) ------> undecided ----------------------------------------------------> committed: the destination owns it
//!                         |
//!                         +---------> abandoned: the source owns it, and no commit can come any more
//!                          abandon, by source or destination
//! ```
//!
//! [`local`] is the source's own journal: two hosts need nothing else, and a source that is away keeps its destination waiting.
//! [`etcd`] is a record that both sides reach ([`record`] says what it means): where one of them is away, the other decides, and
//! the one that comes back finds it decided.
//!
//! What an arbiter answers is certain. An error is one of two kinds. [`ArbiterError::Unknown`]: it may or may not have been
//! written, and only a later answer says; the container is then nobody's to start or to let go. Any other: nothing was written,
//! and this host's side of the handoff is not what the arbiter has on record.

pub mod etcd;
pub mod local;
pub mod record;

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tranship_proto::ids::{ContainerId, MigrationId, Name};

pub use etcd::EtcdArbiter;
pub use local::LocalArbiter;

/// One handoff, as who decides it has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handoff {
    /// What is handed over.
    pub container: ContainerId,
    /// The migration it is handed over by.
    pub migration: MigrationId,
    /// Who owns it, under the epoch before this one.
    pub source: Name,
    /// Who would own it.
    pub destination: Name,
    /// The epoch the destination would own; the source owns this minus one.
    pub epoch: u64,
    /// What [`Arbiter::open`] has answered.
    pub token: Token,
}

/// The state of the record that a handoff begins from, and the only one that it is decided on. In etcd the revision of the last
/// change of the record, above 0; without etcd 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token(pub i64);

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The destination owns the container.
    Committed,
    /// The source owns it, and the destination never will by this handoff.
    Abandoned,
}

/// Who owns a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its host.
    pub host: Name,
    /// Its epoch there.
    pub epoch: u64,
}

/// Decides handoffs. Every call may be repeated, and must be until its answer is certain.
#[async_trait]
pub trait Arbiter: Send + Sync {
    /// By the source before anything is asked of a destination: makes certain that the record says this host owns the container
    /// under `epoch`, creates the record where there is none, and answers what the handoff is decided on.
    ///
    /// A handoff that was opened is decided, one way or the other, before the next one of the container is opened: both would
    /// be decided on the same token.
    ///
    /// # Errors
    /// [`ArbiterError::NotOwner`] where somebody else owns it, or this host's copy has an old epoch.
    async fn open(&self, container: &ContainerId, owner: &Name, epoch: u64) -> Result<Token, ArbiterError>;

    /// Tries to have it decided for the destination. Whoever was first has decided, so the answer may be
    /// [`Decision::Abandoned`]. Either side may call it.
    ///
    /// # Errors
    /// [`ArbiterError::Superseded`] where the record has been somebody's since who has not got it by handoffs.
    async fn commit(&self, handoff: &Handoff) -> Result<Decision, ArbiterError>;

    /// Tries to have it decided for the source; the answer may be [`Decision::Committed`]. After [`Decision::Abandoned`] no
    /// commit of this handoff has any effect, also one that is on its way.
    ///
    /// # Errors
    /// As [`Arbiter::commit`].
    async fn abandon(&self, handoff: &Handoff) -> Result<Decision, ArbiterError>;

    /// What is decided, if anything is.
    ///
    /// # Errors
    /// As [`Arbiter::commit`].
    async fn decision(&self, handoff: &Handoff) -> Result<Option<Decision>, ArbiterError>;

    /// A person has decided: this host owns the container under `epoch` from now on, whatever was on record with a lower one.
    /// No handoff that was opened before is committed any more.
    ///
    /// # Errors
    /// [`ArbiterError::NotOwner`] where another host has this epoch, or somebody a higher one.
    async fn take(&self, container: &ContainerId, owner: &Name, epoch: u64) -> Result<(), ArbiterError>;

    /// Who owns a container; `None` where nobody is on record.
    ///
    /// # Errors
    /// The record cannot be read.
    async fn owner(&self, container: &ContainerId) -> Result<Option<Owner>, ArbiterError>;

    /// The container was removed here: its record goes, if this host is still its owner.
    ///
    /// # Errors
    /// The record may still be there.
    async fn forget(&self, container: &ContainerId, owner: &Name) -> Result<(), ArbiterError>;
}

/// Something was not decided, or it is not known what.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// The record names somebody else, or a later epoch. Nothing was written.
    #[error(
        "host {asking} does not own container {} under epoch {epoch}: on record is {on_record}; the copy on {asking} must not run",
        container.short()
    )]
    NotOwner {
        /// Which container.
        container: ContainerId,
        /// Who says he does.
        asking: Name,
        /// Under which epoch.
        epoch: u64,
        /// Who does.
        on_record: Owner,
    },
    /// The record has begun anew since the handoff was opened, and cannot say any more what was decided. Nothing was written.
    #[error(
        "migration {migration} of container {} cannot be decided any more: {}; neither of its hosts may run its copy for it",
        container.short(), since(.on_record.as_ref())
    )]
    Superseded {
        /// Which container.
        container: ContainerId,
        /// Which handoff.
        migration: MigrationId,
        /// Who owns it now.
        on_record: Option<Owner>,
    },
    /// What is on record was not written by this version, or by nobody at all. Nothing was written.
    #[error("the record {key} cannot be read: look at it, and remove it if it is wrong")]
    Malformed {
        /// Where it is.
        key: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// It may have been written or not. Whoever repeats the call gets to know.
    #[error("it is not known whether {doing}")]
    Unknown {
        /// What was to be done.
        doing: &'static str,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl ArbiterError {
    /// Whether only a later answer says what is the case.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {} with epoch {}", self.host, self.epoch)
    }
}

fn since(on_record: Option<&Owner>) -> String {
    match on_record {
        Some(owner) => format!("it was given to {owner} since"),
        None => "there is no record of it".to_owned(),
    }
}
