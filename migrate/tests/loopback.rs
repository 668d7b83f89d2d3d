//! Both roles against each other in one process: real trees, real frames over an in-memory stream, hosts that are
//! simulated and can be told to fail. Says who has the container in the end, whatever fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "loopback/memory.rs"]
mod memory;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use memory::{Keeper, Memories, SimulatedMemory};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tranship_migrate::control::{Control, Conversation};
use tranship_migrate::convergence::{OnTimeout, Wishes};
use tranship_migrate::destination::{Destination, DestinationEnd, DestinationReport, run_from_journal};
use tranship_migrate::error::{ControlError, HostError};
use tranship_migrate::handoff::{DestinationStep, Inspection, SourceStep, Verdict, verdict};
use tranship_migrate::host::{
    AcceptedStream, ByteStream, CommitError, DestinationHost, DestinationSays, DumpedImages, Event,
    HeldRestore, MemoryMode, MemoryReader, Reservation, ReserveError, SourceHost, Stage,
};
use tranship_migrate::source::{Plan, Source, SourceEnd, SourceReport};
use tranship_migrate::transport::{PageKeeper, TreeSink};
use tranship_migrate::trees::{Tree, TreeName, TreeReport};
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{MigrateMessage, Reserve, Standby, StreamHello};

/// What both hosts share: who runs, what was journaled, and what is to fail.
#[derive(Default)]
struct World {
    source_runs: bool,
    source_on_network: bool,
    destination_holds: bool,
    destination_runs: bool,
    destination_on_network: bool,
    destination_dropped: bool,
    copy_removed: bool,
    source_journal: Vec<SourceStep>,
    destination_journal: Vec<DestinationStep>,
    stop_and_copy: bool,
    memories: Memories,
    slowed: bool,
    secured: bool,
    fail: Option<&'static str>,
    /// After so many times it does not fail any more.
    fail_times: usize,
    calls: Vec<&'static str>,
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn enter(&self, call: &'static str) -> Result<(), HostError> {
        let mut world = self.0.lock().unwrap();
        world.calls.push(call);
        if world.fail == Some(call) && world.fail_times > 0 {
            world.fail_times -= 1;
            Err(HostError::new(call, "told to fail"))
        } else {
            Ok(())
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut World) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }
}

/// What the source asks the destination for.
fn reservation() -> Reserve {
    Reserve {
        destination: "there".to_owned(),
        next_epoch: 8,
        ..Reserve::default()
    }
}

struct SimulatedSource {
    world: Shared,
    dir: PathBuf,
    streams: Mutex<VecDeque<tokio::io::DuplexStream>>,
}

#[async_trait]
impl SourceHost for SimulatedSource {
    async fn describe(&self) -> Result<Reserve, HostError> {
        self.world.enter("describe")?;
        Ok(reservation())
    }

    async fn record(&self, step: SourceStep) -> Result<(), HostError> {
        self.world.with(|world| world.source_journal.push(step));
        self.world.enter("source record")
    }

    async fn commit(&self, _digest: [u8; 32]) -> Result<(), CommitError> {
        self.world.enter("commit").map_err(CommitError::NotRecorded)?;
        self.world.enter("commit fsync").map_err(CommitError::Unknown)?;
        self.world
            .with(|world| world.source_journal.push(SourceStep::Committed));
        Ok(())
    }

    async fn memory_mode(&self) -> MemoryMode {
        if self.world.with(|world| world.stop_and_copy) {
            MemoryMode::StopAndCopy("told to".to_owned())
        } else {
            MemoryMode::Live
        }
    }

    async fn track_memory(&self) -> Result<Box<dyn MemoryReader>, HostError> {
        self.world.enter("track memory")?;
        Ok(Box::new(SimulatedMemory::new(self.world.clone())))
    }

    async fn fixed_cost(&self) -> Option<Duration> {
        None
    }

    async fn slow_down(&self, percent: Option<u8>) -> Result<(), HostError> {
        self.world.with(|world| world.slowed = percent.is_some());
        Ok(())
    }

    async fn open_stream(&self) -> Result<Box<dyn ByteStream>, HostError> {
        self.world.enter("open stream")?;
        let stream = self.streams.lock().unwrap().pop_front();
        Ok(Box::new(
            stream.ok_or_else(|| HostError::new("open stream", "taken"))?,
        ))
    }

    async fn layer(&self, name: &TreeName) -> Result<Tree, HostError> {
        self.world.enter("layer")?;
        Ok(Tree {
            name: name.clone(),
            path: self.dir.join("layer"),
        })
    }

    async fn standby(&self) -> Result<Standby, HostError> {
        self.world.enter("standby")?;
        Ok(Standby {
            descriptors: vec!["/dev/null".to_owned()],
        })
    }

    async fn prepare_dump(&self) -> Result<(), HostError> {
        self.world.enter("prepare dump")
    }

    async fn freeze(&self) -> Result<(), HostError> {
        self.world.with(|world| world.source_runs = false);
        self.world.enter("freeze")
    }

    async fn settle_network(&self) -> Result<(), HostError> {
        self.world
            .with(|world| assert!(world.source_runs, "nobody is left to settle"));
        self.world.enter("settle network")
    }

    async fn cut_network(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            world.source_on_network = false;
        });
        self.world.enter("cut network")
    }

    async fn gather_arrivals(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(!world.source_on_network, "gathered before the cut");
            assert!(world.calls.contains(&"hold network"), "gathered too early");
        });
        self.world.enter("gather arrivals")
    }

    async fn dump(&self) -> Result<DumpedImages, HostError> {
        self.world.enter("dump")?;
        Ok(DumpedImages {
            path: self.dir.join("images"),
            stages: Vec::new(),
        })
    }

    async fn finish_dump(&self) -> Result<(), HostError> {
        self.world.enter("finish dump")
    }

    async fn frozen_trees(&self) -> Result<Vec<Tree>, HostError> {
        self.world.enter("frozen trees")?;
        let volume = TreeName::Volume("data".parse().unwrap());
        Ok(vec![
            Tree {
                name: TreeName::Rootfs,
                path: self.dir.join("rootfs"),
            },
            Tree {
                name: volume,
                path: self.dir.join("volume"),
            },
        ])
    }

    async fn mend_network(&self) -> Result<(), HostError> {
        self.world.with(|world| world.source_on_network = true);
        Ok(())
    }

    async fn thaw(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(
                !world.source_journal.contains(&SourceStep::Committed),
                "thawed after the commit"
            );
            world.source_runs = true;
        });
        Ok(())
    }

    async fn drop_staging(&self) -> Result<(), HostError> {
        Ok(())
    }

    async fn remove_copy(&self) -> Result<(), HostError> {
        self.world.with(|world| {
            assert!(
                world.destination_runs,
                "the copy was removed before the destination ran"
            );
            world.copy_removed = true;
        });
        Ok(())
    }

    async fn ask_destination(&self) -> Result<DestinationSays, HostError> {
        Ok(self.world.with(|world| {
            if world.destination_runs {
                DestinationSays::Runs
            } else if world.destination_dropped {
                DestinationSays::Gone
            } else {
                DestinationSays::Waits
            }
        }))
    }

    fn observe(&self, _event: Event<'_>) {}
}

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

struct SimulatedDestination {
    world: Shared,
    place: Arc<Place>,
    streams: Mutex<VecDeque<tokio::io::DuplexStream>>,
}

impl SimulatedDestination {
    fn new(world: &Shared, dir: &Path, streams: VecDeque<tokio::io::DuplexStream>) -> Self {
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
            stream: Box::new(stream),
        })
    }

    async fn page_keeper(&self) -> Result<Arc<dyn PageKeeper>, HostError> {
        self.world.enter("page keeper")?;
        Ok(Arc::new(Keeper(Arc::clone(&self.world.0))))
    }

    async fn memory_complete(&self) -> Result<(), HostError> {
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
            .with(|world| verdict(world.source_journal.last().copied(), false)))
    }

    fn observe(&self, _event: Event<'_>) {}
}

/// One end of a control connection that can be cut before the message of a certain name.
struct Wire {
    out: mpsc::Sender<MigrateMessage>,
    inbox: mpsc::Receiver<MigrateMessage>,
    cut_before: Option<&'static str>,
}

#[async_trait]
impl Control for Wire {
    async fn send(&mut self, message: MigrateMessage) -> Result<(), ControlError> {
        let said = message.body.as_ref().map(tranship_migrate::control::name);
        if said.is_some() && said == self.cut_before {
            self.inbox.close();
            let (closed, _) = mpsc::channel(1);
            self.out = closed;
        }
        self.out
            .send(message)
            .await
            .map_err(|_| ControlError::Lost { waiting_for: "room" })
    }

    async fn receive(&mut self) -> Result<Option<MigrateMessage>, ControlError> {
        Ok(self.inbox.recv().await)
    }
}

struct Outcome {
    source: SourceReport,
    destination: Option<DestinationReport>,
    world: Shared,
    _dir: TempDir,
}

fn fill(dir: &Path) {
    for tree in ["images", "rootfs", "volume", "layer"] {
        let root = dir.join(tree);
        std::fs::create_dir_all(root.join("deep/er")).unwrap();
        for number in 0..40_usize {
            std::fs::write(root.join(format!("file-{number}")), vec![7; number * 10_007]).unwrap();
        }
        std::fs::write(root.join("deep/er/last"), tree).unwrap();
    }
}

/// The destination's side: waits for a reservation, as a daemon does, then plays the role.
async fn answer(
    migration: MigrationId,
    host: SimulatedDestination,
    mut wire: Wire,
) -> Option<DestinationReport> {
    let Ok(Some(MigrateMessage {
        body: Some(Body::Reserve(reserve)),
        ..
    })) = wire.receive().await
    else {
        return None;
    };
    let conversation = Conversation::new(migration, Box::new(wire));
    Some(
        Destination::new(migration, Arc::new(host), conversation)
            .run(reserve)
            .await,
    )
}

async fn migrate(fail: Option<&'static str>, cut_before: Option<&'static str>, cancel: bool) -> Outcome {
    let world = World {
        fail,
        fail_times: usize::MAX,
        ..World::default()
    };
    migrate_in(world, cut_before, cancel).await
}

async fn migrate_in(world: World, cut_before: Option<&'static str>, cancel: bool) -> Outcome {
    let dir = TempDir::new().unwrap();
    fill(dir.path());
    let arrived = dir.path().join("arrived");
    std::fs::create_dir(&arrived).unwrap();
    let world = Shared(Arc::new(Mutex::new(World {
        source_runs: true,
        source_on_network: true,
        ..world
    })));
    let (here, there) = (0..3).map(|_| tokio::io::duplex(64 << 10)).unzip();
    let (to_destination, at_destination) = mpsc::channel(8);
    let (to_source, at_source) = mpsc::channel(8);
    let migration = MigrationId::generate();
    let source_host = SimulatedSource {
        world: world.clone(),
        dir: dir.path().to_owned(),
        streams: Mutex::new(here),
    };
    let destination_host = SimulatedDestination::new(&world, &arrived, there);
    let wire = Wire {
        out: to_source,
        inbox: at_destination,
        cut_before,
    };
    let destination = tokio::spawn(answer(migration, destination_host, wire));
    let wire = Wire {
        out: to_destination,
        inbox: at_source,
        cut_before,
    };
    let (_cancel, cancelled) = watch::channel(cancel);
    let conversation = Conversation::new(migration, Box::new(wire));
    let plan = Plan {
        wishes: Wishes {
            max_downtime: Duration::from_millis(100),
            strict: false,
            timeout: Duration::from_secs(60),
            on_timeout: OnTimeout::Cancel,
        },
        page_streams: 2,
        max_bandwidth: 0,
    };
    let source = Source::new(migration, Arc::new(source_host), conversation, plan, cancelled)
        .run()
        .await;
    let destination = tokio::time::timeout(Duration::from_secs(60), destination)
        .await
        .unwrap()
        .unwrap();
    Outcome {
        source,
        destination,
        world,
        _dir: dir,
    }
}

fn assert_one_owner(outcome: &Outcome, what: &str) {
    let (source, destination) = outcome
        .world
        .with(|world| (world.source_runs, world.destination_runs));
    assert!(
        source != destination,
        "{what}: source runs {source}, destination runs {destination}"
    );
    outcome.world.with(|world| {
        assert_eq!(
            world.source_runs, world.source_on_network,
            "{what}: source's network"
        );
        assert_eq!(
            world.destination_runs, world.destination_on_network,
            "{what}: destination's network"
        );
        assert!(!world.destination_holds, "{what}: frames are held for nobody");
        assert_eq!(world.copy_removed, world.destination_runs, "{what}: the copy");
        assert_eq!(
            world.destination_dropped,
            !world.destination_runs && outcome.destination.is_some(),
            "{what}"
        );
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_moves_and_every_byte_with_it() {
    let outcome = migrate(None, None, false).await;
    assert!(
        matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()),
        "{:?}",
        outcome.source.end
    );
    let destination = outcome.destination.as_ref().unwrap();
    assert!(
        matches!(destination.end, DestinationEnd::Runs),
        "{:?}",
        destination.end
    );
    assert_one_owner(&outcome, "nothing failed");
    assert_eq!(outcome.source.trees, destination.trees);
    let names: Vec<String> = outcome
        .source
        .trees
        .iter()
        .map(|tree| tree.name.to_string())
        .collect();
    assert_eq!(names[1..], ["images", "rootfs", "volume:data", "memory"]);
    outcome.world.with(|world| {
        assert!(world.memories.agree(), "the memory is not the same");
        assert!(!world.slowed);
    });
    let rounds = &outcome.source.rounds;
    assert!(rounds.len() > 3 && rounds.last().is_some_and(|round| round.frozen));
    assert!(outcome.source.blackout_us > 0);
    let journal = outcome.world.with(|world| world.source_journal.clone());
    assert_eq!(
        journal,
        [
            SourceStep::Intent,
            SourceStep::Freezing,
            SourceStep::Committed,
            SourceStep::Done
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_before_the_commit_leaves_the_source_running() {
    let points = [
        "describe",
        "source record",
        "open stream",
        "layer",
        "track memory",
        "round",
        "look at the memory",
        "frozen round",
        "last round",
        "keep pages",
        "page keeper",
        "memory complete",
        "standby",
        "prepare dump",
        "prepare restore",
        "freeze",
        "settle network",
        "cut network",
        "gather arrivals",
        "dump",
        "frozen trees",
        "finish dump",
        "reserve",
        "open tree",
        "layers complete",
        "record prepared",
        "restore",
        "record ready",
        "commit",
    ];
    for point in points {
        let outcome = migrate(Some(point), None, false).await;
        assert_one_owner(&outcome, point);
        assert!(
            outcome.world.with(|world| world.source_runs),
            "{point}: lost at the source"
        );
        assert!(
            matches!(&outcome.source.end, SourceEnd::Failed { undo, .. } if undo.is_empty() || point == "source record")
                || matches!(&outcome.source.end, SourceEnd::RolledBack { undo, .. } if undo.is_empty()),
            "{point}: {:?}",
            outcome.source.end
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_cannot_hold_frames_gets_the_container_all_the_same() {
    let outcome = migrate(Some("hold network"), None, false).await;
    assert!(
        matches!(&outcome.source.end, SourceEnd::Done { .. }),
        "{:?}",
        outcome.source.end
    );
    outcome
        .world
        .with(|world| assert!(world.destination_runs && !world.source_runs));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_before_any_message_leaves_one_owner() {
    let messages = [
        "reserved",
        "round stored",
        "seeded",
        "standby",
        "freezing",
        "cut",
        "holding",
        "drained",
        "prepared",
        "ready",
        "go",
        "running",
    ];
    for message in messages {
        let outcome = migrate(None, Some(message), false).await;
        assert_one_owner(&outcome, message);
        let committed = outcome
            .world
            .with(|world| world.source_journal.contains(&SourceStep::Committed));
        assert_eq!(
            committed,
            outcome.world.with(|world| world.destination_runs),
            "{message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_cannot_follow_memory_still_moves_containers() {
    let world = World {
        stop_and_copy: true,
        ..World::default()
    };
    let outcome = migrate_in(world, None, false).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()));
    assert_one_owner(&outcome, "stop and copy");
    assert_eq!(
        outcome.source.memory_mode,
        MemoryMode::StopAndCopy("told to".to_owned())
    );
    assert!(outcome.source.rounds.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_nobody_knows_of_keeps_the_copy_frozen() {
    let outcome = migrate(Some("commit fsync"), None, false).await;
    assert!(
        matches!(outcome.source.end, SourceEnd::Unknown(_)),
        "{:?}",
        outcome.source.end
    );
    assert!(!outcome.world.with(|world| world.source_runs));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_after_the_commit_is_tried_again() {
    for point in ["record resuming", "adopt", "record running"] {
        let world = World {
            fail: Some(point),
            fail_times: 2,
            ..World::default()
        };
        let outcome = migrate_in(world, None, false).await;
        assert!(
            matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()),
            "{point}: {:?}",
            outcome.source.end
        );
        assert_one_owner(&outcome, point);
        let released = |calls: &Vec<&str>| calls.iter().filter(|call| **call == "release").count();
        assert_eq!(outcome.world.with(|world| released(&world.calls)), 1, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_runs_off_its_network_has_moved_and_both_ends_say_so() {
    let outcome = migrate(Some("plug"), None, false).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()));
    let destination = outcome.destination.as_ref().unwrap();
    assert!(matches!(destination.end, DestinationEnd::Runs));
    for warnings in [&outcome.source.warnings, &destination.warnings] {
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        let parts = [
            "runs at there",
            "not on its network",
            "told to fail",
            "goes on trying",
        ];
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }
    outcome.world.with(|world| {
        assert!(world.destination_runs && world.copy_removed && !world.source_on_network);
        let done = [DestinationStep::Resuming, DestinationStep::Running];
        assert!(world.destination_journal.ends_with(&done));
    });
    let well = migrate(None, None, false).await;
    assert!(well.source.warnings.is_empty() && well.destination.unwrap().warnings.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_a_restarted_daemon_cannot_plug_in_is_adopted_with_the_same_warning() {
    let dir = TempDir::new().unwrap();
    let world = Shared(Arc::new(Mutex::new(World {
        destination_runs: true,
        fail: Some("plug"),
        fail_times: usize::MAX,
        ..World::default()
    })));
    let host = SimulatedDestination::new(&world, dir.path(), VecDeque::new());
    let newest = Some(DestinationStep::Resuming);
    let id = MigrationId::generate();
    let report = run_from_journal(id, Arc::new(host), reservation(), newest, false).await;
    assert!(matches!(report.end, DestinationEnd::Runs), "{:?}", report.end);
    assert!(
        report.warnings[0].contains("told to fail"),
        "{:?}",
        report.warnings
    );
    let expected = ["inspect", "plug", "adopt", "record running"];
    assert_eq!(world.with(|world| world.calls.clone()), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_not_let_in_leaves_what_is_there_alone() {
    let outcome = migrate(Some("admit"), None, false).await;
    assert!(
        matches!(&outcome.source.end, SourceEnd::Failed { .. }),
        "{:?}",
        outcome.source.end
    );
    let destination = outcome.destination.unwrap();
    assert!(matches!(destination.end, DestinationEnd::Dropped { .. }));
    outcome.world.with(|world| {
        assert!(world.source_runs && !world.destination_dropped);
        assert_eq!(world.destination_journal, [DestinationStep::Dropped]);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_migration_touches_nothing() {
    let outcome = migrate(None, None, true).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Failed { failure, .. } if failure.is_cancelled()));
    outcome.world.with(|world| {
        assert!(world.source_runs && world.source_on_network);
        assert_eq!(world.source_journal, [SourceStep::Aborted]);
        assert_eq!(world.calls, ["source record"]);
    });
}
