//! Every host tells every other what it knows of the hosts; of two records the newer counts. So a host that was away
//! learns who came and who was removed, whoever tells it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tranship_proto::ids::Name;
use tranship_proto::v1::peer_client::PeerClient;
use tranship_proto::v1::{HostRecord, SyncHostsReply, SyncHostsRequest};

use super::cluster::Inner;
use super::connect::{ConnectError, explain};
use super::hosts::{HostTableError, KnownHost};
use super::refusal::chain;

/// Between two rounds with nothing new.
const INTERVAL: Duration = Duration::from_secs(30);

/// Between two rounds however much is new: strangers at the door ask for a round each.
const PAUSE: Duration = Duration::from_millis(500);

/// For one host's answer, its connection included.
const DEADLINE: Duration = Duration::from_secs(6);

/// Hosts that are asked at once.
const AT_ONCE: usize = 16;

/// A host did not take part.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// There is no connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It did not answer in time.
    #[error("host {0} did not answer in time")]
    Silent(Name),
    /// It answered with an error, or closed the connection.
    #[error("{reason}")]
    Refused {
        /// Which host.
        host: Name,
        /// What came instead of an answer.
        reason: String,
    },
    /// Its answer cannot be used.
    #[error("the answer of host {host} cannot be used")]
    Answer {
        /// Which host.
        host: Name,
        /// What is wrong with it.
        #[source]
        source: HostTableError,
    },
}

/// Syncs at once, when there is news, and from time to time, until `shutdown`.
pub(super) async fn run(inner: Arc<Inner>, shutdown: CancellationToken) {
    let mut away = HashSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = round(&inner, &mut away) => {}
        }
        let due = async {
            sleep(PAUSE).await;
            let _ = timeout(INTERVAL, inner.sync_now.notified()).await;
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = due => {}
        }
    }
}

/// Talks to every other host once. `away` are those that did not answer the last time: each is logged when that changes.
async fn round(inner: &Inner, away: &mut HashSet<Name>) {
    let others = inner.others();
    away.retain(|name| others.iter().any(|host| host.name == *name));
    let mut answers = futures_util::stream::iter(others)
        .map(|host| async move { (tell(inner, &host).await, host.name) })
        .buffer_unordered(AT_ONCE);
    while let Some((answer, peer)) = answers.next().await {
        match answer {
            Ok(_) if away.remove(&peer) => tracing::info!(%peer, "the host answers again"),
            Ok(_) => {}
            Err(error) => {
                let error = chain(&error);
                if away.insert(peer.clone()) {
                    tracing::warn!(%peer, error, "the host does not answer");
                }
            }
        }
    }
}

/// Tells one host what is known here, and takes what it knows.
pub(super) async fn tell(inner: &Inner, host: &KnownHost) -> Result<SyncHostsReply, SyncError> {
    let client = inner.client(&host.name)?;
    let reply = send(client, &host.name, inner.hosts.records()).await?;
    let taken = inner.take_records(reply.hosts.clone()).await;
    taken.map_err(|source| SyncError::Answer {
        host: host.name.clone(),
        source,
    })?;
    Ok(reply)
}

/// Sends records to one host.
pub(super) async fn send(
    mut client: PeerClient<Channel>,
    host: &Name,
    hosts: Vec<HostRecord>,
) -> Result<SyncHostsReply, SyncError> {
    let answer = timeout(DEADLINE, client.sync_hosts(SyncHostsRequest { hosts })).await;
    match answer.map_err(|_| SyncError::Silent(host.clone()))? {
        Ok(reply) => Ok(reply.into_inner()),
        Err(status) => Err(SyncError::Refused {
            host: host.clone(),
            reason: explain(&status),
        }),
    }
}
