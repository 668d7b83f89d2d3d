//! What ends a migration before its time: a person's wish, and the clock.

use std::future::pending;
use std::time::Instant;

use tokio::sync::watch;

use crate::convergence::{OnTimeout, Unreachable, Wishes};
use crate::error::StepError;

/// What may end one migration.
pub(super) struct Stop {
    cancelled: watch::Receiver<bool>,
    /// Nothing once it is too late for that, and where the freeze is to be forced.
    give_up_at: Option<Instant>,
    /// What is said then; nothing while the blackout would fit.
    why: Option<Unreachable>,
}

impl Stop {
    /// The clock runs from now on.
    pub fn new(cancelled: watch::Receiver<bool>, wishes: &Wishes) -> Self {
        let elapsed = wishes.timeout;
        Self {
            cancelled,
            give_up_at: (wishes.on_timeout == OnTimeout::Cancel).then(|| Instant::now() + elapsed),
            why: Some(Unreachable::Unsent { elapsed }),
        }
    }

    /// What to say when time is up from here on; with nothing to say it does not end the migration.
    pub fn explain(&mut self, why: Option<Unreachable>) {
        self.why = why;
    }

    /// The container is about to be frozen: only a person ends it now.
    pub fn forget_the_time(&mut self) {
        self.give_up_at = None;
    }

    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Waits until the migration is to end, and says why. Cancel-safe.
    pub async fn wanted(&mut self) -> StepError {
        tokio::select! {
            () = is_set(&mut self.cancelled) => StepError::Cancelled,
            why = time_is_up(self.give_up_at, self.why) => why.into(),
        }
    }
}

async fn time_is_up(at: Option<Instant>, why: Option<Unreachable>) -> Unreachable {
    let (Some(at), Some(why)) = (at, why) else {
        return pending().await;
    };
    tokio::time::sleep_until(at.into()).await;
    why
}

async fn is_set(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|set| *set).await.is_err() {
        // Nobody can set it any more.
        pending().await
    }
}
