//! What can go wrong with the registry.

use std::path::PathBuf;

/// A registry call that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file could not be opened or prepared.
    #[error("cannot open the registry {}", path.display())]
    Open {
        /// The database file.
        path: PathBuf,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// A newer build wrote the file. Nothing was changed.
    #[error(
        "the registry {} has schema {found}, this build knows up to {known}; nothing was changed: start the newer transhipd again",
        path.display()
    )]
    Newer {
        /// The database file.
        path: PathBuf,
        /// Version in the file.
        found: i64,
        /// Newest version of this build.
        known: i64,
    },
    /// The disk has no room left for what must be written whatever happens.
    #[error("the disk has no room for what will have to be written to the registry {}: free some MiB there", path.display())]
    NoRoom {
        /// The database file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
    /// A statement failed; its transaction was rolled back.
    #[error("cannot {operation} in the registry's table {table}")]
    Statement {
        /// The table.
        table: &'static str,
        /// What was being done.
        operation: &'static str,
        /// What SQLite says.
        #[source]
        source: rusqlite::Error,
    },
    /// A row with that key is there already; nothing was changed.
    #[error("the registry's table {table} already has {key}")]
    Exists {
        /// The table.
        table: &'static str,
        /// What is taken.
        key: String,
    },
    /// Writing or syncing the file failed earlier: what is on the disk is unknown, so nothing is read or written any more.
    #[error(
        "the registry could not be written to disk earlier ({cause}); what is stored is unknown: transhipd ends and is to be started again; if that does not help, repair the disk"
    )]
    Broken {
        /// The first failure.
        cause: String,
    },
    /// The task that ran the statement ended without an answer.
    #[error("the registry call {operation} on table {table} was given up")]
    Gone {
        /// The table.
        table: &'static str,
        /// What was being done.
        operation: &'static str,
    },
}

impl RegistryError {
    /// Whether a unique key was taken.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        matches!(self, Self::Exists { .. })
    }
}
