//! The peer service: what other hosts may call.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::{Request, Response, Status, Streaming};
use tranship_proto::v1::peer_server::Peer;
use tranship_proto::v1::{
    JoinReply, JoinRequest, MigrateMessage, PreflightReply, PreflightRequest, QueryMigrationReply,
    QueryMigrationRequest, ResolvedMigrationReply, ResolvedMigrationRequest, SyncHostsReply,
    SyncHostsRequest,
};

use super::cluster::Inner;
use super::connection::Caller;
use super::identity::PeerIdentity;
use super::invite;
use super::membership::Membership;
use super::migrations::{MigrateReplies, PeerMigrations};
use super::refusal::chain;

/// Answers other hosts.
pub(super) struct PeerService {
    inner: Arc<Inner>,
    migrations: Arc<dyn PeerMigrations>,
}

impl PeerService {
    pub fn new(inner: Arc<Inner>, migrations: Arc<dyn PeerMigrations>) -> Self {
        Self { inner, migrations }
    }

    /// The host that calls. Asked again for each call, because a connection can outlive its host's membership.
    fn host<T>(&self, request: &Request<T>) -> Result<PeerIdentity, Status> {
        self.member()?;
        let identity = caller(request)?.identity.ok_or_else(|| {
            Status::unauthenticated("only a host with a certificate of this cluster may ask that")
        })?;
        match self.inner.hosts.check(&identity) {
            Ok(()) => Ok(identity),
            Err(reason) => Err(Status::permission_denied(reason.to_string())),
        }
    }

    fn member(&self) -> Result<Arc<Membership>, Status> {
        self.inner
            .member()
            .ok_or_else(|| Status::failed_precondition("this host has left the cluster"))
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::internal("the connection does not say who calls"))
}

#[async_trait]
impl Peer for PeerService {
    type MigrateStream = MigrateReplies;

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let remote = caller(&request)?.remote;
        let (membership, request) = (self.member()?, request.into_inner());
        let name: String = request.name.chars().take(64).collect();
        match invite::admit(&self.inner, &membership, request).await {
            Ok(reply) => {
                tracing::info!(peer = name, %remote, "a host joined the cluster");
                Ok(Response::new(reply))
            }
            Err(error) => {
                tracing::warn!(peer = name, %remote, error = chain(&error), "a host was not let into the cluster");
                Err(error.into())
            }
        }
    }

    async fn sync_hosts(
        &self,
        request: Request<SyncHostsRequest>,
    ) -> Result<Response<SyncHostsReply>, Status> {
        let peer = self.host(&request)?;
        self.inner
            .take_records(request.into_inner().hosts)
            .await
            .map_err(|error| {
                tracing::warn!(%peer, error = chain(&error), "a list of hosts was not taken");
                Status::invalid_argument(chain(&error))
            })?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(SyncHostsReply {
            hosts: self.inner.hosts.records(),
            version,
        }))
    }

    async fn preflight(
        &self,
        request: Request<PreflightRequest>,
    ) -> Result<Response<PreflightReply>, Status> {
        let peer = self.host(&request)?;
        self.migrations
            .preflight(peer, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn migrate(
        &self,
        request: Request<Streaming<MigrateMessage>>,
    ) -> Result<Response<MigrateReplies>, Status> {
        let peer = self.host(&request)?;
        self.migrations
            .migrate(peer, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn query_migration(
        &self,
        request: Request<QueryMigrationRequest>,
    ) -> Result<Response<QueryMigrationReply>, Status> {
        let peer = self.host(&request)?;
        self.migrations
            .query(peer, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn resolved_migration(
        &self,
        request: Request<ResolvedMigrationRequest>,
    ) -> Result<Response<ResolvedMigrationReply>, Status> {
        let peer = self.host(&request)?;
        self.migrations
            .resolved(peer, request.into_inner())
            .await
            .map(Response::new)
    }
}
