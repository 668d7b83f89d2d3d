//! Migrations that this host can neither finish nor undo, because the other one does not say what became of them. A person may
//! decide instead.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tranship_migrate::handoff::Resolution;
use tranship_proto::ids::MigrationId;

/// Those in doubt, each with what a person has decided about it.
#[derive(Default)]
pub struct Doubts {
    open: Mutex<HashMap<MigrationId, watch::Sender<Option<Resolution>>>>,
}

/// Waits for a person's decision.
pub struct Doubt(watch::Receiver<Option<Resolution>>);

impl Doubts {
    /// A migration is in doubt from now on, until [`Doubts::close`].
    pub fn open(&self, id: MigrationId) -> Doubt {
        let mut open = self.entries();
        let entry = open.entry(id).or_insert_with(|| watch::Sender::new(None));
        Doubt(entry.subscribe())
    }

    /// Tells whoever waits what a person has decided; false when it is not in doubt.
    pub fn resolve(&self, id: MigrationId, resolution: Resolution) -> bool {
        let open = self.entries();
        let found = open.get(&id);
        found.is_some_and(|wish| wish.send(Some(resolution)).is_ok())
    }

    /// Whether a migration is in doubt.
    pub fn contains(&self, id: MigrationId) -> bool {
        self.entries().contains_key(&id)
    }

    /// Whether a person has decided against the other host, and that may not be on record yet.
    pub fn is_taking_back(&self, id: MigrationId) -> bool {
        let open = self.entries();
        open.get(&id)
            .is_some_and(|wish| *wish.borrow() == Some(Resolution::Here))
    }

    /// Nobody can decide it any more.
    pub fn close(&self, id: MigrationId) {
        self.entries().remove(&id);
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<MigrationId, watch::Sender<Option<Resolution>>>> {
        // A panic while the map was locked cannot have left it half-changed: every change is one call.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Doubt {
    /// The next decision. Cancel-safe; never, when the doubt was closed.
    pub async fn resolved(&mut self) -> Resolution {
        while self.0.changed().await.is_ok() {
            if let Some(resolution) = *self.0.borrow_and_update() {
                return resolution;
            }
        }
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_decision_reaches_whoever_waits_for_it_once() {
        let doubts = Doubts::default();
        let id = MigrationId::generate();
        assert!(!doubts.resolve(id, Resolution::Here));
        let mut doubt = doubts.open(id);
        assert!(doubts.contains(id) && !doubts.is_taking_back(id));
        assert!(doubts.resolve(id, Resolution::Here) && doubts.is_taking_back(id));
        assert_eq!(doubt.resolved().await, Resolution::Here);
        let again = tokio::time::timeout(std::time::Duration::from_millis(10), doubt.resolved());
        assert!(again.await.is_err());
        doubts.close(id);
        assert!(!doubts.contains(id) && !doubts.resolve(id, Resolution::There));
    }
}
