//! Images by the digest of their manifest, and the names that lead to them.

use rusqlite::{OptionalExtension, Row, Transaction};
use tranship_proto::ids::Digest;
use tranship_proto::v1::Image;

use super::columns::{Count, Json, Text};
use super::{Registry, RegistryError};

const TABLE: &str = "images";

/// The tables of images and image names.
pub struct Images<'a>(pub(super) &'a Registry);

impl Images<'_> {
    /// Keeps an image; its names lead to it from now on, whatever they led to before.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn put(&self, image: Image) -> Result<(), RegistryError> {
        self.write(
            image,
            "INSERT OR REPLACE INTO image_names (name, digest) VALUES (?1, ?2)",
        )
        .await
    }

    /// Keeps an image; those of its names that lead nowhere lead to it from now on.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn put_if_new(&self, image: Image) -> Result<(), RegistryError> {
        self.write(
            image,
            "INSERT OR IGNORE INTO image_names (name, digest) VALUES (?1, ?2)",
        )
        .await
    }

    async fn write(&self, image: Image, name_it: &'static str) -> Result<(), RegistryError> {
        let work = move |db: &Transaction<'_>| {
            let sql = "INSERT INTO images (digest, layers, size_bytes, created_ms, architecture, config)
                       VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (digest) DO NOTHING";
            db.execute(
                sql,
                (
                    &image.digest,
                    Json(&image.layers),
                    Count(image.size_bytes),
                    image.created_ms,
                    &image.architecture,
                    &image.config_json,
                ),
            )?;
            for name in &image.names {
                db.execute(name_it, (name, &image.digest))?;
            }
            Ok(())
        };
        self.0.transaction(TABLE, "keep an image", work).await
    }

    /// The image with that digest.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn get(&self, digest: &Digest) -> Result<Option<Image>, RegistryError> {
        let digest = digest.clone();
        let work = move |db: &Transaction<'_>| {
            let found = db
                .query_row("SELECT * FROM images WHERE digest = ?1", [Text(&digest)], read)
                .optional()?;
            found.map(|image| with_names(db, image)).transpose()
        };
        self.0.transaction(TABLE, "read an image", work).await
    }

    /// Every image, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn list(&self) -> Result<Vec<Image>, RegistryError> {
        let work = |db: &Transaction<'_>| {
            let mut statement = db.prepare("SELECT * FROM images ORDER BY created_ms, digest")?;
            let images: Vec<Image> = statement.query_map([], read)?.collect::<Result<_, _>>()?;
            images.into_iter().map(|image| with_names(db, image)).collect()
        };
        self.0.transaction(TABLE, "list images", work).await
    }

    /// Takes one name off an image. False where nothing had that name.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remove_name(&self, name: &str) -> Result<bool, RegistryError> {
        let name = name.to_owned();
        let work = move |db: &Transaction<'_>| {
            db.execute("DELETE FROM image_names WHERE name = ?1", [name])
                .map(|rows| rows > 0)
        };
        self.0.transaction("image_names", "remove a name", work).await
    }

    /// Forgets an image with all its names. False where there was none.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn remove(&self, digest: &Digest) -> Result<bool, RegistryError> {
        let digest = digest.clone();
        let work = move |db: &Transaction<'_>| {
            db.execute("DELETE FROM images WHERE digest = ?1", [Text(&digest)])
                .map(|rows| rows > 0)
        };
        self.0.transaction(TABLE, "remove an image", work).await
    }
}

fn with_names(db: &Transaction<'_>, image: Image) -> rusqlite::Result<Image> {
    let mut statement = db.prepare_cached("SELECT name FROM image_names WHERE digest = ?1 ORDER BY name")?;
    let names = statement
        .query_map([&image.digest], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(Image { names, ..image })
}

fn read(row: &Row<'_>) -> rusqlite::Result<Image> {
    Ok(Image {
        digest: row.get("digest")?,
        names: Vec::new(),
        layers: row.get::<_, Json<_>>("layers")?.0,
        size_bytes: row.get::<_, Count>("size_bytes")?.0,
        created_ms: row.get("created_ms")?,
        architecture: row.get("architecture")?,
        config_json: row.get("config")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(seed: u8, name: &str) -> Image {
        Image {
            digest: Digest::from_sha256(&[seed; 32]).into(),
            names: vec![name.into()],
            layers: vec![Digest::from_sha256(&[9; 32]).into()],
            size_bytes: 10,
            created_ms: seed.into(),
            architecture: "amd64".into(),
            config_json: "{}".into(),
        }
    }

    #[tokio::test]
    async fn a_name_moves_to_the_image_that_took_it_last() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let images = registry.images();
        images.put(image(1, "web:latest")).await.unwrap();
        images.put(image(2, "web:latest")).await.unwrap();
        let all = images.list().await.unwrap();
        assert_eq!(
            all.iter().map(|image| image.names.len()).collect::<Vec<_>>(),
            [0, 1]
        );
        assert_eq!(all[1], image(2, "web:latest"));
    }

    #[tokio::test]
    async fn a_received_image_takes_no_name_from_another() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        registry.images().put(image(1, "web:latest")).await.unwrap();
        registry
            .images()
            .put_if_new(image(2, "web:latest"))
            .await
            .unwrap();
        let names: Vec<_> = registry
            .images()
            .list()
            .await
            .unwrap()
            .into_iter()
            .map(|image| image.names)
            .collect();
        assert_eq!(names, [vec!["web:latest".to_owned()], vec![]]);
    }

    #[tokio::test]
    async fn a_removed_image_takes_its_names_along() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let images = registry.images();
        images.put(image(1, "web:latest")).await.unwrap();
        assert!(images.remove(&Digest::from_sha256(&[1; 32])).await.unwrap());
        assert!(!images.remove_name("web:latest").await.unwrap());
        assert_eq!(images.list().await.unwrap(), []);
    }
}
