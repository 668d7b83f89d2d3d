//! The receiving side: frames become a tree. Nothing a peer says reaches the disk before it was checked, and nothing
//! counts as arrived before its digest agrees.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tranship_proto::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use tranship_proto::v1::{TreeBegin, TreeEnd, TreeEntry};
use tranship_storage_drivers::digest::TreeDigest;
use tranship_storage_drivers::tree::{TreePart, TreeWriter};

use super::{CHUNKS_IN_FLIGHT, TransportError};
use crate::deadlines::{SEED_IDLE, STALL};
use crate::error::HostError;
use crate::trees::{TreeName, TreeReport};

/// Where trees go.
pub trait TreeSink: Send + Sync + 'static {
    /// An empty directory for a tree, or a refusal.
    ///
    /// # Errors
    /// The tree was not reserved, or there is no place for it.
    fn open(&self, name: &TreeName) -> Result<OwnedFd, HostError>;

    /// The tree is complete and verified; a layer, which others will rely on, is on stable storage too.
    ///
    /// # Errors
    /// The host could not take it in.
    fn close(&self, report: &TreeReport) -> Result<(), HostError>;
}

/// Receives trees until the stream ends, and reports each.
///
/// # Errors
/// Anything that did not arrive exactly as it was sent. What was written of an incomplete tree stays for the sink's
/// owner to remove.
pub async fn receive_trees(
    stream: &mut (impl AsyncRead + Unpin),
    sink: Arc<dyn TreeSink>,
) -> Result<Vec<TreeReport>, TransportError> {
    let mut reports = Vec::new();
    loop {
        // Between trees the source may be busy with its rounds; within one it may not pause.
        let (header, payload) = read_frame(stream, SEED_IDLE).await?;
        match header.kind {
            FrameKind::End => return Ok(reports),
            FrameKind::TreeBegin => {
                let begin = decode::<TreeBegin>(FrameKind::TreeBegin, &payload)?;
                reports
                    .push(receive_tree(stream, header.tree, begin.tree.parse()?, Arc::clone(&sink)).await?);
            }
            got => {
                return Err(TransportError::Order {
                    wanted: "the beginning of a tree",
                    got,
                });
            }
        }
    }
}

type Frame = (FrameHeader, Vec<u8>);

async fn receive_tree(
    stream: &mut (impl AsyncRead + Unpin),
    number: u16,
    name: TreeName,
    sink: Arc<dyn TreeSink>,
) -> Result<TreeReport, TransportError> {
    let (frames, arriving) = mpsc::channel(CHUNKS_IN_FLIGHT);
    let writing = tokio::task::spawn_blocking(move || TreeDecoder::open(name, sink)?.run(arriving));
    loop {
        let (header, payload) = read_frame(stream, STALL).await?;
        let is_last = header.kind == FrameKind::TreeEnd;
        if header.tree != number {
            return Err(TransportError::Order {
                wanted: "a frame of the same tree",
                got: header.kind,
            });
        }
        // A writer that has stopped has its own reason, which is the one to report.
        if frames.send((header, payload)).await.is_err() || is_last {
            break;
        }
    }
    drop(frames);
    writing.await.map_err(|_| TransportError::Worker)?
}

async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    deadline: Duration,
) -> Result<Frame, TransportError> {
    let header = read_header(stream, deadline).await?;
    // The header's check has bounded the length.
    let mut payload = vec![0; header.length as usize];
    tokio::time::timeout(STALL, stream.read_exact(&mut payload))
        .await
        .map_err(|_| TransportError::Stalled(STALL.as_secs()))??;
    Ok((header, payload))
}

/// The next header, if it comes within `deadline`.
pub(super) async fn read_header(
    stream: &mut (impl AsyncRead + Unpin),
    deadline: Duration,
) -> Result<FrameHeader, TransportError> {
    let mut bytes = [0; HEADER_BYTES];
    tokio::time::timeout(deadline, stream.read_exact(&mut bytes))
        .await
        .map_err(|_| TransportError::Stalled(deadline.as_secs()))??;
    Ok(FrameHeader::decode(&bytes)?)
}

fn decode<M: Message + Default>(kind: FrameKind, payload: &[u8]) -> Result<M, TransportError> {
    M::decode(payload).map_err(|error| TransportError::Message(kind, error))
}

/// Writes a tree on a blocking thread.
struct TreeDecoder {
    name: TreeName,
    sink: Arc<dyn TreeSink>,
    writer: TreeWriter,
    digest: TreeDigest,
    entries: u64,
    bytes: u64,
}

impl TreeDecoder {
    fn open(name: TreeName, sink: Arc<dyn TreeSink>) -> Result<Self, TransportError> {
        let place = |source| TransportError::Place {
            tree: name.to_string(),
            source,
        };
        let root = sink.open(&name).map_err(place)?;
        let writer = TreeWriter::create(root).map_err(|source| TransportError::Tree {
            tree: name.to_string(),
            source,
        })?;
        Ok(Self {
            name,
            sink,
            writer,
            digest: TreeDigest::new(),
            entries: 0,
            bytes: 0,
        })
    }

    fn run(mut self, mut frames: mpsc::Receiver<Frame>) -> Result<TreeReport, TransportError> {
        while let Some((header, payload)) = frames.blocking_recv() {
            match header.kind {
                FrameKind::Entry => {
                    self.entries += 1;
                    self.digest.frame(&header, &payload);
                    let entry = decode::<TreeEntry>(header.kind, &payload)?;
                    self.apply(TreePart::Entry(entry))?;
                }
                FrameKind::Data => {
                    self.bytes += u64::from(header.length);
                    self.digest.frame(&header, &payload);
                    self.apply(TreePart::Data {
                        offset: header.offset,
                        bytes: payload,
                    })?;
                }
                FrameKind::TreeEnd => return self.finish(&decode::<TreeEnd>(header.kind, &payload)?),
                got => {
                    return Err(TransportError::Order {
                        wanted: "an entry, data or the end of the tree",
                        got,
                    });
                }
            }
        }
        Err(TransportError::Cut("a tree"))
    }

    fn apply(&mut self, part: TreePart) -> Result<(), TransportError> {
        let name = &self.name;
        self.writer.apply(part).map_err(|source| TransportError::Tree {
            tree: name.to_string(),
            source,
        })
    }

    fn finish(self, end: &TreeEnd) -> Result<TreeReport, TransportError> {
        let tree = self.name.to_string();
        let mismatch = |what| {
            Err(TransportError::Mismatch {
                tree: tree.clone(),
                what,
            })
        };
        let digest = self.digest.value();
        if end.entries != self.entries {
            return mismatch("entries");
        }
        if end.bytes != self.bytes {
            return mismatch("bytes");
        }
        if end.digest != digest {
            return mismatch("digests");
        }
        let ended = match self.name {
            TreeName::Layer(_) => self.writer.finish(),
            // The host brings all of them to the disk at once, while they are put to use.
            _ => self.writer.close(),
        };
        ended.map_err(|source| TransportError::Tree {
            tree: tree.clone(),
            source,
        })?;
        let report = TreeReport {
            name: self.name,
            entries: self.entries,
            bytes: self.bytes,
            digest,
        };
        self.sink
            .close(&report)
            .map_err(|source| TransportError::Place { tree, source })?;
        Ok(report)
    }
}
