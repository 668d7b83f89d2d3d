//! The one connection, and how work gets onto it from asynchronous code.

use std::fmt::{self, Display};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;
use tranship_proto::points::{self, Injected};

use super::error::RegistryError;
use super::{Containers, Images, Migrations, Volumes, schema};

/// How long a statement waits for an operator's `sqlite3` that holds the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// What [`Registry::keep_room`] keeps: some dozen transactions, of a few pages each.
const ROOM_BYTES: u64 = 1 << 20;

/// The registry; clones share the one connection.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    /// Cancelled with the first failure of that kind.
    broken: CancellationToken,
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
        make_certain(&connection).map_err(open)?;
        let state = Mutex::new(State {
            connection,
            broken: None,
        });
        Ok(Self {
            shared: Arc::new(Shared {
                path: path.to_owned(),
                state,
                broken: CancellationToken::new(),
            }),
        })
    }

    /// Returns when a write or a sync has failed: what is stored is unknown from then on, and only a process that opens the file anew can
    /// find out.
    pub async fn until_broken(&self) {
        self.shared.broken.cancelled().await;
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

    /// Keeps so much of the disk free for the next transactions that they can be written when it is full. On a file system that
    /// cannot promise that, nothing is done.
    ///
    /// # Errors
    /// [`RegistryError::NoRoom`].
    pub async fn keep_room(&self) -> Result<(), RegistryError> {
        let shared = Arc::clone(&self.shared);
        let task = tokio::task::spawn_blocking(move || shared.keep_room());
        let kept = task.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        kept.map_err(|source| RegistryError::NoRoom {
            path: self.path().to_owned(),
            source,
        })
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

    /// Transactions are written to the end of SQLite's log, whose blocks beyond its end stay its own.
    fn keep_room(&self) -> io::Result<()> {
        let _nobody_writes = self.lock();
        let mut log = self.path.clone().into_os_string();
        log.push("-wal");
        let log = File::options().write(true).open(log)?;
        match fallocate(&log, FallocateFlags::KEEP_SIZE, log.metadata()?.len(), ROOM_BYTES) {
            Err(Errno::OPNOTSUPP) => Ok(()),
            kept => Ok(kept?),
        }
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
        match in_transaction(&mut state.connection, operation, work) {
            Ok(value) => Ok(value),
            Err(source) => {
                if is_lost_write(&source) {
                    state.broken = Some(source.to_string());
                    self.broken.cancel();
                }
                Err(name_failure(table, operation, source))
            }
        }
    }
}

/// Makes what can be read something that stays. After a sync that failed the kernel has pages that are not on the disk, and says so
/// once: the file is read as if they were. So what the log has goes into the database, by writes and a sync of their own, and a log that is
/// begun anew takes its place. Where there is no room for that it is left as it is.
fn make_certain(connection: &Connection) -> rusqlite::Result<()> {
    let checkpoint = "PRAGMA wal_checkpoint(RESTART)";
    let is_busy = match connection.query_row(checkpoint, [], |row| row.get(0)) {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => return Ok(()),
        answer => answer?,
    };
    if is_busy {
        tracing::warn!("somebody else reads the registry, so what it says is believed as it is");
        return Ok(());
    }
    // The first transaction behind it writes and syncs the log's new header: the old log ends to count.
    let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    connection.pragma_update(None, "user_version", version)
}

fn in_transaction<T>(
    connection: &mut Connection,
    operation: &'static str,
    work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let before = transaction.total_changes();
    let value = work(&transaction)?;
    if transaction.total_changes() == before {
        transaction.commit()?;
    } else {
        points::step_or(Point(operation), injected, || transaction.commit())?;
    }
    Ok(value)
}

/// The fault point of an operation that has changed something, and is about to be written and synced.
struct Point(&'static str);

impl Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "registry:{}", self.0.replace(' ', "-"))
    }
}

/// As SQLite says it: of a full disk, or of a write of which nobody knows whether it is there.
fn injected(injected: Injected) -> rusqlite::Error {
    let code = match injected {
        Injected::Instead => rusqlite::ffi::SQLITE_FULL,
        Injected::Behind => rusqlite::ffi::SQLITE_IOERR_FSYNC,
    };
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(code),
        Some("injected by a test".to_owned()),
    )
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
    async fn what_room_is_kept_for_can_be_written_when_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let mounted = nix::mount::mount(
            Some("small"),
            dir.path(),
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some("size=4m"),
        );
        let _unmounted = mounted.map(|()| Unmount(dir.path().to_owned())).unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let write = |number: i64| {
            registry.transaction("tokens", "try", move |db| {
                let sql = "INSERT INTO tokens (hash, created_ms, expires_ms) VALUES (?1, 0, 0)";
                db.execute(sql, [format!("{number:04000}")])
            })
        };
        let ballast = dir.path().join("ballast");
        fill(&ballast);
        let mut number = 0;
        while write(number).await.is_ok() {
            number += 1;
            assert!(number < 1000, "a full disk takes everything");
        }
        assert!(matches!(
            registry.keep_room().await,
            Err(RegistryError::NoRoom { .. })
        ));
        std::fs::remove_file(&ballast).unwrap();
        registry.keep_room().await.unwrap();
        fill(&ballast);
        for number in 1000..1024 {
            write(number).await.unwrap();
        }
    }

    struct Unmount(PathBuf);

    impl Drop for Unmount {
        fn drop(&mut self) {
            nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
        }
    }

    /// To the last byte.
    fn fill(path: &Path) {
        use std::io::Write;
        let mut file = File::create(path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

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
        assert!(error.to_string().contains("what is stored is unknown"), "{error}");
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
