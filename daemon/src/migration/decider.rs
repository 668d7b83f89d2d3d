//! Who decides one handoff, asked by one side of it: the cluster's etcd where it has one, the source's own journal where not.

use std::sync::Arc;

use tranship_migrate::error::HostError;

use super::conductor::Shared;
use crate::arbiter::{Arbiter, ArbiterError, Decision, Handoff, LocalArbiter, Token};

/// Decides one handoff.
pub struct Decider {
    arbiter: Arc<dyn Arbiter>,
    handoff: Handoff,
}

impl Shared {
    /// Who decides a handoff that was opened with this token.
    ///
    /// # Errors
    /// Etcd does, and it is not configured here.
    pub fn decider(&self, handoff: Handoff) -> Result<Decider, HostError> {
        if handoff.token == Token(0) {
            let arbiter = LocalArbiter::new(self.registry().clone(), handoff.migration);
            let arbiter = Arc::new(arbiter);
            return Ok(Decider { arbiter, handoff });
        }
        let missing = || {
            let why = "the cluster's etcd decides, and `[cluster] etcd` is not in this host's configuration: nothing was changed";
            HostError::new("find out who decides the handoff", why)
        };
        let arbiter = self.arbiter.clone().ok_or_else(missing)?;
        Ok(Decider { arbiter, handoff })
    }
}

impl Decider {
    /// What the handoff was opened with; 0 where the source's journal decides.
    pub fn token(&self) -> i64 {
        self.handoff.token.0
    }

    /// Whether somebody else than the source's journal decides.
    pub fn is_arbiter(&self) -> bool {
        self.handoff.token != Token(0)
    }

    /// Has it decided for the destination, unless it is decided already.
    ///
    /// # Errors
    /// As [`Arbiter::commit`].
    pub async fn commit(&self) -> Result<Decision, ArbiterError> {
        self.arbiter.commit(&self.handoff).await
    }

    /// Has it decided for the source, unless it is decided already. Answers whether the destination owns the container.
    ///
    /// # Errors
    /// As [`Arbiter::abandon`].
    pub async fn abandon(&self) -> Result<bool, ArbiterError> {
        Ok(self.arbiter.abandon(&self.handoff).await? == Decision::Committed)
    }

    /// The source owns the container again, under `epoch`.
    ///
    /// # Errors
    /// As [`Arbiter::take`].
    pub async fn take_back(&self, epoch: u64) -> Result<(), ArbiterError> {
        let Handoff {
            container, source, ..
        } = &self.handoff;
        self.arbiter.take(container, source, epoch).await
    }
}
