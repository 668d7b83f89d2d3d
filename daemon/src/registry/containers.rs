//! Containers that are here, and tombstones of those that were handed to another host.

use rusqlite::{OptionalExtension, Row, Transaction, named_params};
use tranship_proto::ids::{ContainerId, Digest, Name};
use tranship_proto::v1::{self, ContainerState};

use super::columns::{Count, Json, Text, Word};
use super::{Registry, RegistryError};

const TABLE: &str = "containers";

/// One container that is here.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerRecord {
    /// The same on every host.
    pub id: ContainerId,
    /// Unique among the containers that are here.
    pub name: Name,
    /// What the user asked for, with this host's defaults filled in when it was created.
    pub spec: v1::ContainerSpec,
    /// Never `MOVED`: that is a [`Tombstone`].
    pub state: ContainerState,
    /// Host pid of the first process; 0 when it does not run.
    pub pid: i32,
    /// Valid in the state `EXITED`.
    pub exit_code: i32,
    /// Whether the kernel killed it for its memory limit.
    pub oom_killed: bool,
    /// Killed because its memory could not be completed after a migration.
    pub memory_lost: bool,
    /// When it was created, on the host that created it.
    pub created_ms: i64,
    /// When it was started; 0 before.
    pub started_ms: i64,
    /// When it ended; 0 before.
    pub finished_ms: i64,
    /// Grows by one at each handoff.
    pub epoch: u64,
    /// IPv4 address; empty without one.
    pub ip: String,
    /// Empty without one.
    pub mac: String,
    /// Manifest of the image it was made from.
    pub image_digest: Digest,
    /// The OCI runtime configuration it was started with, as JSON; empty before.
    pub runtime_config: String,
}

impl ContainerRecord {
    /// The record as the API shows it, answered by `host`.
    #[must_use]
    pub fn to_message(&self, host: &str) -> v1::Container {
        let record = self.clone();
        v1::Container {
            id: record.id.into(),
            spec: Some(record.spec),
            state: record.state.into(),
            pid: record.pid,
            exit_code: record.exit_code,
            created_ms: record.created_ms,
            started_ms: record.started_ms,
            finished_ms: record.finished_ms,
            epoch: record.epoch,
            host: host.to_owned(),
            ip: record.ip,
            mac: record.mac,
            image_digest: record.image_digest.into(),
            moved_to: String::new(),
            oom_killed: record.oom_killed,
            memory_lost: record.memory_lost,
        }
    }
}

/// What is left of a container that was handed over.
#[derive(Clone, Debug, PartialEq)]
pub struct Tombstone {
    /// Its id, here and there.
    pub id: ContainerId,
    /// Its name; may be another container's by now.
    pub name: Name,
    /// The host that owns it.
    pub moved_to: String,
    /// From this epoch on it is theirs.
    pub epoch: u64,
    /// When it was handed over.
    pub moved_ms: i64,
    /// The container as it was last seen here, in the state `MOVED`.
    pub container: v1::Container,
}

/// The tables of containers and tombstones.
pub struct Containers<'a>(pub(super) &'a Registry);

impl Containers<'_> {
    /// Adds a container.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] when the id or the name is taken.
    pub async fn insert(&self, record: ContainerRecord) -> Result<(), RegistryError> {
        let work = move |db: &Transaction<'_>| {
            write(
                db,
                &record,
                &format!("INSERT INTO containers ({COLUMNS}) VALUES ({VALUES})"),
            )
        };
        self.0.transaction(TABLE, "insert a container", work).await
    }

    /// The container with that id.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn get(&self, id: &ContainerId) -> Result<Option<ContainerRecord>, RegistryError> {
        let id = id.clone();
        let work = move |db: &Transaction<'_>| find(db, &id);
        self.0.transaction(TABLE, "read a container", work).await
    }

    /// Every container, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self) -> Result<Vec<ContainerRecord>, RegistryError> {
        let work = |db: &Transaction<'_>| {
            let mut statement = db.prepare("SELECT * FROM containers ORDER BY created_ms, id")?;
            statement.query_map([], read)?.collect()
        };
        self.0.transaction(TABLE, "list containers", work).await
    }

    /// Reads a container, lets `change` change it and writes it back, in one transaction. Answers with the record as it
    /// is then, or `None` where there is no such container.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn update<F>(
        &self,
        id: &ContainerId,
        change: F,
    ) -> Result<Option<ContainerRecord>, RegistryError>
    where
        F: FnOnce(&mut ContainerRecord) + Send + 'static,
    {
        let id = id.clone();
        let work = move |db: &Transaction<'_>| change_in(db, &id, change);
        self.0.transaction(TABLE, "change a container", work).await
    }

    /// As [`Self::update`], for a container that came back to a host it once left: the tombstone goes too.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn take_over<F>(
        &self,
        id: &ContainerId,
        change: F,
    ) -> Result<Option<ContainerRecord>, RegistryError>
    where
        F: FnOnce(&mut ContainerRecord) + Send + 'static,
    {
        let id = id.clone();
        let work = move |db: &Transaction<'_>| {
            let record = change_in(db, &id, change)?;
            if record.is_some() {
                db.execute("DELETE FROM tombstones WHERE id = ?1", [Text(&id)])?;
            }
            Ok(record)
        };
        self.0.transaction(TABLE, "take a container over", work).await
    }

    /// Forgets a container. False where there was none.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remove(&self, id: &ContainerId) -> Result<bool, RegistryError> {
        let id = id.clone();
        let work = move |db: &Transaction<'_>| delete(db, "DELETE FROM containers WHERE id = ?1", &id);
        self.0.transaction(TABLE, "remove a container", work).await
    }

    /// Puts a tombstone in the container's place, in one transaction. Doing it again changes nothing.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn bury(&self, tombstone: Tombstone) -> Result<(), RegistryError> {
        let work = move |db: &Transaction<'_>| {
            delete(db, "DELETE FROM containers WHERE id = ?1", &tombstone.id)?;
            let sql = "INSERT OR REPLACE INTO tombstones (id, name, moved_to, epoch, moved_ms, container)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            db.execute(
                sql,
                (
                    Text(&tombstone.id),
                    Text(&tombstone.name),
                    &tombstone.moved_to,
                    Count(tombstone.epoch),
                    tombstone.moved_ms,
                    Json(&tombstone.container),
                ),
            )
            .map(drop)
        };
        self.0.transaction("tombstones", "put a tombstone", work).await
    }

    /// The tombstone of a container that once was here.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn tombstone(&self, id: &ContainerId) -> Result<Option<Tombstone>, RegistryError> {
        let id = id.clone();
        let work = move |db: &Transaction<'_>| {
            let sql = "SELECT * FROM tombstones WHERE id = ?1";
            db.query_row(sql, [Text(&id)], read_tombstone).optional()
        };
        self.0.transaction("tombstones", "read a tombstone", work).await
    }

    /// Every tombstone, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn tombstones(&self) -> Result<Vec<Tombstone>, RegistryError> {
        let work = |db: &Transaction<'_>| {
            let mut statement = db.prepare("SELECT * FROM tombstones ORDER BY moved_ms, id")?;
            statement.query_map([], read_tombstone)?.collect()
        };
        self.0.transaction("tombstones", "list tombstones", work).await
    }

    /// Forgets a tombstone. False where there was none.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remove_tombstone(&self, id: &ContainerId) -> Result<bool, RegistryError> {
        let id = id.clone();
        let work = move |db: &Transaction<'_>| delete(db, "DELETE FROM tombstones WHERE id = ?1", &id);
        self.0.transaction("tombstones", "remove a tombstone", work).await
    }
}

fn find(db: &Transaction<'_>, id: &ContainerId) -> rusqlite::Result<Option<ContainerRecord>> {
    db.query_row("SELECT * FROM containers WHERE id = ?1", [Text(id)], read)
        .optional()
}

fn delete(db: &Transaction<'_>, sql: &str, id: &ContainerId) -> rusqlite::Result<bool> {
    db.execute(sql, [Text(id)]).map(|rows| rows > 0)
}

fn change_in(
    db: &Transaction<'_>,
    id: &ContainerId,
    change: impl FnOnce(&mut ContainerRecord),
) -> rusqlite::Result<Option<ContainerRecord>> {
    let Some(mut record) = find(db, id)? else {
        return Ok(None);
    };
    change(&mut record);
    write(
        db,
        &record,
        &format!("UPDATE containers SET ({COLUMNS}) = ({VALUES}) WHERE id = :id"),
    )?;
    Ok(Some(record))
}

/// The columns, and in the same order what goes into them.
const COLUMNS: &str = "id, name, spec, state, pid, exit_code, oom_killed, memory_lost, created_ms, started_ms, finished_ms, epoch, \
                       ip, mac, image_digest, runtime_config";
const VALUES: &str = ":id, :name, :spec, :state, :pid, :exit_code, :oom_killed, :memory_lost, :created_ms, :started_ms, \
                      :finished_ms, :epoch, :ip, :mac, :image_digest, :runtime_config";

fn write(db: &Transaction<'_>, record: &ContainerRecord, sql: &str) -> rusqlite::Result<()> {
    let values = named_params! {
        ":id": Text(&record.id),
        ":name": Text(&record.name),
        ":spec": Json(&record.spec),
        ":state": Word(record.state),
        ":pid": record.pid,
        ":exit_code": record.exit_code,
        ":oom_killed": record.oom_killed,
        ":memory_lost": record.memory_lost,
        ":created_ms": record.created_ms,
        ":started_ms": record.started_ms,
        ":finished_ms": record.finished_ms,
        ":epoch": Count(record.epoch),
        ":ip": record.ip,
        ":mac": record.mac,
        ":image_digest": Text(&record.image_digest),
        ":runtime_config": record.runtime_config,
    };
    db.execute(sql, values).map(drop)
}

fn read(row: &Row<'_>) -> rusqlite::Result<ContainerRecord> {
    Ok(ContainerRecord {
        id: row.get::<_, Text<_>>("id")?.0,
        name: row.get::<_, Text<_>>("name")?.0,
        spec: row.get::<_, Json<_>>("spec")?.0,
        state: row.get::<_, Word<_>>("state")?.0,
        pid: row.get("pid")?,
        exit_code: row.get("exit_code")?,
        oom_killed: row.get("oom_killed")?,
        memory_lost: row.get("memory_lost")?,
        created_ms: row.get("created_ms")?,
        started_ms: row.get("started_ms")?,
        finished_ms: row.get("finished_ms")?,
        epoch: row.get::<_, Count>("epoch")?.0,
        ip: row.get("ip")?,
        mac: row.get("mac")?,
        image_digest: row.get::<_, Text<_>>("image_digest")?.0,
        runtime_config: row.get("runtime_config")?,
    })
}

fn read_tombstone(row: &Row<'_>) -> rusqlite::Result<Tombstone> {
    Ok(Tombstone {
        id: row.get::<_, Text<_>>("id")?.0,
        name: row.get::<_, Text<_>>("name")?.0,
        moved_to: row.get("moved_to")?,
        epoch: row.get::<_, Count>("epoch")?.0,
        moved_ms: row.get("moved_ms")?,
        container: row.get::<_, Json<_>>("container")?.0,
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A running container named `name`; `seed` makes the id.
    pub fn record(seed: u8, name: &str) -> ContainerRecord {
        ContainerRecord {
            id: ContainerId::from_random([seed; 32]),
            name: name.parse().unwrap(),
            spec: v1::ContainerSpec {
                name: name.into(),
                image: "busybox".into(),
                ..Default::default()
            },
            state: ContainerState::Running,
            pid: 42,
            exit_code: 0,
            oom_killed: false,
            memory_lost: false,
            created_ms: 1,
            started_ms: 2,
            finished_ms: 0,
            epoch: 7,
            ip: "10.77.0.50".into(),
            mac: "02:00:00:00:00:01".into(),
            image_digest: Digest::from_sha256(&[1; 32]),
            runtime_config: "{}".into(),
        }
    }

    #[tokio::test]
    async fn a_record_is_the_same_after_the_file_was_closed_and_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.db");
        let written = record(1, "web");
        Registry::open(&path)
            .unwrap()
            .containers()
            .insert(written.clone())
            .await
            .unwrap();
        let registry = Registry::open(&path).unwrap();
        assert_eq!(
            registry.containers().get(&written.id).await.unwrap(),
            Some(written)
        );
    }

    #[tokio::test]
    async fn a_name_is_taken_until_its_container_has_moved() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let containers = registry.containers();
        let (first, second) = (record(1, "web"), record(2, "web"));
        containers.insert(first.clone()).await.unwrap();
        assert!(containers.insert(second.clone()).await.unwrap_err().is_exists());
        let tombstone = Tombstone {
            id: first.id.clone(),
            name: first.name.clone(),
            moved_to: "b".into(),
            epoch: 8,
            moved_ms: 3,
            container: first.to_message("a"),
        };
        containers.bury(tombstone.clone()).await.unwrap();
        containers.bury(tombstone.clone()).await.unwrap();
        containers.insert(second.clone()).await.unwrap();
        assert_eq!(containers.get(&first.id).await.unwrap(), None);
        assert_eq!(containers.tombstone(&first.id).await.unwrap(), Some(tombstone));
    }

    #[tokio::test]
    async fn a_container_that_comes_back_leaves_no_tombstone() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let containers = registry.containers();
        let back = record(1, "web");
        let tombstone = Tombstone {
            id: back.id.clone(),
            name: back.name.clone(),
            moved_to: "b".into(),
            epoch: 8,
            moved_ms: 3,
            container: back.to_message("a"),
        };
        containers.bury(tombstone).await.unwrap();
        containers.insert(back.clone()).await.unwrap();
        let now = containers
            .take_over(&back.id, |record| record.epoch = 9)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(now.epoch, 9);
        assert_eq!(containers.tombstones().await.unwrap(), []);
    }
}
