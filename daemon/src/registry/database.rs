//! The one connection, and how work gets onto it from asynchronous code.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};

use super::error::RegistryError;
use super::{Containers, Images, Migrations, Volumes, schema};

/// How long a statement waits for an operator's `sqlite3` that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The registry; clones share the one connection.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    connection: Connection,
    /// The first failed write or sync. fsync does not say twice that data was lost, so nothing is tried after it.
    broken: Option<String>,
}

impl Registry {
    /// Opens the file, making it or bringing it to this build's schema.
    ///
    /// # Errors
    /// [`RegistryError::Newer`] when a newer build wrote it, [`RegistryError::Open`] for everything else.
    pub fn open(path: &Path) -> Result<Self, RegistryError> {
        let open = |source| RegistryError::Open {
            path: path.to_owned(),
            source,
        };
        let mut connection = Connection::open(path).map_err(open)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(open)?;
        // Before anything is written: a file of a newer build stays as it is.
        schema::refuse_newer(&connection, path)?;
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .map_err(open)?;
        connection
            .pragma_update(None, "synchronous", "FULL")
            .map_err(open)?;
        connection
            .pragma_update(None, "foreign_keys", true)
            .map_err(open)?;
        schema::upgrade(&mut connection).map_err(open)?;
        let state = Mutex::new(State {
            connection,
            broken: None,
        });
        Ok(Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                state,
            }),
        })
    }

    /// The database file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Containers and the tombstones of those that moved away.
    #[must_use]
    pub fn containers(&self) -> Containers<'_> {
        Containers(self)
    }

    /// Images and their names.
    #[must_use]
    pub fn images(&self) -> Images<'_> {
        Images(self)
    }

    /// Volumes.
    #[must_use]
    pub fn volumes(&self) -> Volumes<'_> {
        Volumes(self)
    }

    /// Migrations and the handoff journal.
    #[must_use]
    pub fn migrations(&self) -> Migrations<'_> {
        Migrations(self)
    }

    /// Runs `work` in one transaction on a thread that may block; durable when it returns `Ok`.
    pub(super) async fn transaction<T, F>(
        &self,
        table: &'static str,
        operation: &'static str,
        work: F,
    ) -> Result<T, RegistryError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    {
        let shared = Arc::clone(&self.shared);
        let task = tokio::task::spawn_blocking(move || shared.run(table, operation, work));
        task.await
            .unwrap_or(Err(RegistryError::Gone { table, operation }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in the middle rolled its transaction back when it was dropped: the connection is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T>(
        &self,
        table: &'static str,
        operation: &'static str,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, RegistryError> {
        let mut state = self.lock();
        if let Some(cause) = &state.broken {
            return Err(RegistryError::Broken { cause: cause.clone() });
        }
        match in_transaction(&mut state.connection, work) {
            Ok(value) => Ok(value),
            Err(source) => {
                if is_lost_write(&source) {
                    state.broken = Some(source.to_string());
                }
                Err(name_failure(table, operation, source))
            }
        }
    }
}

fn in_transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let value = work(&transaction)?;
    transaction.commit()?;
    Ok(value)
}

/// An input/output error leaves open what reached the disk. A full disk does not: SQLite rolls back.
fn is_lost_write(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::SystemIoFailure | ErrorCode::DatabaseCorrupt)
    )
}

fn name_failure(table: &'static str, operation: &'static str, source: rusqlite::Error) -> RegistryError {
    const TAKEN: [i32; 2] = [
        rusqlite::ffi::SQLITE_CONSTRAINT_UNIQUE,
        rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY,
    ];
    match &source {
        rusqlite::Error::SqliteFailure(code, message) if TAKEN.contains(&code.extended_code) => {
            // SQLite says `UNIQUE constraint failed: containers.name`.
            let key = message
                .as_deref()
                .and_then(|text| text.rsplit(": ").next())
                .unwrap_or("that key");
            RegistryError::Exists {
                table,
                key: key.to_owned(),
            }
        }
        _ => RegistryError::Statement {
            table,
            operation,
            source,
        },
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::ffi;

    use super::*;

    #[tokio::test]
    async fn nothing_is_read_or_written_after_a_failed_sync() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let fail = |code| {
            let error = rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
            registry.transaction::<(), _>("images", "try", move |_| Err(error))
        };
        assert!(matches!(
            fail(ffi::SQLITE_FULL).await,
            Err(RegistryError::Statement { .. })
        ));
        registry.images().list().await.unwrap();
        assert!(matches!(
            fail(ffi::SQLITE_IOERR_FSYNC).await,
            Err(RegistryError::Statement { .. })
        ));
        let error = registry.images().list().await.unwrap_err();
        assert!(error.to_string().contains("restart transhipd"), "{error}");
    }

    #[tokio::test]
    async fn a_failed_transaction_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let half = |db: &Transaction<'_>| {
            db.execute("INSERT INTO hosts VALUES ('b', 'x', 1, 0)", [])?;
            db.execute("INSERT INTO nothing VALUES (1)", [])
        };
        registry.transaction("hosts", "try", half).await.unwrap_err();
        let count = |db: &Transaction<'_>| db.query_row("SELECT count(*) FROM hosts", [], |row| row.get(0));
        assert_eq!(
            registry
                .transaction::<i64, _>("hosts", "count", count)
                .await
                .unwrap(),
            0
        );
    }
}
