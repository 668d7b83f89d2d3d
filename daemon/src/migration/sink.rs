//! Where the trees of one incoming migration go: each to the place that was reserved for it, and nowhere else.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tranship_migrate::deadlines::SYNC;
use tranship_migrate::error::HostError;
use tranship_migrate::transport::TreeSink;
use tranship_migrate::trees::{TreeName, TreeReport};
use tranship_proto::ids::Digest;
use tranship_proto::points;
use tranship_storage_drivers::driver::{StagedTree, StorageDriver};

use super::held::make_private;
use super::rounds;

/// Where each tree of a migration goes.
pub struct LocalSink {
    driver: Arc<dyn StorageDriver>,
    places: Mutex<HashMap<TreeName, PathBuf>>,
    /// Directories that trees went to, wherever they are by now.
    received: Mutex<Vec<fs::File>>,
    layers: Mutex<HashMap<Digest, Option<StagedTree>>>,
    /// Where pre-dumps go, and which is next.
    rounds: Mutex<Option<(PathBuf, u32)>>,
    /// How many of the layers are not kept yet.
    outstanding: watch::Sender<usize>,
}

impl LocalSink {
    /// Nothing is expected yet. Layers go to `driver`.
    #[must_use]
    pub fn new(driver: Arc<dyn StorageDriver>) -> Self {
        let outstanding = watch::Sender::new(0);
        Self {
            driver,
            places: Mutex::default(),
            received: Mutex::default(),
            layers: Mutex::default(),
            rounds: Mutex::default(),
            outstanding,
        }
    }

    /// The driver that keeps layers.
    #[must_use]
    pub fn driver(&self) -> &Arc<dyn StorageDriver> {
        &self.driver
    }

    /// A tree of that name goes to that directory.
    pub fn place(&self, name: TreeName, path: PathBuf) {
        self.places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name, path);
    }

    /// Pre-dumps are to come, one after the other, each into a directory of its own in `staging`.
    pub fn await_rounds(&self, staging: PathBuf) {
        *self.rounds.lock().unwrap_or_else(PoisonError::into_inner) = Some((staging, 0));
    }

    /// Makes the place of a pre-dump whose turn it is.
    fn make_round(&self, round: u32) -> Option<io::Result<PathBuf>> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let (staging, next) = rounds.as_mut().filter(|(_, next)| *next == round)?;
        *next += 1;
        let path = rounds::directory(staging, round);
        Some(make_private(&path).map(|()| path))
    }

    /// Whether a tree of that name has its directory.
    pub fn has_place(&self, name: &TreeName) -> bool {
        self.places
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains_key(name)
    }

    /// Brings every tree that has come, but for layers, which are there already, to the disk.
    ///
    /// # Errors
    /// A disk says no: it is not known then what is on it.
    pub fn sync(&self) -> io::Result<()> {
        let received = std::mem::take(&mut *self.received.lock().unwrap_or_else(PoisonError::into_inner));
        let mut synced = HashSet::new();
        for directory in received {
            if synced.insert(directory.metadata()?.dev()) {
                points::step("storage:sync-all-received", || rustix::fs::syncfs(&directory))?;
            }
        }
        Ok(())
    }

    /// A layer of that digest is to come.
    ///
    /// # Errors
    /// The driver cannot stage it.
    pub fn await_layer(&self, digest: Digest) -> Result<(), HostError> {
        let staged = self
            .driver
            .stage_layer(&digest)
            .map_err(|error| HostError::new("stage a layer", error))?;
        self.layers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(digest, Some(staged));
        self.outstanding.send_modify(|outstanding| *outstanding += 1);
        Ok(())
    }

    /// Waits until every layer that was to come is kept.
    ///
    /// # Errors
    /// One is still missing when the deadline comes.
    pub async fn layers_kept(&self) -> Result<(), tokio::time::error::Elapsed> {
        let mut outstanding = self.outstanding.subscribe();
        let kept = outstanding.wait_for(|outstanding| *outstanding == 0);
        tokio::time::timeout(SYNC, kept).await.map(drop)
    }

    /// Removes staged layers that were never completed.
    pub fn forget(&self) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl TreeSink for LocalSink {
    fn open(&self, name: &TreeName) -> Result<OwnedFd, HostError> {
        let unexpected = || {
            HostError::new(
                "take a tree",
                format!("{name} was not reserved, or was sent before"),
            )
        };
        if let TreeName::Layer(digest) = name {
            let layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
            let staged = layers
                .get(digest)
                .and_then(Option::as_ref)
                .ok_or_else(unexpected)?;
            return staged
                .open()
                .map_err(|error| HostError::new("open a staged layer", error));
        }
        let failed = |error| HostError::new("open a tree's directory", error);
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let path = match name {
            TreeName::Round(round) => self.make_round(*round).ok_or_else(unexpected)?.map_err(failed)?,
            _ => places.get(name).cloned().ok_or_else(unexpected)?,
        };
        let open = || -> io::Result<OwnedFd> {
            let directory = fs::File::open(&path)?;
            let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
            received.push(directory.try_clone()?);
            Ok(directory.into())
        };
        open().map_err(failed)
    }

    fn close(&self, report: &TreeReport) -> Result<(), HostError> {
        let TreeName::Layer(digest) = &report.name else {
            return Ok(());
        };
        let staged = self
            .layers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(digest)
            .and_then(Option::take);
        let staged = staged.ok_or_else(|| HostError::new("keep a layer", "it was not reserved"))?;
        staged
            .commit()
            .map_err(|error| HostError::new("keep a layer", error))?;
        self.outstanding
            .send_modify(|outstanding| *outstanding = outstanding.saturating_sub(1));
        Ok(())
    }
}
