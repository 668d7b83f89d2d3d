//! The sending side: a tree becomes frames.

use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tranship_proto::frame::{FrameHeader, FrameKind};
use tranship_proto::v1::{StreamHello, TreeBegin, TreeEnd};
use tranship_storage_drivers::digest::TreeDigest;
use tranship_storage_drivers::tree::{TreePart, TreeReader};

use super::{CHUNK_BYTES, CHUNKS_IN_FLIGHT, TransportError};
use crate::deadlines::STALL;
use crate::trees::{Tree, TreeReport};

/// Greets: the first frame of a stream.
///
/// # Errors
/// The stream fails or stalls.
pub async fn send_hello(
    stream: &mut (impl AsyncWrite + Unpin),
    hello: &StreamHello,
) -> Result<(), TransportError> {
    let mut bytes = Vec::new();
    push_message(&mut bytes, FrameKind::Hello, 0, hello)?;
    write(stream, &bytes).await?;
    flush(stream).await
}

/// Ends a stream: the receiver knows that it was not cut.
///
/// # Errors
/// The stream fails or stalls.
pub async fn send_end(stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), TransportError> {
    let end = FrameHeader {
        kind: FrameKind::End,
        tree: 0,
        length: 0,
        offset: 0,
    };
    write(stream, &end.encode()).await?;
    flush(stream).await
}

/// Sends one tree, the `number`th of its stream.
///
/// # Errors
/// The tree cannot be read, or the stream fails or stalls.
pub async fn send_tree(
    stream: &mut (impl AsyncWrite + Unpin),
    number: u16,
    tree: &Tree,
) -> Result<TreeReport, TransportError> {
    let (chunks, mut arriving) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let reader = TreeEncoder::new(number, tree.clone(), chunks);
    let reading = tokio::task::spawn_blocking(move || reader.run());
    while let Some(chunk) = arriving.recv().await {
        write(stream, &chunk).await?;
    }
    let report = reading.await.map_err(|_| TransportError::Worker)??;
    flush(stream).await?;
    Ok(report)
}

pub(super) async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    bytes: &[u8],
) -> Result<(), TransportError> {
    within_stall(stream.write_all(bytes)).await
}

pub(super) async fn flush(stream: &mut (impl AsyncWrite + Unpin)) -> Result<(), TransportError> {
    within_stall(stream.flush()).await
}

async fn within_stall(work: impl Future<Output = std::io::Result<()>>) -> Result<(), TransportError> {
    match tokio::time::timeout(STALL, work).await {
        Ok(result) => result.map_err(TransportError::from),
        Err(_) => Err(TransportError::Stalled(Duration::as_secs(&STALL))),
    }
}

fn push_frame(bytes: &mut Vec<u8>, header: FrameHeader, payload: &[u8]) {
    bytes.extend_from_slice(&header.encode());
    bytes.extend_from_slice(payload);
}

fn push_message(
    bytes: &mut Vec<u8>,
    kind: FrameKind,
    tree: u16,
    message: &impl Message,
) -> Result<(FrameHeader, Vec<u8>), TransportError> {
    let payload = message.encode_to_vec();
    let header = header_for(kind, tree, 0, &payload)?;
    push_frame(bytes, header, &payload);
    Ok((header, payload))
}

fn header_for(
    kind: FrameKind,
    tree: u16,
    offset: u64,
    payload: &[u8],
) -> Result<FrameHeader, TransportError> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let header = FrameHeader {
        kind,
        tree,
        length,
        offset,
    };
    // What a receiver would refuse is not sent.
    FrameHeader::decode(&header.encode())?;
    Ok(header)
}

/// Reads a tree on a blocking thread and hands frames over in chunks.
struct TreeEncoder {
    number: u16,
    tree: Tree,
    chunks: mpsc::Sender<Vec<u8>>,
    pending: Vec<u8>,
    digest: TreeDigest,
    entries: u64,
    bytes: u64,
}

impl TreeEncoder {
    fn new(number: u16, tree: Tree, chunks: mpsc::Sender<Vec<u8>>) -> Self {
        let pending = Vec::with_capacity(CHUNK_BYTES * 2);
        Self {
            number,
            tree,
            chunks,
            pending,
            digest: TreeDigest::new(),
            entries: 0,
            bytes: 0,
        }
    }

    fn run(mut self) -> Result<TreeReport, TransportError> {
        let begin = TreeBegin {
            tree: self.tree.name.to_string(),
        };
        push_message(&mut self.pending, FrameKind::TreeBegin, self.number, &begin)?;
        let reader = TreeReader::open(&self.tree.path).map_err(|source| self.tree_error(source))?;
        for part in reader {
            let part = part.map_err(|source| self.tree_error(source))?;
            self.push(part)?;
            if self.pending.len() >= CHUNK_BYTES && !self.hand_over() {
                return Err(TransportError::Worker);
            }
        }
        let digest = self.digest.value();
        let end = TreeEnd {
            entries: self.entries,
            bytes: self.bytes,
            digest: digest.to_vec(),
        };
        push_message(&mut self.pending, FrameKind::TreeEnd, self.number, &end)?;
        if !self.hand_over() {
            return Err(TransportError::Worker);
        }
        Ok(TreeReport {
            name: self.tree.name,
            entries: self.entries,
            bytes: self.bytes,
            digest,
        })
    }

    fn push(&mut self, part: TreePart) -> Result<(), TransportError> {
        match part {
            TreePart::Entry(entry) => {
                self.entries += 1;
                let (header, payload) =
                    push_message(&mut self.pending, FrameKind::Entry, self.number, &entry)?;
                self.digest.frame(&header, &payload);
            }
            TreePart::Data { offset, bytes } => {
                let header = header_for(FrameKind::Data, self.number, offset, &bytes)?;
                self.bytes += u64::from(header.length);
                self.digest.frame(&header, &bytes);
                push_frame(&mut self.pending, header, &bytes);
            }
        }
        Ok(())
    }

    /// False when nobody takes chunks any more: the sending task has failed and says why itself.
    fn hand_over(&mut self) -> bool {
        let chunk = std::mem::replace(&mut self.pending, Vec::with_capacity(CHUNK_BYTES * 2));
        self.chunks.blocking_send(chunk).is_ok()
    }

    fn tree_error(&self, source: tranship_storage_drivers::tree::TreeError) -> TransportError {
        TransportError::Tree {
            tree: self.tree.name.to_string(),
            source,
        }
    }
}
