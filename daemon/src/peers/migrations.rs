//! The calls of the peer service that belong to migrations. Who moves containers implements them.

use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;
use tonic::{Status, Streaming};
use tranship_proto::v1::{
    MigrateMessage, PreflightReply, PreflightRequest, QueryMigrationReply, QueryMigrationRequest,
    ResolvedMigrationReply, ResolvedMigrationRequest,
};

use super::identity::PeerIdentity;

/// What goes back on a migration's control connection.
pub type MigrateReplies = Pin<Box<dyn Stream<Item = Result<MigrateMessage, Status>> + Send>>;

/// Migrations, seen from other hosts. `peer` is who calls: a host of the cluster, by its certificate.
#[async_trait]
pub trait PeerMigrations: Send + Sync + 'static {
    /// Whether this host would take a container. Changes nothing.
    async fn preflight(
        &self,
        peer: PeerIdentity,
        request: PreflightRequest,
    ) -> Result<PreflightReply, Status>;

    /// One migration to this host, from its reservation to its end.
    async fn migrate(
        &self,
        peer: PeerIdentity,
        messages: Streaming<MigrateMessage>,
    ) -> Result<MigrateReplies, Status>;

    /// What this host's journal says of a migration. May only tell the other host of that migration.
    async fn query(
        &self,
        peer: PeerIdentity,
        request: QueryMigrationRequest,
    ) -> Result<QueryMigrationReply, Status>;

    /// A person has decided at the other host of a migration that the container is that host's. Obeyed before this answers.
    async fn resolved(
        &self,
        peer: PeerIdentity,
        request: ResolvedMigrationRequest,
    ) -> Result<ResolvedMigrationReply, Status>;
}
