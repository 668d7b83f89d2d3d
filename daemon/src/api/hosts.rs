//! Hosts: init, token, join, ls, rm.

use std::time::Duration;

use tonic::Status;
use tranship_proto::v1::{
    CreateTokenReply, CreateTokenRequest, Empty, Host, InitHostRequest, JoinHostRequest, ListHostsReply,
    ListHostsRequest, NameRequest,
};

use crate::daemon::Daemon;

pub async fn init(daemon: &Daemon, request: InitHostRequest) -> Result<Host, Status> {
    let peers = daemon.peers.clone();
    to_its_end(async move { peers.init(&request.name, &request.advertise).await }).await
}

pub async fn create_token(daemon: &Daemon, request: CreateTokenRequest) -> Result<CreateTokenReply, Status> {
    let (token, expires_ms) = daemon
        .peers
        .create_token(Duration::from_secs(request.valid_s.into()))
        .await?;
    Ok(CreateTokenReply { token, expires_ms })
}

pub async fn join(daemon: &Daemon, request: JoinHostRequest) -> Result<Host, Status> {
    let peers = daemon.peers.clone();
    to_its_end(async move {
        peers
            .join(&request.token, &request.name, &request.advertise)
            .await
    })
    .await
}

pub async fn list(daemon: &Daemon, request: ListHostsRequest) -> Result<ListHostsReply, Status> {
    Ok(ListHostsReply {
        hosts: daemon.peers.list(request.probe).await?,
    })
}

pub async fn remove(daemon: &Daemon, request: NameRequest) -> Result<Empty, Status> {
    let peers = daemon.peers.clone();
    to_its_end(async move { peers.remove(&request.name).await }).await?;
    Ok(Empty {})
}

/// A host that has half joined is worse than a client that went away.
async fn to_its_end<T, E, F>(work: F) -> Result<T, Status>
where
    T: Send + 'static,
    E: Into<Status> + Send + 'static,
    F: Future<Output = Result<T, E>> + Send + 'static,
{
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(Status::internal(
            "the call was given up in the middle; look at the daemon's log",
        )),
    }
}
