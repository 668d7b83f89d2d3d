//! One migration between the two simulated hosts, over a control connection that can be cut.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tranship_migrate::control::{Control, Conversation};
use tranship_migrate::convergence::{OnTimeout, Wishes};
use tranship_migrate::destination::{Destination, DestinationReport};
use tranship_migrate::error::ControlError;
use tranship_migrate::source::{Plan, Source, SourceReport};
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::MigrateMessage;
use tranship_proto::v1::migrate_message::Body;

use super::destination::SimulatedDestination;
use super::source::SimulatedSource;
use super::world::{Shared, World};

/// What a person wants who asks for nothing.
pub const WISHES: Wishes = Wishes {
    max_downtime: Duration::from_millis(100),
    strict: false,
    timeout: Duration::from_secs(60),
    on_timeout: OnTimeout::Cancel,
};

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

pub struct Outcome {
    pub source: SourceReport,
    pub destination: Option<DestinationReport>,
    pub world: Shared,
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

pub async fn migrate(fail: Option<&'static str>, cut_before: Option<&'static str>, cancel: bool) -> Outcome {
    let world = World {
        fail,
        fail_times: usize::MAX,
        ..World::default()
    };
    migrate_in(world, cut_before, cancel).await
}

pub async fn migrate_in(world: World, cut_before: Option<&'static str>, cancel: bool) -> Outcome {
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
        wishes: world.with(|world| world.wishes).unwrap_or(WISHES),
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
