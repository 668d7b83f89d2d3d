//! What the cluster's part needs to find again after a restart. The registry implements it.

use async_trait::async_trait;
use tranship_proto::v1::HostRecord;

/// The hosts of the cluster and the tokens to join it, on stable storage.
///
/// Every change is one transaction and durable on return. Of two records of one host the higher generation counts;
/// a removed host stays as a record that says so.
#[async_trait]
pub trait HostStore: Send + Sync + 'static {
    /// Every record, the removed ones too.
    async fn hosts(&self) -> Result<Vec<HostRecord>, HostStoreError>;

    /// Takes each record whose generation is higher than that of ours; other records stay.
    async fn merge_hosts(&self, records: Vec<HostRecord>) -> Result<(), HostStoreError>;

    /// Forgets every record and takes these: this host begins or joins a cluster.
    async fn replace_hosts(&self, records: Vec<HostRecord>) -> Result<(), HostStoreError>;

    /// Keeps a new token by the hash of its secret.
    async fn add_token(&self, hash: &str, now_ms: i64, expires_ms: i64) -> Result<(), HostStoreError>;

    /// Uses a token up and takes the record of the host that showed it, both or neither.
    async fn admit(&self, admission: Admission) -> Result<Admitted, HostStoreError>;
}

/// A host that shows a token.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Hash of the token's secret.
    pub token_hash: String,
    /// The time, for the token's end.
    pub now_ms: i64,
    /// The record the host gets.
    pub record: HostRecord,
}

/// What became of an admission. In every case but the first nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// The token is used up and the record is there.
    Accepted,
    /// No such token.
    UnknownToken,
    /// The token was good until some time ago.
    ExpiredToken,
    /// Somebody used the token before.
    SpentToken,
    /// A host of that name is there, or was removed with a generation that is not below the record's.
    NameTaken,
}

/// The store could not do what was asked; nothing was changed.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the table of hosts")]
pub struct HostStoreError(#[source] pub Box<dyn std::error::Error + Send + Sync>);
