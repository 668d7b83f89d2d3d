//! Answers calls, on the socket and from other hosts, until the daemon is told to stop.
//!
//! Stopping ends conversations, not containers: calls that are under way get [`CLOSING_DEADLINE`], then their
//! connections close. A listener that fails takes the other with it: a daemon that is half deaf should not look alive.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tranship_proto::limits::MAX_CONTROL_BYTES;
use tranship_proto::v1::tranship_server::{Tranship, TranshipServer};

use crate::peers::{PeerMigrations, Peers, PeersError};

/// For calls that are under way when the daemon stops.
const CLOSING_DEADLINE: Duration = Duration::from_secs(3);

/// Why the daemon stopped answering by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket.
    #[error("the server on the socket failed")]
    Socket(#[from] tonic::transport::Error),
    /// The peer listener.
    #[error(transparent)]
    Peers(#[from] PeersError),
}

/// Answers with `api` on `connections`, and for other hosts with `migrations`, until `shutdown`.
///
/// # Errors
/// One of the listeners failed; the other was closed.
pub async fn serve<A: Tranship>(
    api: A,
    connections: impl Stream<Item = io::Result<UnixStream>>,
    peers: &Peers,
    migrations: Arc<dyn PeerMigrations>,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let stop = shutdown.child_token();
    let socket = async {
        let served = serve_socket(api, connections, stop.clone()).await;
        stop.cancel();
        served
    };
    let others = async {
        let served = peers.serve(migrations, stop.clone()).await;
        stop.cancel();
        served
    };
    let (socket, others) = tokio::join!(socket, others);
    socket?;
    Ok(others?)
}

async fn serve_socket<A: Tranship>(
    api: A,
    connections: impl Stream<Item = io::Result<UnixStream>>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = TranshipServer::new(api)
        .max_decoding_message_size(MAX_CONTROL_BYTES)
        .max_encoding_message_size(MAX_CONTROL_BYTES);
    let serving = Server::builder()
        .add_service(service)
        .serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSING_DEADLINE).await;
    };
    tokio::select! {
        served = serving => served,
        () = too_late => Ok(()),
    }
}
