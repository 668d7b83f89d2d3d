//! Memory over bulk streams: batches of pages become frames, shared out over several streams, and go into a store.
//!
//! Memory is bounded at both ends: a stream holds at most [`BATCHES_IN_FLIGHT`] batches on its way out and one frame on
//! its way in. What has been sent is counted and its tables are hashed on both sides, so that nothing is left out
//! or stored for another place without being noticed; the content itself is protected by TLS.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tranship_checkpoint::memory::{PageBatch, PageSink, SinkClosed};
use tranship_proto::frame::{FrameHeader, FrameKind};
use tranship_proto::limits::{MAX_PAGE_CONTENT_BYTES, MAX_PAGE_RUNS};
use tranship_proto::pages::{PAGE_BYTES, PageRun, Pages, encode_table};

use super::receive::read_header;
use super::send::{flush, write};
use super::{TransportError, send_end};
use crate::deadlines::{SEED_IDLE, STALL};
use crate::error::HostError;
use crate::host::ByteStream;
use crate::trees::{TreeName, TreeReport};

/// Batches that wait for one stream. Two keep it busy while the next is read.
const BATCHES_IN_FLIGHT: usize = 2;

/// Where arriving pages go.
pub trait PageKeeper: Send + Sync + 'static {
    /// Keeps pages of a round. One of a lower round never replaces one of a higher.
    ///
    /// # Errors
    /// They do not fit what was reserved, or cannot be written.
    fn put(&self, round: u32, pages: &Pages<'_>) -> Result<(), HostError>;
}

/// What went over one stream, as both ends count it.
#[derive(Clone, Debug, Default)]
pub struct PagesReport {
    pages: u64,
    bytes: u64,
    tables: blake3::Hasher,
}

impl PagesReport {
    fn count(&mut self, round: u32, process: u32, runs: &[PageRun]) {
        self.tables.update(&round.to_le_bytes());
        self.tables.update(&encode_table(process, runs));
        self.pages += runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
        self.bytes += runs.iter().map(PageRun::content_bytes).sum::<u64>();
    }

    /// All streams of a migration, in their order, as one tree.
    #[must_use]
    pub fn as_tree(streams: &[Self]) -> TreeReport {
        let mut all = blake3::Hasher::new();
        for stream in streams {
            all.update(stream.tables.finalize().as_bytes());
            all.update(&stream.bytes.to_le_bytes());
        }
        TreeReport {
            name: TreeName::Memory,
            entries: streams.iter().map(|stream| stream.pages).sum(),
            bytes: streams.iter().map(|stream| stream.bytes).sum(),
            digest: *all.finalize().as_bytes(),
        }
    }
}

/// Keeps a migration below a bandwidth.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    next: Mutex<Instant>,
}

impl Pace {
    /// At most so many bytes a second; `None` for 0, which is no limit.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Option<Arc<Self>> {
        let next = Mutex::new(Instant::now());
        (bytes_per_s > 0).then(|| Arc::new(Self { bytes_per_s, next }))
    }

    async fn take(&self, bytes: u64) {
        let at = {
            let mut next = self.next.lock().await;
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
            at
        };
        tokio::time::sleep_until(at).await;
    }
}

enum Job {
    Pages(u32, PageBatch),
    RoundEnd(u32),
    End,
}

type Sending = JoinHandle<Result<PagesReport, TransportError>>;

/// The sending ends of all streams of memory. Dropping it cuts them.
pub struct PageSenders {
    jobs: Vec<mpsc::Sender<Job>>,
    tasks: Vec<Sending>,
}

impl PageSenders {
    /// Takes greeted streams over.
    #[must_use]
    pub fn start(streams: Vec<Box<dyn ByteStream>>, pace: Option<Arc<Pace>>) -> Self {
        let (mut jobs, mut tasks) = (Vec::new(), Vec::new());
        for stream in streams {
            let (sender, receiver) = mpsc::channel(BATCHES_IN_FLIGHT);
            jobs.push(sender);
            tasks.push(tokio::spawn(send_pages(stream, receiver, pace.clone())));
        }
        Self { jobs, tasks }
    }

    /// Where the pages of a round go.
    #[must_use]
    pub fn sink(&self, round: u32) -> RoundSink {
        RoundSink {
            round,
            jobs: self.jobs.clone(),
        }
    }

    /// Tells the receiver that a round has no more pages.
    ///
    /// # Errors
    /// A stream has failed.
    pub async fn end_round(&mut self, round: u32) -> Result<(), TransportError> {
        for index in 0..self.jobs.len() {
            if self.jobs[index].send(Job::RoundEnd(round)).await.is_err() {
                return Err(self.failure().await);
            }
        }
        Ok(())
    }

    /// Ends all streams.
    ///
    /// # Errors
    /// One of them has failed.
    pub async fn finish(mut self) -> Result<TreeReport, TransportError> {
        for job in &self.jobs {
            // One that has failed says why below.
            let _ = job.send(Job::End).await;
        }
        let mut reports = Vec::new();
        for task in &mut self.tasks {
            reports.push(task.await.map_err(|_| TransportError::Worker)??);
        }
        Ok(PagesReport::as_tree(&reports))
    }

    /// Why a stream takes no more pages.
    pub async fn failure(&mut self) -> TransportError {
        self.jobs.clear();
        for task in &mut self.tasks {
            match task.await {
                // One that was well ends because nobody gives it anything any more.
                Ok(Ok(_) | Err(TransportError::Worker)) | Err(_) => {}
                Ok(Err(error)) => return error,
            }
        }
        TransportError::Worker
    }
}

impl Drop for PageSenders {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Shares the pages of one round out over the streams. Blocks where all are busy.
pub struct RoundSink {
    round: u32,
    jobs: Vec<mpsc::Sender<Job>>,
}

impl PageSink for RoundSink {
    fn take(&mut self, batch: PageBatch) -> Result<(), SinkClosed> {
        let idle = self.jobs.iter().max_by_key(|job| job.capacity());
        let job = idle.ok_or(SinkClosed)?;
        job.blocking_send(Job::Pages(self.round, batch))
            .map_err(|_| SinkClosed)
    }
}

async fn send_pages(
    mut stream: Box<dyn ByteStream>,
    mut jobs: mpsc::Receiver<Job>,
    pace: Option<Arc<Pace>>,
) -> Result<PagesReport, TransportError> {
    let mut report = PagesReport::default();
    while let Some(job) = jobs.recv().await {
        match job {
            Job::Pages(round, batch) => {
                for frame in frames(&batch) {
                    if let Some(pace) = &pace {
                        pace.take(frame.content.len() as u64).await;
                    }
                    send_frame(&mut stream, round, batch.process, &frame).await?;
                    report.count(round, batch.process, &frame.runs);
                }
            }
            Job::RoundEnd(round) => {
                let header = header(FrameKind::RoundEnd, 0, round)?;
                write(&mut stream, &header.encode()).await?;
                flush(&mut stream).await?;
            }
            Job::End => {
                send_end(&mut stream).await?;
                return Ok(report);
            }
        }
    }
    Err(TransportError::Worker)
}

async fn send_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    round: u32,
    process: u32,
    frame: &PageFrame<'_>,
) -> Result<(), TransportError> {
    let table = encode_table(process, &frame.runs);
    let length = table.len() + frame.content.len();
    let mut head = header(FrameKind::Pages, length, round)?.encode().to_vec();
    head.extend_from_slice(&table);
    write(stream, &head).await?;
    write(stream, frame.content).await
}

fn header(kind: FrameKind, length: usize, round: u32) -> Result<FrameHeader, TransportError> {
    let header = FrameHeader {
        kind,
        tree: 0,
        length: u32::try_from(length).unwrap_or(u32::MAX),
        offset: u64::from(round),
    };
    // What a receiver would refuse is not sent.
    Ok(FrameHeader::decode(&header.encode())?)
}

/// As much of a batch as one frame may carry.
struct PageFrame<'a> {
    runs: Vec<PageRun>,
    content: &'a [u8],
}

/// A batch, cut where a frame would become too large.
fn frames(batch: &PageBatch) -> Vec<PageFrame<'_>> {
    let most_pages = u64::from(MAX_PAGE_CONTENT_BYTES) / PAGE_BYTES;
    let (mut frames, mut rest) = (Vec::new(), batch.data.as_slice());
    let (mut runs, mut content_pages) = (Vec::new(), 0);
    let mut close = |runs: &mut Vec<PageRun>, content_pages: &mut u64| {
        let bytes = usize::try_from(*content_pages * PAGE_BYTES).unwrap_or(usize::MAX);
        let (content, behind) = rest.split_at(bytes.min(rest.len()));
        rest = behind;
        *content_pages = 0;
        frames.push(PageFrame {
            runs: std::mem::take(runs),
            content,
        });
    };
    for run in &batch.runs {
        let mut left = *run;
        while left.pages > 0 {
            if content_pages == most_pages || runs.len() == MAX_PAGE_RUNS as usize {
                close(&mut runs, &mut content_pages);
            }
            let room = if left.zero {
                u64::MAX
            } else {
                most_pages - content_pages
            };
            let pages = u32::try_from(u64::from(left.pages).min(room)).unwrap_or(u32::MAX);
            let part = PageRun { pages, ..left };
            content_pages += if part.zero { 0 } else { u64::from(pages) };
            left.start = part.end();
            left.pages -= pages;
            runs.push(part);
        }
    }
    if !runs.is_empty() {
        close(&mut runs, &mut content_pages);
    }
    frames
}

/// Receives pages until the stream ends. The number of each round goes to `ended` when this stream has none left of it.
///
/// # Errors
/// Anything malformed, a keeper that refuses, a stream that is cut or stalls.
pub async fn receive_pages(
    stream: &mut (impl AsyncRead + Unpin),
    keeper: Arc<dyn PageKeeper>,
    ended: mpsc::Sender<u32>,
) -> Result<PagesReport, TransportError> {
    let mut report = PagesReport::default();
    let mut payload = Vec::new();
    loop {
        let header = read_header(stream, SEED_IDLE).await?;
        let round = u32::try_from(header.offset).unwrap_or(u32::MAX);
        match header.kind {
            FrameKind::End => return Ok(report),
            FrameKind::RoundEnd => {
                // Nobody who has gone away needs to know.
                let _ = ended.send(round).await;
            }
            FrameKind::Pages => {
                // The header's check has bounded the length.
                payload.resize(header.length as usize, 0);
                let read = tokio::time::timeout(STALL, stream.read_exact(&mut payload)).await;
                read.map_err(|_| TransportError::Stalled(STALL.as_secs()))??;
                let keeper = Arc::clone(&keeper);
                let storing =
                    tokio::task::spawn_blocking(move || store(keeper.as_ref(), round, payload, report));
                (payload, report) = storing.await.map_err(|_| TransportError::Worker)??;
            }
            got => {
                let wanted = "pages of memory";
                return Err(TransportError::Order { wanted, got });
            }
        }
    }
}

fn store(
    keeper: &dyn PageKeeper,
    round: u32,
    payload: Vec<u8>,
    mut report: PagesReport,
) -> Result<(Vec<u8>, PagesReport), TransportError> {
    let pages = Pages::decode(&payload)?;
    keeper
        .put(round, &pages)
        .map_err(|source| TransportError::Place {
            tree: TreeName::Memory.to_string(),
            source,
        })?;
    report.count(round, pages.process, &pages.runs);
    Ok((payload, report))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Kept(std::sync::Mutex<Vec<(u32, PageRun)>>);

    impl PageKeeper for Kept {
        fn put(&self, round: u32, pages: &Pages<'_>) -> Result<(), HostError> {
            let mut data = pages.data;
            for run in &pages.runs {
                data = &data[usize::try_from(run.content_bytes()).unwrap()..];
                self.0.lock().unwrap().push((round, *run));
            }
            Ok(())
        }
    }

    fn batch(parts: &[(u32, bool)]) -> PageBatch {
        let (mut runs, mut data, mut start) = (Vec::new(), Vec::new(), 0x10_0000);
        for (index, (pages, zero)) in parts.iter().enumerate() {
            let run = PageRun {
                start,
                pages: *pages,
                zero: *zero,
            };
            start = run.end() + PAGE_BYTES;
            data.resize(
                data.len() + usize::try_from(run.content_bytes()).unwrap(),
                u8::try_from(index % 251).unwrap(),
            );
            runs.push(run);
        }
        PageBatch {
            process: 7,
            runs,
            data,
        }
    }

    #[tokio::test]
    async fn pages_of_several_streams_arrive_with_their_rounds_and_both_ends_agree() {
        let (mut ours, mut receivers) = (Vec::<Box<dyn ByteStream>>::new(), Vec::new());
        let kept = Arc::new(Kept::default());
        let (ended, mut rounds) = mpsc::channel(8);
        for _ in 0..3 {
            let (one, mut other) = tokio::io::duplex(1 << 16);
            ours.push(Box::new(one));
            let (kept, ended) = (Arc::clone(&kept), ended.clone());
            receivers.push(tokio::spawn(async move {
                receive_pages(&mut other, kept, ended).await
            }));
        }
        let mut senders = PageSenders::start(ours, None);
        for round in 0..2 {
            let mut sink = senders.sink(round);
            let sending = tokio::task::spawn_blocking(move || {
                (0..10).try_for_each(|_| sink.take(batch(&[(3, false), (1000, true), (1, false)])))
            });
            sending.await.unwrap().unwrap();
            senders.end_round(round).await.unwrap();
            for _ in 0..3 {
                assert_eq!(rounds.recv().await, Some(round));
            }
            assert_eq!(
                kept.0.lock().unwrap().len(),
                30 * (round as usize + 1),
                "all is stored when a round has ended"
            );
        }
        let sent = senders.finish().await.unwrap();
        let mut reports = Vec::new();
        for receiver in receivers {
            reports.push(receiver.await.unwrap().unwrap());
        }
        assert_eq!(sent, PagesReport::as_tree(&reports));
        assert_eq!((sent.entries, sent.bytes), (20 * 1004, 20 * 4 * PAGE_BYTES));
    }

    #[tokio::test]
    async fn a_stream_that_is_cut_ends_the_round_with_a_reason() {
        let (one, other) = tokio::io::duplex(1 << 12);
        let mut senders = PageSenders::start(vec![Box::new(one)], None);
        drop(other);
        let mut sink = senders.sink(0);
        let sending =
            tokio::task::spawn_blocking(move || (0..10).try_for_each(|_| sink.take(batch(&[(200, false)]))));
        assert!(sending.await.unwrap().is_err());
        let why = senders.failure().await;
        assert!(matches!(why, TransportError::Io(_)), "{why}");
    }

    #[tokio::test]
    async fn a_bandwidth_is_kept() {
        let pace = Pace::new(50_000).unwrap();
        let began = Instant::now();
        for _ in 0..11 {
            pace.take(500).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(100));
        assert!(Pace::new(0).is_none());
    }

    proptest! {
        #[test]
        fn a_batch_of_any_size_becomes_frames_that_are_taken(parts in proptest::collection::vec((1u32..700, any::<bool>()), 1..12)) {
            let batch = batch(&parts);
            let (mut pages, mut content) = (0, Vec::new());
            for frame in frames(&batch) {
                let mut payload = encode_table(batch.process, &frame.runs);
                payload.extend_from_slice(frame.content);
                let read = Pages::decode(&payload).unwrap();
                pages += read.runs.iter().map(|run| u64::from(run.pages)).sum::<u64>();
                content.extend_from_slice(read.data);
            }
            prop_assert_eq!(pages, batch.runs.iter().map(|run| u64::from(run.pages)).sum::<u64>());
            prop_assert_eq!(content, batch.data);
        }
    }
}
