//! What this host's migrations look like right now, for whoever watches.
//!
//! The board holds those under way; the registry holds every one, and may lag until it ends. The handoff journal, not
//! this, decides anything.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tranship_migrate::host::Event;
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::{Migration, TreeBytes};

/// The migrations under way.
#[derive(Default)]
pub struct Board {
    entries: Mutex<HashMap<MigrationId, Entry>>,
}

struct Entry {
    record: watch::Sender<Migration>,
    cancel: watch::Sender<bool>,
}

impl Board {
    /// Puts a migration up. The receiver turns true when a person cancels it.
    pub fn post(&self, id: MigrationId, record: Migration) -> watch::Receiver<bool> {
        let (cancel, cancelled) = watch::channel(false);
        let entry = Entry {
            record: watch::Sender::new(record),
            cancel,
        };
        self.entries().insert(id, entry);
        cancelled
    }

    /// Changes what is up, and wakes watchers. Nothing happens when it is not up.
    pub fn change(&self, id: MigrationId, change: impl FnOnce(&mut Migration)) {
        if let Some(entry) = self.entries().get(&id) {
            entry.record.send_modify(change);
        }
    }

    /// What a role reports, as changes of the record.
    pub fn observe(&self, id: MigrationId, event: &Event<'_>) {
        self.change(id, |record| match event {
            Event::Phase(phase) => record.set_phase(*phase),
            Event::Spans(spans) => record.spans = spans.to_vec(),
            Event::Tree(tree) => {
                record.bytes_sent += tree.bytes;
                record.trees.push(TreeBytes {
                    tree: tree.name.to_string(),
                    entries: tree.entries,
                    bytes: tree.bytes,
                });
            }
            Event::Round(round) => record.rounds.push(**round),
            Event::Progress(progress) => record.progress = Some(**progress),
            Event::MemoryMode(mode) => record.memory_mode = mode.to_string(),
        });
    }

    /// Follows a migration that is under way.
    pub fn watch(&self, id: MigrationId) -> Option<watch::Receiver<Migration>> {
        self.entries().get(&id).map(|entry| entry.record.subscribe())
    }

    /// Asks a migration that is under way to stop; false when there is none.
    pub fn cancel(&self, id: MigrationId) -> bool {
        self.entries()
            .get(&id)
            .is_some_and(|entry| entry.cancel.send(true).is_ok())
    }

    /// The record as it is up now.
    pub fn get(&self, id: MigrationId) -> Option<Migration> {
        self.entries().get(&id).map(|entry| entry.record.borrow().clone())
    }

    /// Whether a role of this migration runs in this daemon.
    pub fn is_active(&self, id: MigrationId) -> bool {
        self.entries().contains_key(&id)
    }

    /// Takes a migration down, with its last record; watchers see it and then the end.
    pub fn take(&self, id: MigrationId) -> Option<Migration> {
        self.entries()
            .remove(&id)
            .map(|entry| entry.record.borrow().clone())
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<MigrationId, Entry>> {
        // A panic while the map was locked cannot have left it half-changed: every change is one call.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tranship_proto::v1::Phase;

    use super::*;

    #[tokio::test]
    async fn a_watcher_sees_each_phase_and_then_the_end() {
        let board = Board::default();
        let id = MigrationId::generate();
        board.post(id, Migration::default());
        let mut watcher = board.watch(id).unwrap();
        board.observe(id, &Event::Phase(Phase::Drain));
        watcher.changed().await.unwrap();
        assert_eq!(watcher.borrow_and_update().phase(), Phase::Drain);
        assert_eq!(board.take(id).unwrap().phase(), Phase::Drain);
        assert!(watcher.changed().await.is_err());
        assert!(!board.is_active(id));
    }

    #[tokio::test]
    async fn cancelling_reaches_the_role_once_it_is_up() {
        let board = Board::default();
        let id = MigrationId::generate();
        assert!(!board.cancel(id));
        let mut cancelled = board.post(id, Migration::default());
        assert!(board.cancel(id));
        assert!(*cancelled.wait_for(|set| *set).await.unwrap());
    }
}
