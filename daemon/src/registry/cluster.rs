//! The hosts of the cluster, and the one-time tokens with which others join it.

use async_trait::async_trait;
use rusqlite::{OptionalExtension, Row, Transaction};
use tranship_proto::v1::HostRecord;

use super::columns::Count;
use super::{Registry, RegistryError};
use crate::peers::{Admission, Admitted, HostStore, HostStoreError};

const HOSTS: &str = "hosts";
const TOKENS: &str = "tokens";

#[async_trait]
impl HostStore for Registry {
    async fn hosts(&self) -> Result<Vec<HostRecord>, HostStoreError> {
        let work = |db: &Transaction<'_>| {
            let mut statement = db.prepare("SELECT * FROM hosts ORDER BY name")?;
            statement.query_map([], read)?.collect()
        };
        Ok(self.transaction(HOSTS, "list hosts", work).await?)
    }

    async fn merge_hosts(&self, records: Vec<HostRecord>) -> Result<(), HostStoreError> {
        let work =
            move |db: &Transaction<'_>| records.iter().try_for_each(|record| take_if_newer(db, record));
        Ok(self.transaction(HOSTS, "merge host records", work).await?)
    }

    async fn replace_hosts(&self, records: Vec<HostRecord>) -> Result<(), HostStoreError> {
        let work = move |db: &Transaction<'_>| {
            db.execute("DELETE FROM hosts", [])?;
            records.iter().try_for_each(|record| put(db, record))
        };
        Ok(self.transaction(HOSTS, "replace the hosts", work).await?)
    }

    async fn add_token(&self, hash: &str, now_ms: i64, expires_ms: i64) -> Result<(), HostStoreError> {
        let hash = hash.to_owned();
        let work = move |db: &Transaction<'_>| {
            let sql = "INSERT INTO tokens (hash, created_ms, expires_ms) VALUES (?1, ?2, ?3)";
            db.execute(sql, (hash, now_ms, expires_ms)).map(drop)
        };
        Ok(self.transaction(TOKENS, "keep a token", work).await?)
    }

    async fn admit(&self, admission: Admission) -> Result<Admitted, HostStoreError> {
        let work = move |db: &Transaction<'_>| admit(db, &admission);
        Ok(self.transaction(TOKENS, "use a token", work).await?)
    }
}

impl From<RegistryError> for HostStoreError {
    fn from(error: RegistryError) -> Self {
        Self(Box::new(error))
    }
}

/// Token and name are taken in one transaction: of two hosts that show one token, one is refused.
fn admit(db: &Transaction<'_>, admission: &Admission) -> rusqlite::Result<Admitted> {
    let sql = "SELECT expires_ms, used_ms FROM tokens WHERE hash = ?1";
    let token: Option<(i64, Option<i64>)> = db
        .query_row(sql, [&admission.token_hash], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((expires_ms, used_ms)) = token else {
        return Ok(Admitted::UnknownToken);
    };
    if used_ms.is_some() {
        return Ok(Admitted::SpentToken);
    }
    if expires_ms <= admission.now_ms {
        return Ok(Admitted::ExpiredToken);
    }
    let record = &admission.record;
    if find(db, &record.name)?.is_some_and(|known| !known.removed || known.generation >= record.generation) {
        return Ok(Admitted::NameTaken);
    }
    let sql = "UPDATE tokens SET used_ms = ?2, used_by = ?3 WHERE hash = ?1";
    db.execute(sql, (&admission.token_hash, admission.now_ms, &record.name))?;
    put(db, record)?;
    Ok(Admitted::Accepted)
}

fn take_if_newer(db: &Transaction<'_>, record: &HostRecord) -> rusqlite::Result<()> {
    match find(db, &record.name)? {
        Some(known) if known.generation >= record.generation => Ok(()),
        _ => put(db, record),
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

    fn host(name: &str, generation: u64, removed: bool) -> HostRecord {
        HostRecord {
            name: name.into(),
            address: "10.0.0.2:7077".into(),
            generation,
            removed,
        }
    }

    fn open(dir: &tempfile::TempDir) -> Registry {
        Registry::open(&dir.path().join("r.db")).unwrap()
    }

    #[tokio::test]
    async fn an_older_record_does_not_bring_a_removed_host_back() {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(&dir);
        registry.merge_hosts(vec![host("b", 1, false)]).await.unwrap();
        registry.merge_hosts(vec![host("b", 2, true)]).await.unwrap();
        registry
            .merge_hosts(vec![host("b", 1, false), host("b", 2, false)])
            .await
            .unwrap();
        assert_eq!(registry.hosts().await.unwrap(), [host("b", 2, true)]);
        registry.replace_hosts(vec![host("c", 1, false)]).await.unwrap();
        assert_eq!(registry.hosts().await.unwrap(), [host("c", 1, false)]);
    }

    #[tokio::test]
    async fn a_token_is_good_once_and_in_time_and_not_for_a_name_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let registry = open(&dir);
        registry.add_token("t", 1, 10).await.unwrap();
        registry.add_token("u", 1, 10).await.unwrap();
        let admit = |token: &str, now_ms, record| {
            registry.admit(Admission {
                token_hash: token.into(),
                now_ms,
                record,
            })
        };
        assert_eq!(
            admit("x", 5, host("b", 1, false)).await.unwrap(),
            Admitted::UnknownToken
        );
        assert_eq!(
            admit("t", 10, host("b", 1, false)).await.unwrap(),
            Admitted::ExpiredToken
        );
        assert_eq!(
            admit("t", 9, host("b", 1, false)).await.unwrap(),
            Admitted::Accepted
        );
        assert_eq!(
            admit("t", 9, host("c", 1, false)).await.unwrap(),
            Admitted::SpentToken
        );
        assert_eq!(
            admit("u", 9, host("b", 2, false)).await.unwrap(),
            Admitted::NameTaken
        );
        assert_eq!(registry.hosts().await.unwrap(), [host("b", 1, false)]);
        assert_eq!(
            admit("u", 9, host("c", 1, false)).await.unwrap(),
            Admitted::Accepted
        );
    }
}
