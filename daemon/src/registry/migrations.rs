//! Migrations as people see them, and the handoff journal as recovery reads it.
//!
//! The record of a migration is a convenience: it may lag. The journal decides: one row a step, only ever appended until the whole
//! migration is forgotten, durable before [`Migrations::append_step`] returns. The row that says `committed` is the commit point of DESIGN.md.

use rusqlite::{OptionalExtension, Row, Transaction};
use tranship_proto::ids::{ContainerId, MigrationId};
use tranship_proto::v1::{Migration, MigrationOutcome, MigrationRole, Phase};

use super::columns::{Count, Json, Text, Word};
use super::{Registry, RegistryError};

const TABLE: &str = "migrations";
const JOURNAL: &str = "handoff_journal";

/// One role's record of a migration.
#[derive(Clone, Debug, PartialEq)]
pub struct MigrationRecord {
    /// What the API shows; id, role, phase and outcome are taken from here.
    pub migration: Migration,
    /// Boot id of the machine when it began: another one means that no process of it is left.
    pub boot_id: String,
    /// When it began here.
    pub created_ms: i64,
    /// When it last changed.
    pub updated_ms: i64,
}

impl MigrationRecord {
    /// The other host.
    #[must_use]
    pub fn peer(&self) -> &str {
        match self.migration.role() {
            MigrationRole::Destination => &self.migration.source,
            _ => &self.migration.destination,
        }
    }
}

/// One step of a handoff.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalStep {
    /// Which migration.
    pub migration_id: MigrationId,
    /// Whose step.
    pub role: MigrationRole,
    /// From 1, without gaps, for each migration and role.
    pub sequence: u64,
    /// The step's word, such as `committed`.
    pub step: String,
    /// The epoch it is about.
    pub epoch: u64,
    /// What recovery needs beside, as JSON.
    pub data: serde_json::Value,
    /// When it was written.
    pub time_ms: i64,
}

/// The tables of migrations and of the handoff journal.
pub struct Migrations<'a>(pub(super) &'a Registry);

impl Migrations<'_> {
    /// Adds a migration.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] when this role's record is there already.
    pub async fn insert(&self, record: MigrationRecord) -> Result<(), RegistryError> {
        let work = move |db: &Transaction<'_>| write(db, &record, "");
        self.0.transaction(TABLE, "insert a migration", work).await
    }

    /// Writes the record of this migration and role, whether there was one or not.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn update(&self, record: MigrationRecord) -> Result<(), RegistryError> {
        let changed = "ON CONFLICT (id, role) DO UPDATE SET container_id = ?3, peer = ?4, phase = ?5, outcome = ?6, record = ?7,
                       boot_id = ?8, created_ms = ?9, updated_ms = ?10";
        let work = move |db: &Transaction<'_>| write(db, &record, changed);
        self.0.transaction(TABLE, "change a migration", work).await
    }

    /// This role's record of a migration.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn get(
        &self,
        id: MigrationId,
        role: MigrationRole,
    ) -> Result<Option<MigrationRecord>, RegistryError> {
        let work = move |db: &Transaction<'_>| {
            let sql = "SELECT * FROM migrations WHERE id = ?1 AND role = ?2";
            db.query_row(sql, (Text(id), Word(role)), read).optional()
        };
        self.0.transaction(TABLE, "read a migration", work).await
    }

    /// Every record, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self) -> Result<Vec<MigrationRecord>, RegistryError> {
        self.select("list migrations", "SELECT * FROM migrations ORDER BY rowid")
            .await
    }

    /// The records without an outcome, and those whose outcome is unknown: recovery's work.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn unfinished(&self) -> Result<Vec<MigrationRecord>, RegistryError> {
        let sql = "SELECT * FROM migrations WHERE outcome IN ('unspecified', 'unknown') ORDER BY rowid";
        self.select("list unfinished migrations", sql).await
    }

    /// The records about one container, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn of_container(&self, id: &ContainerId) -> Result<Vec<MigrationRecord>, RegistryError> {
        let id = id.clone();
        let work = move |db: &Transaction<'_>| {
            let sql = "SELECT * FROM migrations WHERE container_id = ?1 ORDER BY rowid";
            db.prepare(sql)?.query_map([Text(&id)], read)?.collect()
        };
        self.0
            .transaction(TABLE, "list migrations of a container", work)
            .await
    }

    /// Some of the records that have an outcome and are older than the newest `keep`, whatever became of those; none about a container
    /// of which another migration has no outcome yet, since what came behind that is read when it is taken up. Not always the same.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn ended_beyond(&self, keep: u32, at_most: u32) -> Result<Vec<MigrationRecord>, RegistryError> {
        let work = move |db: &Transaction<'_>| {
            // Those at the beginning may be none that can be forgotten, for long.
            let sql = "SELECT * FROM migrations WHERE container_id NOT IN (
                           SELECT container_id FROM migrations WHERE outcome IN ('unspecified', 'unknown'))
                       AND rowid <= (SELECT rowid FROM migrations ORDER BY rowid DESC LIMIT 1 OFFSET ?1)
                       ORDER BY RANDOM() LIMIT ?2";
            db.prepare(sql)?.query_map((keep, at_most), read)?.collect()
        };
        self.0
            .transaction(TABLE, "find migrations of long ago", work)
            .await
    }

    /// Forgets what roles of migrations have on record, their journals included: all of them, or none.
    ///
    /// # Errors
    /// The database cannot be written, or one of them has no outcome.
    pub async fn forget(&self, roles: Vec<(MigrationId, MigrationRole)>) -> Result<(), RegistryError> {
        let work = move |db: &Transaction<'_>| {
            for (id, role) in roles {
                // In this order: the journal of a migration that is on record cannot be shortened.
                for sql in [
                    "DELETE FROM migrations WHERE id = ?1 AND role = ?2",
                    "DELETE FROM handoff_journal WHERE migration_id = ?1 AND role = ?2",
                ] {
                    db.execute(sql, (Text(id), Word(role)))?;
                }
            }
            Ok(())
        };
        self.0.transaction(TABLE, "forget migrations", work).await
    }

    /// Appends a step and answers with its number. On stable storage when it returns `Ok`; after an error it is
    /// **unknown** whether the step is there.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn append_step(
        &self,
        id: MigrationId,
        role: MigrationRole,
        step: &str,
        epoch: u64,
        data: serde_json::Value,
    ) -> Result<u64, RegistryError> {
        let step = step.to_owned();
        let time_ms = crate::clock::now_ms();
        let work = move |db: &Transaction<'_>| {
            let sql = "INSERT INTO handoff_journal (migration_id, role, sequence, step, epoch, data, time_ms)
                       SELECT ?1, ?2, COALESCE(MAX(sequence), 0) + 1, ?3, ?4, ?5, ?6 FROM handoff_journal
                       WHERE migration_id = ?1 AND role = ?2 RETURNING sequence";
            let values = (Text(id), Word(role), step, Count(epoch), Json(data), time_ms);
            db.query_row(sql, values, |row| row.get::<_, Count>(0))
                .map(|sequence| sequence.0)
        };
        self.0.transaction(JOURNAL, "append a step", work).await
    }

    /// The steps of one role of a migration, in order.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn steps(
        &self,
        id: MigrationId,
        role: MigrationRole,
    ) -> Result<Vec<JournalStep>, RegistryError> {
        let work = move |db: &Transaction<'_>| {
            let sql = "SELECT * FROM handoff_journal WHERE migration_id = ?1 AND role = ?2 ORDER BY sequence";
            db.prepare(sql)?
                .query_map((Text(id), Word(role)), read_step)?
                .collect()
        };
        self.0.transaction(JOURNAL, "read the steps", work).await
    }

    /// The migrations that a person has decided at this host, and whose other host has not obeyed yet.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn untold(&self) -> Result<Vec<(MigrationId, MigrationRole)>, RegistryError> {
        let work = |db: &Transaction<'_>| {
            let sql = "SELECT DISTINCT migration_id, role FROM handoff_journal AS decided
                       WHERE step IN ('taken_back', 'taken_over') AND NOT EXISTS (
                           SELECT 1 FROM handoff_journal WHERE migration_id = decided.migration_id
                           AND role = decided.role AND step = 'told')";
            let read = |row: &Row<'_>| Ok((row.get::<_, Text<_>>(0)?.0, row.get::<_, Word<_>>(1)?.0));
            db.prepare(sql)?.query_map([], read)?.collect()
        };
        self.0.transaction(JOURNAL, "find what is to be told", work).await
    }

    async fn select(
        &self,
        operation: &'static str,
        sql: &'static str,
    ) -> Result<Vec<MigrationRecord>, RegistryError> {
        let work = move |db: &Transaction<'_>| db.prepare(sql)?.query_map([], read)?.collect();
        self.0.transaction(TABLE, operation, work).await
    }
}

/// A row keeps its place when it is changed, so that the order of rows is that in which migrations began, whatever the clock said.
fn write(db: &Transaction<'_>, record: &MigrationRecord, conflict: &str) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT INTO migrations (id, role, container_id, peer, phase, outcome, record, boot_id, created_ms, updated_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) {conflict}"
    );
    let migration = &record.migration;
    let values = (
        &migration.id,
        Word(migration.role()),
        &migration.container_id,
        record.peer(),
        Word(migration.phase()),
        Word(migration.outcome()),
        Json(migration),
        &record.boot_id,
        record.created_ms,
        record.updated_ms,
    );
    db.execute(&sql, values).map(drop)
}

fn read(row: &Row<'_>) -> rusqlite::Result<MigrationRecord> {
    // The words beside the message are checked too: a row that somebody edited by hand is an error, not a guess.
    row.get::<_, Word<Phase>>("phase")?;
    row.get::<_, Word<MigrationOutcome>>("outcome")?;
    Ok(MigrationRecord {
        migration: row.get::<_, Json<_>>("record")?.0,
        boot_id: row.get("boot_id")?,
        created_ms: row.get("created_ms")?,
        updated_ms: row.get("updated_ms")?,
    })
}

fn read_step(row: &Row<'_>) -> rusqlite::Result<JournalStep> {
    Ok(JournalStep {
        migration_id: row.get::<_, Text<_>>("migration_id")?.0,
        role: row.get::<_, Word<_>>("role")?.0,
        sequence: row.get::<_, Count>("sequence")?.0,
        step: row.get("step")?,
        epoch: row.get::<_, Count>("epoch")?.0,
        data: row.get::<_, Json<_>>("data")?.0,
        time_ms: row.get("time_ms")?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn record(id: MigrationId, outcome: MigrationOutcome) -> MigrationRecord {
        let migration = Migration {
            id: id.to_string(),
            container_id: "c".into(),
            source: "a".into(),
            destination: "b".into(),
            role: MigrationRole::Source.into(),
            phase: Phase::Freeze.into(),
            outcome: outcome.into(),
            ..Default::default()
        };
        MigrationRecord {
            migration,
            boot_id: "boot".into(),
            created_ms: 1,
            updated_ms: 2,
        }
    }

    #[tokio::test]
    async fn steps_are_numbered_for_each_role_and_survive_the_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.db");
        let id = MigrationId::generate();
        let (source, destination) = (MigrationRole::Source, MigrationRole::Destination);
        {
            let registry = Registry::open(&path).unwrap();
            let journal = registry.migrations();
            assert_eq!(
                journal
                    .append_step(id, source, "intent", 3, json!({"to": "b"}))
                    .await
                    .unwrap(),
                1
            );
            assert_eq!(
                journal
                    .append_step(id, source, "committed", 4, json!(null))
                    .await
                    .unwrap(),
                2
            );
            assert_eq!(
                journal
                    .append_step(id, destination, "reserved", 4, json!(null))
                    .await
                    .unwrap(),
                1
            );
        }
        let registry = Registry::open(&path).unwrap();
        let steps = registry.migrations().steps(id, source).await.unwrap();
        let words: Vec<_> = steps
            .iter()
            .map(|step| (step.sequence, step.step.as_str(), step.epoch))
            .collect();
        assert_eq!(words, [(1, "intent", 3), (2, "committed", 4)]);
        assert_eq!(steps[0].data, json!({"to": "b"}));
        assert!(
            registry
                .migrations()
                .steps(MigrationId::generate(), source)
                .await
                .unwrap()
                .is_empty()
        );
    }

    #[tokio::test]
    async fn the_journal_cannot_be_changed_or_shortened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.db");
        let registry = Registry::open(&path).unwrap();
        let id = MigrationId::generate();
        let done = record(id, MigrationOutcome::Done);
        registry.migrations().insert(done).await.unwrap();
        registry
            .migrations()
            .append_step(id, MigrationRole::Source, "committed", 1, json!(null))
            .await
            .unwrap();
        let connection = rusqlite::Connection::open(&path).unwrap();
        for sql in [
            "DELETE FROM handoff_journal",
            "UPDATE handoff_journal SET step = 'aborted'",
        ] {
            let error = connection.execute(sql, []).unwrap_err().to_string();
            assert!(error.contains("only appended to"), "{error}");
        }
    }

    #[tokio::test]
    async fn only_what_has_ended_and_is_old_is_forgotten_and_its_journal_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let (migrations, role) = (registry.migrations(), MigrationRole::Source);
        let ids: Vec<_> = (0..6).map(|_| MigrationId::generate()).collect();
        for (number, id) in ids.iter().enumerate() {
            let outcome = match number {
                1 => MigrationOutcome::Unknown,
                _ => MigrationOutcome::Done,
            };
            let mut record = record(*id, outcome);
            if number < 2 {
                record.migration.container_id = "in doubt".into();
            }
            migrations.insert(record).await.unwrap();
            migrations
                .append_step(*id, role, "committed", 1, json!(null))
                .await
                .unwrap();
        }
        let old = migrations.ended_beyond(2, 9).await.unwrap();
        let old: BTreeSet<_> = old.into_iter().map(|record| record.migration.id).collect();
        let expected = [ids[2].to_string(), ids[3].to_string()];
        assert_eq!(
            old,
            expected.into(),
            "neither the one in doubt nor one of its container"
        );
        assert_eq!(migrations.ended_beyond(2, 1).await.unwrap().len(), 1);
        assert!(migrations.ended_beyond(6, 9).await.unwrap().is_empty());
        let refused = migrations.forget(vec![(ids[2], role), (ids[1], role)]).await;
        let refused = tranship_migrate::error::chain(&refused.unwrap_err());
        assert!(refused.contains("not ended"), "{refused}");
        assert_eq!(
            migrations.steps(ids[2], role).await.unwrap().len(),
            1,
            "all or none"
        );
        migrations.forget(vec![(ids[2], role)]).await.unwrap();
        assert_eq!(migrations.get(ids[2], role).await.unwrap(), None);
        assert_eq!(migrations.steps(ids[2], role).await.unwrap(), []);
        assert_eq!(migrations.steps(ids[3], role).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn what_began_first_comes_first_whatever_the_clock_said_and_whatever_changed_since() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let migrations = registry.migrations();
        let ids: Vec<_> = (0..4).map(|_| MigrationId::generate()).collect();
        let order = || async {
            let all = migrations.list().await.unwrap();
            all.into_iter()
                .map(|record| record.migration.id.parse().unwrap())
                .collect::<Vec<MigrationId>>()
        };
        for (id, created_ms) in ids.iter().zip([7000, 3000, 9000, 1000]) {
            let begun = record(*id, MigrationOutcome::Unspecified);
            let begun = MigrationRecord { created_ms, ..begun };
            migrations.update(begun).await.unwrap();
        }
        assert_eq!(order().await, ids);
        migrations
            .update(record(ids[1], MigrationOutcome::Done))
            .await
            .unwrap();
        assert_eq!(order().await, ids);
    }

    #[tokio::test]
    async fn a_migration_is_unfinished_until_its_outcome_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let migrations = registry.migrations();
        let id = MigrationId::generate();
        for (outcome, unfinished) in [
            (MigrationOutcome::Unspecified, true),
            (MigrationOutcome::Unknown, true),
            (MigrationOutcome::Done, false),
            (MigrationOutcome::RolledBack, false),
        ] {
            migrations.update(record(id, outcome)).await.unwrap();
            assert_eq!(
                !migrations.unfinished().await.unwrap().is_empty(),
                unfinished,
                "{outcome:?}"
            );
        }
        assert!(
            migrations
                .insert(record(id, MigrationOutcome::Done))
                .await
                .unwrap_err()
                .is_exists()
        );
        let found = migrations.get(id, MigrationRole::Source).await.unwrap().unwrap();
        assert_eq!(found.peer(), "b");
    }
}
