//! The ways to decide a handoff that the suite is run with.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use tranship_daemon::arbiter::{Arbiter, EtcdArbiter, Handoff, LocalArbiter, Token};
use tranship_daemon::etcd::Etcd;
use tranship_daemon::registry::Registry;
use tranship_proto::ids::{ContainerId, MigrationId, Name};

use crate::etcd::EtcdCluster;

/// A way to make arbiters.
#[async_trait]
pub trait Kind: Send + Sync {
    /// An arbiter as one side of the migration has it.
    fn arbiter(&self, migration: MigrationId) -> Arc<dyn Arbiter>;

    /// What keeps the record ends and is started again.
    async fn restart(&mut self);
}

/// The source's journal.
pub struct Local {
    dir: tempfile::TempDir,
    registry: Registry,
    recovered: bool,
    made: Mutex<HashMap<MigrationId, Arc<LocalArbiter>>>,
}

impl Local {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        Self {
            dir,
            registry,
            recovered: false,
            made: Mutex::default(),
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("r.db")
    }
}

#[async_trait]
impl Kind for Local {
    fn arbiter(&self, migration: MigrationId) -> Arc<dyn Arbiter> {
        let mut made = self.made.lock().unwrap();
        let make = || match self.recovered {
            true => LocalArbiter::recovered(self.registry.clone(), migration),
            false => LocalArbiter::new(self.registry.clone(), migration),
        };
        Arc::clone(made.entry(migration).or_insert_with(|| Arc::new(make()))) as Arc<dyn Arbiter>
    }

    async fn restart(&mut self) {
        self.made.lock().unwrap().clear();
        self.registry = Registry::open(&self.path()).unwrap();
        self.recovered = true;
    }
}

#[async_trait]
impl Kind for EtcdCluster {
    /// With connections of its own, as it is on another host.
    fn arbiter(&self, _: MigrationId) -> Arc<dyn Arbiter> {
        Arc::new(EtcdArbiter::new(Etcd::new(&self.config())))
    }

    async fn restart(&mut self) {
        for member in 0..self.len() {
            self.kill(member);
        }
        for member in 0..self.len() {
            self.start_member(member);
        }
        self.leader().await;
    }
}

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn new_container() -> ContainerId {
    let id = MigrationId::generate().to_string();
    let digits = id.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{digits:0>64}").parse().unwrap()
}

/// A handoff of `container` from `source`, who owns it under `epoch`, to `destination`; not opened yet.
pub fn handoff(container: &ContainerId, (source, epoch): (&str, u64), destination: &str) -> Handoff {
    Handoff {
        container: container.clone(),
        migration: MigrationId::generate(),
        source: name(source),
        destination: name(destination),
        epoch: epoch + 1,
        token: Token(0),
    }
}

/// A handoff of a new container from `a` to `b`, opened.
pub async fn opened(kind: &dyn Kind) -> Handoff {
    let mut handoff = handoff(&new_container(), ("a", 1), "b");
    let arbiter = kind.arbiter(handoff.migration);
    handoff.token = arbiter
        .open(&handoff.container, &handoff.source, 1)
        .await
        .unwrap();
    handoff
}
