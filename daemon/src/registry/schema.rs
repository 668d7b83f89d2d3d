//! The shape of the file. `user_version` counts the steps that were taken; a step is never changed once released.

use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use super::error::RegistryError;

/// Each entry brings a file of version N (its index) to N + 1.
const STEPS: &[&str] = &[VERSION_1, VERSION_2, VERSION_3];

/// The journal of a migration that is forgotten goes with its record, and only one that has ended is forgotten.
const VERSION_3: &str = "
DROP TRIGGER handoff_journal_is_never_shortened;

CREATE TRIGGER handoff_journal_is_never_shortened BEFORE DELETE ON handoff_journal
WHEN EXISTS (SELECT 1 FROM migrations WHERE id = OLD.migration_id AND role = OLD.role)
BEGIN SELECT RAISE(ABORT, 'the handoff journal is only appended to'); END;

CREATE TRIGGER migrations_are_forgotten_when_they_have_ended BEFORE DELETE ON migrations
WHEN OLD.outcome IN ('unspecified', 'unknown')
BEGIN SELECT RAISE(ABORT, 'a migration that has not ended is not forgotten'); END;
";

const VERSION_2: &str = "ALTER TABLE containers ADD COLUMN memory_lost INTEGER NOT NULL DEFAULT 0;";

const VERSION_1: &str = "
CREATE TABLE containers (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    spec            TEXT NOT NULL,
    state           TEXT NOT NULL,
    pid             INTEGER NOT NULL,
    exit_code       INTEGER NOT NULL,
    oom_killed      INTEGER NOT NULL,
    created_ms      INTEGER NOT NULL,
    started_ms      INTEGER NOT NULL,
    finished_ms     INTEGER NOT NULL,
    epoch           INTEGER NOT NULL,
    ip              TEXT NOT NULL,
    mac             TEXT NOT NULL,
    image_digest    TEXT NOT NULL,
    runtime_config  TEXT NOT NULL
) STRICT;

-- What is left of a container that was handed over: who owns it, and from which epoch on.
CREATE TABLE tombstones (
    id              TEXT PRIMARY KEY,
    name            TEXT NOT NULL,
    moved_to        TEXT NOT NULL,
    epoch           INTEGER NOT NULL,
    moved_ms        INTEGER NOT NULL,
    container       TEXT NOT NULL
) STRICT;

CREATE TABLE images (
    digest          TEXT PRIMARY KEY,
    layers          TEXT NOT NULL,
    size_bytes      INTEGER NOT NULL,
    created_ms      INTEGER NOT NULL,
    architecture    TEXT NOT NULL,
    config          TEXT NOT NULL
) STRICT;

CREATE TABLE image_names (
    name            TEXT PRIMARY KEY,
    digest          TEXT NOT NULL REFERENCES images (digest) ON DELETE CASCADE
) STRICT;

CREATE TABLE volumes (
    name            TEXT PRIMARY KEY,
    driver          TEXT NOT NULL,
    created_ms      INTEGER NOT NULL,
    labels          TEXT NOT NULL,
    anonymous       INTEGER NOT NULL,
    -- The container it is being received for; it is nobody's volume before that container runs here.
    receiving_for   TEXT
) STRICT;

CREATE TABLE hosts (
    name            TEXT PRIMARY KEY,
    address         TEXT NOT NULL,
    generation      INTEGER NOT NULL,
    removed         INTEGER NOT NULL
) STRICT;

-- Only a hash of the secret is kept.
CREATE TABLE tokens (
    hash            TEXT PRIMARY KEY,
    created_ms      INTEGER NOT NULL,
    expires_ms      INTEGER NOT NULL,
    used_ms         INTEGER,
    used_by         TEXT
) STRICT;

CREATE TABLE migrations (
    id              TEXT NOT NULL,
    role            TEXT NOT NULL,
    container_id    TEXT NOT NULL,
    peer            TEXT NOT NULL,
    phase           TEXT NOT NULL,
    outcome         TEXT NOT NULL,
    record          TEXT NOT NULL,
    boot_id         TEXT NOT NULL,
    created_ms      INTEGER NOT NULL,
    updated_ms      INTEGER NOT NULL,
    PRIMARY KEY (id, role)
) STRICT;

CREATE INDEX migrations_of_container ON migrations (container_id);

CREATE TABLE handoff_journal (
    migration_id    TEXT NOT NULL,
    role            TEXT NOT NULL,
    sequence        INTEGER NOT NULL,
    step            TEXT NOT NULL,
    epoch           INTEGER NOT NULL,
    data            TEXT NOT NULL,
    time_ms         INTEGER NOT NULL,
    PRIMARY KEY (migration_id, role, sequence)
) STRICT;

CREATE TRIGGER handoff_journal_is_never_changed BEFORE UPDATE ON handoff_journal
BEGIN SELECT RAISE(ABORT, 'the handoff journal is only appended to'); END;

CREATE TRIGGER handoff_journal_is_never_shortened BEFORE DELETE ON handoff_journal
BEGIN SELECT RAISE(ABORT, 'the handoff journal is only appended to'); END;
";

fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn newest() -> i64 {
    STEPS.len() as i64
}

/// Refuses a file that a newer build wrote, before anything is changed in it.
pub fn refuse_newer(connection: &Connection, path: &Path) -> Result<(), RegistryError> {
    let open = |source| RegistryError::Open {
        path: path.to_owned(),
        source,
    };
    let found = version(connection).map_err(open)?;
    let known = newest();
    if found > known {
        Err(RegistryError::Newer {
            path: path.to_owned(),
            found,
            known,
        })
    } else {
        Ok(())
    }
}

/// Takes the steps that the file has not seen, all in one transaction.
pub fn upgrade(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let from = usize::try_from(version(&transaction)?).unwrap_or(0);
    for step in STEPS.iter().skip(from) {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "user_version", newest())?;
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::super::Registry;
    use super::*;

    #[test]
    fn a_file_of_a_newer_build_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("CREATE TABLE later (x); PRAGMA user_version = 99;")
            .unwrap();
        drop(connection);
        let before = std::fs::read(&path).unwrap();
        let Err(error) = Registry::open(&path) else {
            panic!("a newer file was opened")
        };
        let text = error.to_string();
        assert!(
            text.contains("schema 99") && text.contains("nothing was changed"),
            "{text}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn opening_twice_takes_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registry.db");
        drop(Registry::open(&path).unwrap());
        drop(Registry::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        assert_eq!(version(&connection).unwrap(), newest());
        let mode: String = connection
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "wal");
    }
}
