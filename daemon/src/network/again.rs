//! A container that could not be put on its network is put there as soon as that can be done.
//!
//! It runs here, and nobody reaches it: its bridge is gone, or full. Whatever is wrong may be mended by a person at any
//! time, so there is no last attempt, only a longest pause. The attempts end with the first that succeeds, and with
//! [`Networks::unplug`] and [`Networks::detach`]: then the container is not to be on its network here.

use std::collections::HashMap;
use std::iter;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tranship_proto::ids::ContainerId;

use super::attachment::Attachment;
use super::error::NetworkError;
use super::networks::Networks;

/// Before the second attempt; then twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// So long at most: for somebody who has mended what was wrong, and waits.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The containers that are to be on their network and are not.
#[derive(Default)]
pub(super) struct Attempts {
    tasks: Mutex<HashMap<ContainerId, JoinHandle<()>>>,
}

impl Attempts {
    /// None is under way any more when this returns.
    pub(super) async fn stop(&self, id: &ContainerId) {
        let task = self.lock().remove(id);
        if let Some(task) = task {
            task.abort();
            // It was aborted; there is nothing to hear from it.
            let _ = task.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ContainerId, JoinHandle<()>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Networks {
    /// As [`Self::plug`], for a container that runs: where that fails it is tried again, behind the caller's back, until it
    /// succeeds or the container is unplugged or detached.
    ///
    /// # Errors
    /// As [`Self::plug`], of the first attempt.
    pub async fn plug_until_it_is_in(&self, attachment: &Attachment) -> Result<Duration, NetworkError> {
        self.shared.attempts.stop(&attachment.container).await;
        let first = self.plug(attachment).await;
        if let Err(error) = &first {
            let (networks, attachment, said) = (self.clone(), attachment.clone(), error.chain());
            let id = attachment.container.clone();
            let task = tokio::spawn(async move { networks.go_on_plugging(&attachment, said).await });
            let former = self.shared.attempts.lock().insert(id, task);
            if let Some(former) = former {
                former.abort();
            }
        }
        first
    }

    async fn go_on_plugging(&self, attachment: &Attachment, mut said: String) {
        let container = attachment.container.short();
        for pause in pauses() {
            tokio::time::sleep(pause).await;
            let Err(error) = self.plug(attachment).await else {
                break;
            };
            // Once for each reason, however long it takes.
            let error = error.chain();
            if error != said {
                tracing::warn!(container, error, "the container cannot be put on its network yet");
                said = error;
            }
        }
        tracing::info!(container, "the container is on its network now");
    }
}

/// Between one attempt and the next, without end.
fn pauses() -> impl Iterator<Item = Duration> {
    iter::successors(Some(FIRST_PAUSE), |pause| Some((*pause * 2).min(LONGEST_PAUSE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_the_longest_and_never_end() {
        let first: Vec<_> = pauses().take(5).map(|pause| pause.as_millis()).collect();
        assert_eq!(first, [250, 500, 1000, 2000, 4000]);
        assert!(pauses().skip(5).take(1000).all(|pause| pause == LONGEST_PAUSE));
    }
}
