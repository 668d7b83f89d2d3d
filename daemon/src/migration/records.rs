//! The records of migrations in the registry.

use std::sync::Arc;

use tranship_migrate::deadlines::ASK_AGAIN;
use tranship_migrate::error::chain;
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::Migration;

use super::conductor::Shared;
use crate::clock::now_ms;
use crate::registry::{MigrationRecord, Registry, RegistryError};

impl Shared {
    /// A record's last state into the registry, and off the board. What cannot be written now is written later.
    pub async fn close(self: &Arc<Self>, id: MigrationId, record: Migration) {
        if let Err(error) = self.store(record.clone()).await {
            tracing::error!(migration_id = %id, error = %chain(&error), "the migration's record cannot be written yet; this goes on trying");
            tokio::spawn(store_later(self.registry().clone(), id, record.clone()));
        }
        self.board.change(id, |shown| *shown = record);
        self.board.take(id);
        self.forget_old();
        crate::blocking::run(crate::sys::heap::trim).await;
    }

    /// Writes a record.
    pub async fn store(&self, migration: Migration) -> Result<(), RegistryError> {
        store(self.registry(), migration).await
    }
}

async fn store(registry: &Registry, migration: Migration) -> Result<(), RegistryError> {
    let created_ms = migration.started_ms;
    let boot_id = crate::boot::id().to_owned();
    let record = MigrationRecord {
        migration,
        boot_id,
        created_ms,
        updated_ms: now_ms(),
    };
    registry.migrations().update(record).await
}

/// Writes a record as soon as that works, unless somebody has written another by then.
async fn store_later(registry: Registry, id: MigrationId, migration: Migration) {
    let records = registry.migrations();
    let known = records.get(id, migration.role()).await;
    loop {
        tokio::time::sleep(ASK_AGAIN).await;
        match (records.get(id, migration.role()).await, &known) {
            (Ok(stored), Ok(known)) if stored != *known => return,
            (Err(_), _) => continue,
            _ => {}
        }
        if store(&registry, migration.clone()).await.is_ok() {
            return;
        }
    }
}
