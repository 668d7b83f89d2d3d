//! The hosts of the cluster, as this host knows them.
//!
//! The store is the truth; a copy in memory answers each handshake and each call. Every change goes through the store
//! first, one at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::{Mutex, watch};
use tranship_proto::ids::Name;
use tranship_proto::v1::HostRecord;

use super::address::{PeerAddress, PeerAddressError};
use super::generation::Generation;
use super::identity::PeerIdentity;
use super::names::{HostNameError, host_name};
use super::store::{Admission, Admitted, HostStore, HostStoreError};

/// Most hosts of one cluster: an end to a peer that never ends its list.
const MAX_HOSTS: usize = 4096;

/// A host of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownHost {
    /// Its name.
    pub name: Name,
    /// Where its peer listener is reached.
    pub address: PeerAddress,
    /// Decides between two records of it.
    pub generation: Generation,
    /// It was removed, and is only kept so that nobody brings it back.
    pub removed: bool,
}

/// A record that no host of this cluster made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] HostNameError),
    /// The address is none.
    #[error("the address of host {host} cannot be used: {source}")]
    Address {
        /// Whose address.
        host: Name,
        /// What is wrong with it.
        source: PeerAddressError,
    },
    /// A generation out of bounds.
    #[error("the record of host {host} has the impossible generation {generation}")]
    Generation {
        /// Whose record.
        host: Name,
        /// What it says.
        generation: u64,
    },
    /// More hosts than a cluster has.
    #[error("a list of {0} hosts, the most is {MAX_HOSTS}")]
    TooMany(usize),
}

/// The table of hosts was not changed.
#[derive(Debug, thiserror::Error)]
pub enum HostTableError {
    /// A peer sent something that cannot be.
    #[error("a list of hosts cannot be used")]
    Record(#[from] RecordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] HostStoreError),
}

/// Why a genuine certificate does not let its host in.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum NotAdmitted {
    /// Not in the table.
    #[error("host {0} is not known here")]
    Unknown(Name),
    /// Removed from the cluster.
    #[error("host {0} was removed from the cluster")]
    Removed(Name),
}

impl KnownHost {
    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`] for what no host of this version writes.
    pub fn read(record: &HostRecord) -> Result<Self, RecordError> {
        let name = host_name(&record.name)?;
        let address = record.address.parse().map_err(|source| RecordError::Address {
            host: name.clone(),
            source,
        })?;
        let generation = Generation::read(record.generation).ok_or_else(|| RecordError::Generation {
            host: name.clone(),
            generation: record.generation,
        })?;
        Ok(Self {
            name,
            address,
            generation,
            removed: record.removed,
        })
    }

    /// The record as it is sent and stored.
    #[must_use]
    pub fn record(&self) -> HostRecord {
        HostRecord {
            name: self.name.to_string(),
            address: self.address.to_string(),
            generation: self.generation.number(),
            removed: self.removed,
        }
    }
}

/// The hosts of the cluster, by name.
pub struct HostTable {
    store: Arc<dyn HostStore>,
    known: RwLock<BTreeMap<Name, KnownHost>>,
    change: Mutex<()>,
    changed: watch::Sender<()>,
}

impl HostTable {
    /// Reads the store.
    ///
    /// # Errors
    /// It cannot be read, or holds what was never written.
    pub async fn open(store: Arc<dyn HostStore>) -> Result<Self, HostTableError> {
        let table = Self {
            store,
            known: RwLock::default(),
            change: Mutex::default(),
            changed: watch::Sender::default(),
        };
        table.reload().await?;
        Ok(table)
    }

    /// The host of that name, removed or not.
    #[must_use]
    pub fn get(&self, name: &Name) -> Option<KnownHost> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned()
    }

    /// All of them by name, the removed ones too.
    #[must_use]
    pub fn all(&self) -> Vec<KnownHost> {
        self.known
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .values()
            .cloned()
            .collect()
    }

    /// Sees every change from now on.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// What a sync sends.
    #[must_use]
    pub fn records(&self) -> Vec<HostRecord> {
        self.all().iter().map(KnownHost::record).collect()
    }

    /// Whether the host that a certificate names belongs to the cluster now.
    ///
    /// # Errors
    /// It does not.
    pub fn check(&self, identity: &PeerIdentity) -> Result<(), NotAdmitted> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let host = known
            .get(&identity.name)
            .ok_or_else(|| NotAdmitted::Unknown(identity.name.clone()))?;
        let incarnation = host.generation.incarnation();
        if identity.incarnation > incarnation {
            return Err(NotAdmitted::Unknown(identity.name.clone()));
        }
        if host.removed || identity.incarnation < incarnation {
            return Err(NotAdmitted::Removed(identity.name.clone()));
        }
        Ok(())
    }

    /// Takes the records that are newer than ours.
    ///
    /// # Errors
    /// One of them cannot be, or the store failed; nothing was changed.
    pub async fn merge(&self, records: Vec<HostRecord>) -> Result<(), HostTableError> {
        check_records(&records)?;
        let _turn = self.change.lock().await;
        self.store.merge_hosts(records).await?;
        self.reload().await
    }

    /// Forgets all hosts and takes these.
    ///
    /// # Errors
    /// As [`HostTable::merge`].
    pub async fn replace(&self, records: Vec<HostRecord>) -> Result<(), HostTableError> {
        check_records(&records)?;
        let _turn = self.change.lock().await;
        self.store.replace_hosts(records).await?;
        self.reload().await
    }

    /// Keeps a token.
    ///
    /// # Errors
    /// The store failed.
    pub async fn add_token(&self, hash: &str, now_ms: i64, expires_ms: i64) -> Result<(), HostTableError> {
        Ok(self.store.add_token(hash, now_ms, expires_ms).await?)
    }

    /// Uses up a token for a new host.
    ///
    /// # Errors
    /// The store failed.
    pub async fn admit(&self, admission: Admission) -> Result<Admitted, HostTableError> {
        let _turn = self.change.lock().await;
        let admitted = self.store.admit(admission).await?;
        self.reload().await?;
        Ok(admitted)
    }

    async fn reload(&self) -> Result<(), HostTableError> {
        let records = self.store.hosts().await?;
        let read = records
            .iter()
            .map(|record| KnownHost::read(record).map(|host| (host.name.clone(), host)));
        let table = read.collect::<Result<BTreeMap<_, _>, _>>()?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if *known != table {
            *known = table;
            self.changed.send_replace(());
        }
        Ok(())
    }
}

fn check_records(records: &[HostRecord]) -> Result<(), RecordError> {
    if records.len() > MAX_HOSTS {
        return Err(RecordError::TooMany(records.len()));
    }
    records
        .iter()
        .try_for_each(|record| KnownHost::read(record).map(drop))
}
