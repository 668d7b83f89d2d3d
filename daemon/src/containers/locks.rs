//! One lock a container, so that verbs do not cross.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;
use tranship_proto::ids::ContainerId;

use super::error::ContainerError;

/// How long a verb waits for the one before it; `stop` with a long timeout may hold a container for that long.
const PATIENCE: Duration = Duration::from_secs(60);

/// The locks of all containers.
pub struct Locks {
    locks: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    patience: Duration,
}

impl Default for Locks {
    fn default() -> Self {
        Self {
            locks: Mutex::default(),
            patience: PATIENCE,
        }
    }
}

/// The right to change one container, until dropped.
pub struct Held {
    _guard: OwnedMutexGuard<()>,
}

impl Locks {
    /// Waits for the right to change a container.
    ///
    /// # Errors
    /// [`ContainerError::Busy`] when another verb keeps it for too long.
    pub async fn hold(&self, id: &ContainerId) -> Result<Held, ContainerError> {
        let lock = self.of(id);
        match tokio::time::timeout(self.patience, lock.lock_owned()).await {
            Ok(guard) => Ok(Held { _guard: guard }),
            Err(_) => Err(ContainerError::Busy {
                id: id.short().to_owned(),
                waited_s: self.patience.as_secs(),
            }),
        }
    }

    fn of(&self, id: &ContainerId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds or waits for a lock has a reference of his own; the others are of containers long gone.
        locks.retain(|known, lock| known == id || Arc::strong_count(lock) > 1);
        Arc::clone(locks.entry(id.clone()).or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_verb_waits_and_another_container_does_not() {
        let locks = Locks {
            patience: Duration::from_millis(50),
            ..Locks::default()
        };
        let (one, other) = (
            ContainerId::from_random([1; 32]),
            ContainerId::from_random([2; 32]),
        );
        let first = locks.hold(&one).await.unwrap();
        locks.hold(&other).await.unwrap();
        assert!(matches!(locks.hold(&one).await, Err(ContainerError::Busy { .. })));
        drop(first);
        locks.hold(&one).await.unwrap();
        assert_eq!(locks.locks.lock().unwrap().len(), 1);
    }
}
