//! Bulk data streams that are expected, and those that arrive.
//!
//! A migration's destination says what it expects: which migration, from which host, with which token. The listener
//! hands over a stream whose greeting fits; every other one is closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsStream;
use tranship_proto::frame::{FrameError, FrameHeader, FrameKind, HEADER_BYTES};
use tranship_proto::ids::{IdError, MigrationId, Name};
use tranship_proto::limits::MAX_PAGE_STREAMS;
use tranship_proto::v1::StreamHello;

use super::identity::PeerIdentity;

/// Streams of one migration that wait to be taken over: trees, and all of memory.
const WAITING: usize = 1 + MAX_PAGE_STREAMS as usize;

/// Longest greeting: an id and a token.
const MAX_HELLO_BYTES: u32 = 256;

/// A bulk data stream from a known host; its greeting has been read.
pub struct DataStream {
    /// Who has sent it.
    pub peer: PeerIdentity,
    /// 0 for trees, else the number of the stream of memory.
    pub page_stream: u32,
    /// What follows the greeting.
    pub tls: TlsStream<TcpStream>,
}

/// The streams that are expected.
#[derive(Clone, Default)]
pub struct DataStreams(Arc<Mutex<HashMap<MigrationId, Expectation>>>);

struct Expectation {
    peer: Name,
    token: blake3::Hash,
    sender: mpsc::Sender<DataStream>,
}

/// Streams of this migration are expected already.
#[derive(Debug, thiserror::Error)]
#[error("data streams of migration {0} are expected already")]
pub struct AlreadyExpected(pub MigrationId);

/// No stream came.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no data stream of migration {migration} arrived within {} s", deadline.as_secs())]
pub struct NoStream {
    /// Of which migration.
    pub migration: MigrationId,
    /// How long was waited.
    pub deadline: Duration,
}

/// Why a data stream was closed after its handshake.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// It ended too early, or broke.
    #[error("the data stream ended before its greeting")]
    Io(#[from] std::io::Error),
    /// Its first bytes are no frame.
    #[error("the data stream began with a malformed frame")]
    Frame(#[from] FrameError),
    /// Its first frame is no greeting.
    #[error("the data stream began with a frame of kind {kind:?} and {length} bytes instead of a greeting")]
    NotHello {
        /// Which frame it was.
        kind: FrameKind,
        /// How long it was.
        length: u32,
    },
    /// The greeting is no message.
    #[error("the greeting cannot be read")]
    Message(#[from] prost::DecodeError),
    /// The greeting names no migration.
    #[error("the greeting names no migration")]
    Migration(#[from] IdError),
    /// No such migration, the wrong token, or another host than the one that migrates: the peer is not told which.
    #[error("no data stream of migration {0} with this token is expected from this host")]
    Unexpected(MigrationId),
    /// More streams than anybody takes.
    #[error("too many data streams of migration {0} at once")]
    TooMany(MigrationId),
}

impl DataStreams {
    /// Expects streams of a migration, from one host, that show `token`, until the result is dropped.
    ///
    /// # Errors
    /// Somebody expects them already.
    pub fn expect(
        &self,
        migration: MigrationId,
        peer: &Name,
        token: &[u8],
    ) -> Result<ExpectedStreams, AlreadyExpected> {
        let mut expected = self.lock();
        if expected.contains_key(&migration) {
            return Err(AlreadyExpected(migration));
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        expected.insert(
            migration,
            Expectation {
                peer: peer.clone(),
                token: blake3::hash(token),
                sender,
            },
        );
        Ok(ExpectedStreams {
            streams: self.clone(),
            migration,
            receiver,
        })
    }

    /// Reads the greeting of a new stream.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn read_hello<S: AsyncRead + Unpin>(stream: &mut S) -> Result<StreamHello, HelloError> {
        let mut header = [0; HEADER_BYTES];
        stream.read_exact(&mut header).await?;
        let header = FrameHeader::decode(&header)?;
        if header.kind != FrameKind::Hello || header.length > MAX_HELLO_BYTES {
            return Err(HelloError::NotHello {
                kind: header.kind,
                length: header.length,
            });
        }
        let mut payload = vec![0; header.length as usize];
        stream.read_exact(&mut payload).await?;
        Ok(StreamHello::decode(payload.as_slice())?)
    }

    /// Hands a stream over to whoever expects it.
    ///
    /// # Errors
    /// Nobody does.
    pub(super) fn hand_over(
        &self,
        peer: PeerIdentity,
        hello: &StreamHello,
        stream: TlsStream<TcpStream>,
    ) -> Result<(), HelloError> {
        let migration: MigrationId = hello.migration_id.parse()?;
        let expected = self.lock();
        // Comparing the hashes takes the same time wherever they differ.
        let fits =
            |known: &&Expectation| known.token == blake3::hash(&hello.data_token) && known.peer == peer.name;
        let found = expected
            .get(&migration)
            .filter(fits)
            .ok_or(HelloError::Unexpected(migration))?;
        found
            .sender
            .try_send(DataStream {
                peer,
                page_stream: hello.page_stream,
                tls: stream,
            })
            .map_err(|_| HelloError::TooMany(migration))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<MigrationId, Expectation>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The streams of one migration, as they arrive. Dropping it ends the expectation.
pub struct ExpectedStreams {
    streams: DataStreams,
    migration: MigrationId,
    receiver: mpsc::Receiver<DataStream>,
}

impl ExpectedStreams {
    /// The next stream. Cancel-safe: a stream that arrived is not lost.
    ///
    /// # Errors
    /// None came in time.
    pub async fn next(&mut self, deadline: Duration) -> Result<DataStream, NoStream> {
        let none = NoStream {
            migration: self.migration,
            deadline,
        };
        tokio::time::timeout(deadline, self.receiver.recv())
            .await
            .ok()
            .flatten()
            .ok_or(none)
    }
}

impl Drop for ExpectedStreams {
    fn drop(&mut self) {
        self.streams.lock().remove(&self.migration);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn hello(bytes: &[u8]) -> Result<StreamHello, HelloError> {
        DataStreams::read_hello(&mut &bytes[..]).await
    }

    fn frame(kind: FrameKind, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        let mut bytes = FrameHeader {
            kind,
            tree: 0,
            length,
            offset: 0,
        }
        .encode()
        .to_vec();
        bytes.extend_from_slice(payload);
        bytes
    }

    #[tokio::test]
    async fn a_greeting_is_read_and_nothing_else_is() {
        let sent = StreamHello {
            migration_id: "x".into(),
            data_token: vec![1; 32],
            page_stream: 2,
        };
        let bytes = frame(FrameKind::Hello, &sent.encode_to_vec());
        assert_eq!(hello(&bytes).await.unwrap(), sent);
        for end in 0..bytes.len() {
            assert!(
                matches!(hello(&bytes[..end]).await, Err(HelloError::Io(_))),
                "cut after {end}"
            );
        }
        let long = frame(FrameKind::Hello, &[0; 300]);
        assert!(matches!(
            hello(&long).await,
            Err(HelloError::NotHello { length: 300, .. })
        ));
        assert!(matches!(
            hello(&frame(FrameKind::Data, &[0; 9])).await,
            Err(HelloError::NotHello { .. })
        ));
        assert!(matches!(hello(&[0xff; 40]).await, Err(HelloError::Frame(_))));
        assert!(matches!(
            hello(&frame(FrameKind::Hello, &[0xff; 9])).await,
            Err(HelloError::Message(_))
        ));
    }

    #[tokio::test]
    async fn an_expectation_ends_when_it_is_dropped() {
        let streams = DataStreams::default();
        let migration = MigrationId::generate();
        let peer: Name = "a".parse().unwrap();
        let mut first = streams.expect(migration, &peer, b"t").unwrap();
        assert!(streams.expect(migration, &peer, b"t").is_err());
        let deadline = Duration::from_millis(5);
        assert_eq!(
            first.next(deadline).await.err(),
            Some(NoStream { migration, deadline })
        );
        drop(first);
        assert!(streams.expect(migration, &peer, b"t").is_ok());
    }
}
