//! A destination that writes real trees, and restores nothing but a mark.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tranship_migrate::error::HostError;
use tranship_migrate::handoff::{DestinationStep, Inspection, Resolution, SourceStep, Verdict, verdict};
use tranship_migrate::host::{
    AcceptedStream, DestinationHost, Event, HeldRestore, Reservation, ReserveError, Stage,
};
use tranship_migrate::transport::{PageKeeper, TreeSink};
use tranship_migrate::trees::{TreeName, TreeReport};
use tranship_proto::v1::{Reserve, Standby, StreamHello};

use super::memory::Keeper;
use super::world::Shared;

struct Place {
    world: Shared,
    dir: PathBuf,
    closed: Mutex<BTreeMap<String, u64>>,
}

impl TreeSink for Place {
    fn open(&self, name: &TreeName) -> Result<OwnedFd, HostError> {
        self.world.enter("open tree")?;
        let path = self.dir.join(name.to_string());
        std::fs::create_dir(&path).map_err(|error| HostError::new("make a tree", error))?;
        let dir = std::fs::File::open(&path).map_err(|error| HostError::new("open a tree", error))?;
        Ok(dir.into())
    }

    fn close(&self, report: &TreeReport) -> Result<(), HostError> {
        self.closed
            .lock()
            .unwrap()
            .insert(report.name.to_string(), report.bytes);
        Ok(())
    }
}

/// A stream whose other end may learn that it is closed long before this one goes on.
struct Closing {
    world: Shared,
    stream: Option<DuplexStream>,
}

impl Closing {
    fn open(&mut self) -> Pin<&mut DuplexStream> {
        Pin::new(self.stream.as_mut().unwrap())
    }
}

impl AsyncRead for Closing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.open().poll_read(cx, buf)
    }
}

impl AsyncWrite for Closing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.open().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.open().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.open().poll_shutdown(cx)
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.stream = None;
        if self.world.with(|world| world.slow_to_close) {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

pub struct SimulatedDestination {
    world: Shared,
    place: Arc<Place>,
    streams: Mutex<VecDeque<DuplexStream>>,
}

impl SimulatedDestination {
    pub fn new(world: &Shared, dir: &Path, streams: VecDeque<DuplexStream>) -> Self {
        let place = Place {
            world: world.clone(),
            dir: dir.to_owned(),
            closed: Mutex::default(),
        };
        Self {
            world: world.clone(),
            place: Arc::new(place),
            streams: Mutex::new(streams),
        }
    }
}

struct Held(Shared);

#[async_trait]
impl HeldRestore for Held {
    fn stages(&self) -> &[Stage] {
        &[]
    }

    async fn release(&mut self) -> Result<(), HostError> {
        self.0.enter("release")?;
        self.0.with(|world| {
            assert!(
                world.source_journal.contains(&SourceStep::Committed),
                "resumed before the commit"
            );
            assert!(!world.source_runs, "two owners");
            world.destination_runs = true;
        });
        Ok(())
    }

    async fn running(self: Box<Self>) -> Result<Vec<Stage>, HostError> {
        Ok(Vec::new())
    }

    async fn abandon(self: Box<Self>) -> Result<(), HostError> {
        Ok(())
    }
}

#[async_trait]
impl DestinationHost for SimulatedDestination {
    fn has_arbiter(&self) -> bool {
        false
    }

    async fn claim(&self) -> Result<Verdict, HostError> {
        Err(HostError::new("ask the arbiter", "there is none"))
    }

    async fn resolved(&self) -> Resolution {
        std::future::pending().await
    }

    async fn reserve(&self, _reserve: &Reserve) -> Result<Reservation, ReserveError> {
        self.world.enter("admit").map_err(ReserveError::Refused)?;
        self.world.enter("reserve")?;
        let layer = format!("sha256:{}", "cd".repeat(32));
        Ok(Reservation {
            layers_missing: vec![layer],
            data_token: vec![1; 16],
        })
    }

    async fn accept_stream(&self) -> Result<AcceptedStream, HostError> {
        let mut stream = self
            .streams
            .lock()
            .unwrap()
            .pop_front()
            .ok_or_else(|| HostError::new("accept", "taken"))?;
        let mut greeting = [0; 16];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut greeting)
            .await
            .map_err(|error| HostError::new("greet", error))?;
        let length = u32::from_le_bytes([greeting[4], greeting[5], greeting[6], greeting[7]]);
        let mut payload = vec![0; length as usize];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut payload)
            .await
            .map_err(|error| HostError::new("greet", error))?;
        let hello = <StreamHello as prost::Message>::decode(payload.as_slice())
            .map_err(|error| HostError::new("greet", error))?;
        Ok(AcceptedStream {
            page_stream: hello.page_stream,
            stream: Box::new(Closing {
                world: self.world.clone(),
                stream: Some(stream),
            }),
        })
    }

    async fn page_keeper(&self) -> Result<Arc<dyn PageKeeper>, HostError> {
        self.world.enter("page keeper")?;
        Ok(Arc::new(Keeper(Arc::clone(&self.world.0))))
    }

    async fn memory_complete(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(!world.memory_in_images, "what is of no use is not completed");
        });
        self.world.enter("memory complete")
    }

    async fn secure(&self) -> Result<(), HostError> {
        self.world.enter("secure")?;
        self.world.with(|world| world.secured = true);
        Ok(())
    }

    fn sink(&self) -> Arc<dyn TreeSink> {
        Arc::clone(&self.place) as Arc<dyn TreeSink>
    }

    async fn layers_complete(&self) -> Result<(), HostError> {
        self.world.enter("layers complete")
    }

    async fn hold_network(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(!world.source_on_network, "held while the source answers");
            world.destination_holds = true;
        });
        self.world.enter("hold network")
    }

    async fn record(&self, step: DestinationStep) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(
                world.secured || step != DestinationStep::Ready,
                "promised too much"
            );
            world.destination_journal.push(step);
        });
        let call = match step {
            DestinationStep::Prepared => "record prepared",
            DestinationStep::Ready => "record ready",
            DestinationStep::Resuming => "record resuming",
            DestinationStep::Running => "record running",
            _ => return Ok(()),
        };
        self.world.enter(call)
    }

    async fn prepare_restore(&self, standby: &Standby) -> Result<(), HostError> {
        assert_eq!(standby.descriptors, ["/dev/null"]);
        self.world
            .with(|world| world.memory_in_images = standby.memory_in_images);
        self.world.enter("prepare restore")
    }

    async fn restore_held(&self) -> Result<Box<dyn HeldRestore>, HostError> {
        self.world.enter("restore")?;
        Ok(Box::new(Held(self.world.clone())))
    }

    async fn plug_network(&self) -> Result<(), HostError> {
        self.world.enter("plug")?;
        self.world.with(|world| {
            assert!(!world.source_on_network, "the address answers twice");
            assert!(world.destination_runs, "what it acknowledges can still be lost");
            world.destination_holds = false;
            world.destination_on_network = true;
        });
        Ok(())
    }

    async fn adopt(&self) -> Result<(), HostError> {
        self.world.enter("adopt")
    }

    async fn drop_staging(&self) -> Result<(), HostError> {
        Ok(())
    }

    async fn drop_all(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            world.destination_dropped = true;
            world.destination_holds = false;
        });
        Ok(())
    }

    async fn inspect(&self) -> Result<Inspection, HostError> {
        self.world.enter("inspect")?;
        Ok(self.world.with(|world| match world.destination_runs {
            true => Inspection::Runs,
            false => Inspection::NeverReleased,
        }))
    }

    async fn ask_source(&self) -> Result<Verdict, HostError> {
        Ok(self
            .world
            .with(|world| verdict(world.source_journal.last().copied(), false, false)))
    }

    fn observe(&self, _event: Event<'_>) {}
}
