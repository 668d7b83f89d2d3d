//! The storage drivers of this host, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use tranship_storage_drivers::driver::{DriverError, StorageDriver};
use tranship_storage_drivers::overlay::OverlayDriver;

use crate::config::Config;

/// A driver by name that this host does not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("there is no storage driver {name:?} on this host; it has {known}")]
pub struct UnknownDriver {
    /// What was asked for.
    pub name: String,
    /// What there is.
    pub known: String,
}

/// Every storage driver of this host.
#[derive(Clone)]
pub struct Storage {
    drivers: BTreeMap<String, Arc<dyn StorageDriver>>,
    default: Arc<dyn StorageDriver>,
}

impl Storage {
    /// Opens the drivers of the configuration.
    ///
    /// # Errors
    /// A pool cannot be opened.
    pub fn open(config: &Config) -> Result<Self, DriverError> {
        // The configuration takes no other name for the default.
        let overlay: Arc<dyn StorageDriver> = Arc::new(OverlayDriver::open(&config.overlay_path)?);
        Ok(Self::new(overlay, Vec::new()))
    }

    /// `default` and others.
    #[must_use]
    pub fn new(default: Arc<dyn StorageDriver>, others: Vec<Arc<dyn StorageDriver>>) -> Self {
        let all = others.into_iter().chain([Arc::clone(&default)]);
        Self {
            drivers: all.map(|driver| (driver.name().to_owned(), driver)).collect(),
            default,
        }
    }

    /// The driver of that name; the default one for an empty name.
    ///
    /// # Errors
    /// [`UnknownDriver`].
    pub fn get(&self, name: &str) -> Result<Arc<dyn StorageDriver>, UnknownDriver> {
        let name = if name.is_empty() {
            self.default_name()
        } else {
            name
        };
        let unknown = || UnknownDriver {
            name: name.to_owned(),
            known: self.names().join(", "),
        };
        self.drivers.get(name).cloned().ok_or_else(unknown)
    }

    /// Every driver.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn StorageDriver>> {
        self.drivers.values()
    }

    /// The driver of containers, volumes and images that name none.
    #[must_use]
    pub fn default_driver(&self) -> Arc<dyn StorageDriver> {
        Arc::clone(&self.default)
    }

    /// The name that an empty one stands for.
    #[must_use]
    pub fn default_name(&self) -> &str {
        self.default.name()
    }

    /// The names of all drivers.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.drivers.keys().cloned().collect()
    }
}
