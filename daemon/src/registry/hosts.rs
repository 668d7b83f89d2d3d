//! The hosts of the cluster. Of two records of one host the higher generation counts; a removed host stays as a record
//! that says so, or a sync with a host that missed the removal would bring it back.

use rusqlite::{OptionalExtension, Row, Transaction};
use tranship_proto::v1::HostRecord;

use super::columns::Count;
use super::{Registry, RegistryError};

const TABLE: &str = "hosts";

/// The table of hosts.
pub struct Hosts<'a>(pub(super) &'a Registry);

impl Hosts<'_> {
    /// Every record, the removed ones too, by name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self) -> Result<Vec<HostRecord>, RegistryError> {
        let work = |db: &Transaction<'_>| {
            let mut statement = db.prepare("SELECT * FROM hosts ORDER BY name")?;
            statement.query_map([], read)?.collect()
        };
        self.0.transaction(TABLE, "list hosts", work).await
    }

    /// The record of one host, removed or not.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn get(&self, name: &str) -> Result<Option<HostRecord>, RegistryError> {
        let name = name.to_owned();
        let work = move |db: &Transaction<'_>| find(db, &name);
        self.0.transaction(TABLE, "read a host", work).await
    }

    /// Takes each record that is newer than ours. Returns how many were.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn merge(&self, records: Vec<HostRecord>) -> Result<usize, RegistryError> {
        let work = move |db: &Transaction<'_>| {
            let mut taken = 0;
            for record in &records {
                let known = find(db, &record.name)?.map_or(0, |known| known.generation);
                if record.generation > known {
                    put(db, record)?;
                    taken += 1;
                }
            }
            Ok(taken)
        };
        self.0.transaction(TABLE, "merge host records", work).await
    }

    /// Sets a host's address, with the next generation; a removed host is a host again.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn set(&self, name: &str, address: &str) -> Result<HostRecord, RegistryError> {
        let (name, address) = (name.to_owned(), address.to_owned());
        let work = move |db: &Transaction<'_>| {
            let generation = find(db, &name)?.map_or(0, |known| known.generation) + 1;
            let record = HostRecord {
                name,
                address,
                generation,
                removed: false,
            };
            put(db, &record)?;
            Ok(record)
        };
        self.0.transaction(TABLE, "set a host", work).await
    }

    /// Marks a host as removed. `None` where there was none to remove.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remove(&self, name: &str) -> Result<Option<HostRecord>, RegistryError> {
        let name = name.to_owned();
        let work = move |db: &Transaction<'_>| {
            let Some(known) = find(db, &name)?.filter(|known| !known.removed) else {
                return Ok(None);
            };
            let record = HostRecord {
                generation: known.generation + 1,
                removed: true,
                ..known
            };
            put(db, &record)?;
            Ok(Some(record))
        };
        self.0.transaction(TABLE, "remove a host", work).await
    }
}

fn find(db: &Transaction<'_>, name: &str) -> rusqlite::Result<Option<HostRecord>> {
    db.query_row("SELECT * FROM hosts WHERE name = ?1", [name], read)
        .optional()
}

fn put(db: &Transaction<'_>, record: &HostRecord) -> rusqlite::Result<()> {
    let sql = "INSERT OR REPLACE INTO hosts (name, address, generation, removed) VALUES (?1, ?2, ?3, ?4)";
    db.execute(
        sql,
        (
            &record.name,
            &record.address,
            Count(record.generation),
            record.removed,
        ),
    )
    .map(drop)
}

fn read(row: &Row<'_>) -> rusqlite::Result<HostRecord> {
    Ok(HostRecord {
        name: row.get("name")?,
        address: row.get("address")?,
        generation: row.get::<_, Count>("generation")?.0,
        removed: row.get("removed")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_older_record_does_not_bring_a_removed_host_back() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let hosts = registry.hosts();
        let first = hosts.set("b", "10.0.0.2:7077").await.unwrap();
        hosts.remove("b").await.unwrap().unwrap();
        assert_eq!(hosts.merge(vec![first]).await.unwrap(), 0);
        assert!(hosts.get("b").await.unwrap().unwrap().removed);
        assert_eq!(hosts.remove("b").await.unwrap(), None);
        let again = hosts.set("b", "10.0.0.3:7077").await.unwrap();
        assert_eq!((again.generation, again.removed), (3, false));
    }
}
