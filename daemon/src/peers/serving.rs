//! Serves other hosts, as long as this host is in a cluster.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tranship_proto::limits::MAX_CONTROL_BYTES;
use tranship_proto::v1::peer_server::PeerServer;

use super::cluster::{Peers, PeersError, RENEWAL_MS, bind};
use super::connect::{KEEPALIVE, KEEPALIVE_DEADLINE};
use super::connection::PeerStream;
use super::found;
use super::listener::{Gate, WAITING};
use super::membership::Membership;
use super::migrations::PeerMigrations;
use super::service::PeerService;
use super::sync;
use crate::clock::now_ms;
use crate::etcd::Etcd;

/// Calls at once on one control connection.
const MAX_CALLS: u32 = 64;

/// Bytes of the header fields of one call.
const MAX_HEADER_BYTES: u32 = 16 << 10;

/// For calls that are under way when the listener closes.
const CLOSING_DEADLINE: Duration = Duration::from_secs(3);

impl Peers {
    /// Serves other hosts whenever this host is in a cluster, until `shutdown`.
    ///
    /// # Errors
    /// The port cannot be bound, or the server stopped by itself.
    pub async fn serve(
        &self,
        migrations: Arc<dyn PeerMigrations>,
        shutdown: CancellationToken,
    ) -> Result<(), PeersError> {
        let stop = shutdown.child_token();
        let serving = async {
            let served = self.serve_memberships(migrations, stop.clone()).await;
            stop.cancel();
            served
        };
        let syncing = sync::run(Arc::clone(&self.inner), stop.clone());
        let finding = async {
            if let Some(etcd) = &self.inner.settings.etcd {
                found::run(Arc::clone(&self.inner), Etcd::new(etcd), stop.clone()).await;
            }
        };
        let (served, (), ()) = tokio::join!(serving, syncing, finding);
        served
    }

    /// Serves one membership after the other: a host can leave its cluster and join again.
    async fn serve_memberships(
        &self,
        migrations: Arc<dyn PeerMigrations>,
        shutdown: CancellationToken,
    ) -> Result<(), PeersError> {
        let mut memberships = self.inner.membership.subscribe();
        while !shutdown.is_cancelled() {
            let current = memberships.borrow_and_update().clone();
            let stop = shutdown.child_token();
            let serving = self.serve_as(current, Arc::clone(&migrations), stop.clone());
            tokio::pin!(serving);
            tokio::select! {
                done = &mut serving => done?,
                _ = memberships.changed() => {
                    stop.cancel();
                    serving.await?;
                }
            }
        }
        Ok(())
    }

    async fn serve_as(
        &self,
        member: Option<Arc<Membership>>,
        migrations: Arc<dyn PeerMigrations>,
        stop: CancellationToken,
    ) -> Result<(), PeersError> {
        let Some(member) = member else {
            stop.cancelled().await;
            return Ok(());
        };
        let configured = self.inner.settings.peer.listen;
        let listener = match member.take_listener() {
            Some(listener) => listener,
            None => bind(configured).await?,
        };
        let address = listener.local_addr().unwrap_or(configured);
        tracing::info!(host = %member.identity, %address, "listening for peers");
        warn_of_expiry(&member);
        let (sender, control) = mpsc::channel(WAITING);
        let gate = self.gate(&member, sender).run(listener, stop.clone());
        let calls = self.serve_calls(control, migrations, stop.clone());
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(CLOSING_DEADLINE).await;
        };
        tokio::select! {
            ((), served) = async { tokio::join!(gate, calls) } => served,
            () = too_late => Ok(()),
        }
    }

    fn gate(&self, member: &Membership, control: mpsc::Sender<io::Result<PeerStream>>) -> Gate {
        let inner = &self.inner;
        Gate::new(
            Arc::clone(&member.tls.server),
            Arc::clone(&inner.hosts),
            inner.streams.clone(),
            Arc::clone(&inner.refusals),
            Arc::clone(&inner.sync_now),
            control,
        )
    }

    async fn serve_calls(
        &self,
        control: mpsc::Receiver<io::Result<PeerStream>>,
        migrations: Arc<dyn PeerMigrations>,
        stop: CancellationToken,
    ) -> Result<(), PeersError> {
        let service = PeerServer::new(PeerService::new(Arc::clone(&self.inner), migrations))
            .max_decoding_message_size(MAX_CONTROL_BYTES)
            .max_encoding_message_size(MAX_CONTROL_BYTES);
        Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .http2_keepalive_timeout(Some(KEEPALIVE_DEADLINE))
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .max_concurrent_streams(MAX_CALLS)
            .add_service(service)
            .serve_with_incoming_shutdown(ReceiverStream::new(control), stop.cancelled_owned())
            .await
            .map_err(PeersError::Serve)
    }
}

fn warn_of_expiry(member: &Membership) {
    let left = member.expires_ms() - now_ms();
    if left < RENEWAL_MS {
        let days = left / (24 * 3600 * 1000);
        tracing::warn!(
            host = %member.identity, days,
            "this host's certificate ends soon: remove the host from the cluster and join again"
        );
    }
}
