//! Volumes: which driver has them, and what the user wrote on their labels.

use std::collections::HashMap;

use rusqlite::{OptionalExtension, Row, Transaction};
use tranship_proto::ids::{ContainerId, Name};

use super::columns::{Json, Text};
use super::{Registry, RegistryError};

const TABLE: &str = "volumes";

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    /// Unique on this host.
    pub name: Name,
    /// The storage driver that has it.
    pub driver: String,
    /// When it was created on this host.
    pub created_ms: i64,
    /// The user's labels.
    pub labels: HashMap<String, String>,
    /// Named by us rather than by a user: goes with the last container that mounts it, when asked.
    pub anonymous: bool,
    /// The container it is being received for: nobody's volume before that container runs here.
    pub receiving_for: Option<ContainerId>,
}

/// The table of volumes.
pub struct Volumes<'a>(pub(super) &'a Registry);

impl Volumes<'_> {
    /// Adds a volume.
    ///
    /// # Errors
    /// [`RegistryError::Exists`] when the name is taken.
    pub async fn insert(&self, record: VolumeRecord) -> Result<(), RegistryError> {
        let work = move |db: &Transaction<'_>| {
            let sql = "INSERT INTO volumes (name, driver, created_ms, labels, anonymous, receiving_for)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
            let values = (
                Text(&record.name),
                &record.driver,
                record.created_ms,
                Json(&record.labels),
                record.anonymous,
                record.receiving_for.as_ref().map(Text),
            );
            db.execute(sql, values).map(drop)
        };
        self.0.transaction(TABLE, "insert a volume", work).await
    }

    /// The volume of that name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn get(&self, name: &Name) -> Result<Option<VolumeRecord>, RegistryError> {
        let name = name.clone();
        let work = move |db: &Transaction<'_>| {
            db.query_row("SELECT * FROM volumes WHERE name = ?1", [Text(&name)], read)
                .optional()
        };
        self.0.transaction(TABLE, "read a volume", work).await
    }

    /// Every volume by name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self) -> Result<Vec<VolumeRecord>, RegistryError> {
        let work = |db: &Transaction<'_>| {
            let mut statement = db.prepare("SELECT * FROM volumes ORDER BY name")?;
            statement.query_map([], read)?.collect()
        };
        self.0.transaction(TABLE, "list volumes", work).await
    }

    /// The volumes received for a container are volumes like any other from now on.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn received(&self, container: &ContainerId) -> Result<(), RegistryError> {
        let container = container.clone();
        let work = move |db: &Transaction<'_>| {
            let sql = "UPDATE volumes SET receiving_for = NULL WHERE receiving_for = ?1";
            db.execute(sql, [Text(&container)]).map(drop)
        };
        self.0.transaction(TABLE, "keep received volumes", work).await
    }

    /// Forgets a volume. False where there was none.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remove(&self, name: &Name) -> Result<bool, RegistryError> {
        let name = name.clone();
        let work = move |db: &Transaction<'_>| {
            db.execute("DELETE FROM volumes WHERE name = ?1", [Text(&name)])
                .map(|rows| rows > 0)
        };
        self.0.transaction(TABLE, "remove a volume", work).await
    }
}

fn read(row: &Row<'_>) -> rusqlite::Result<VolumeRecord> {
    Ok(VolumeRecord {
        name: row.get::<_, Text<_>>("name")?.0,
        driver: row.get("driver")?,
        created_ms: row.get("created_ms")?,
        labels: row.get::<_, Json<_>>("labels")?.0,
        anonymous: row.get("anonymous")?,
        receiving_for: row.get::<_, Option<Text<_>>>("receiving_for")?.map(|text| text.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn labels_and_driver_are_kept_and_a_name_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let record = VolumeRecord {
            name: "data".parse().unwrap(),
            driver: "overlay".into(),
            created_ms: 5,
            labels: HashMap::from([("team".into(), "db".into())]),
            anonymous: false,
            receiving_for: Some(ContainerId::from_random([1; 32])),
        };
        registry.volumes().insert(record.clone()).await.unwrap();
        assert!(
            registry
                .volumes()
                .insert(record.clone())
                .await
                .unwrap_err()
                .is_exists()
        );
        assert_eq!(
            registry.volumes().get(&record.name).await.unwrap(),
            Some(record.clone())
        );
        registry
            .volumes()
            .received(&ContainerId::from_random([1; 32]))
            .await
            .unwrap();
        assert_eq!(registry.volumes().list().await.unwrap()[0].receiving_for, None);
        assert!(registry.volumes().remove(&record.name).await.unwrap());
        assert_eq!(registry.volumes().list().await.unwrap(), []);
    }
}
