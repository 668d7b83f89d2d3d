//! Single values by key, such as the name this host joined its cluster with.

use rusqlite::OptionalExtension;

use super::{Registry, RegistryError};

const TABLE: &str = "settings";

/// The table of single values.
pub struct Settings<'a>(pub(super) &'a Registry);

impl Settings<'_> {
    /// The value, or `None` where it was never set.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn get(&self, key: &'static str) -> Result<Option<String>, RegistryError> {
        let work = move |db: &rusqlite::Transaction<'_>| {
            db.query_row("SELECT value FROM settings WHERE key = ?1", [key], |row| {
                row.get(0)
            })
            .optional()
        };
        self.0.transaction(TABLE, "read a value", work).await
    }

    /// Sets the value; durable on return.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn set(&self, key: &'static str, value: String) -> Result<(), RegistryError> {
        let work = move |db: &rusqlite::Transaction<'_>| {
            let sql = "INSERT INTO settings (key, value) VALUES (?1, ?2)
                       ON CONFLICT (key) DO UPDATE SET value = excluded.value";
            db.execute(sql, (key, value)).map(drop)
        };
        self.0.transaction(TABLE, "write a value", work).await
    }
}
