//! Hosts of a test: real listeners on loopback, real certificates, a store in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tranship_daemon::config::{EtcdConfig, PeerConfig};
use tranship_daemon::peers::address::PeerAddress;
use tranship_daemon::peers::{
    Admission, Admitted, HostStore, HostStoreError, MigrateReplies, PeerIdentity, PeerMigrations,
    PeerSettings, Peers, PeersError,
};
use tranship_proto::ids::Name;
use tranship_proto::v1::{
    HostRecord, MigrateMessage, PreflightReply, PreflightRequest, QueryMigrationReply, QueryMigrationRequest,
    ResolvedMigrationReply, ResolvedMigrationRequest,
};

/// One host. Its listener ends with it.
pub struct TestHost {
    pub peers: Peers,
    pub store: Arc<MemoryStore>,
    pub dir: tempfile::TempDir,
    shutdown: CancellationToken,
    serving: Option<JoinHandle<Result<(), PeersError>>>,
    etcd: Option<EtcdConfig>,
}

impl TestHost {
    /// A host that is in no cluster yet.
    pub async fn new() -> Self {
        Self::new_with(None).await
    }

    /// The same, with an etcd.
    pub async fn new_with(etcd: Option<EtcdConfig>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self::open(dir, Arc::default(), "127.0.0.1:0".parse().unwrap(), None, etcd).await
    }

    /// The first host of a cluster.
    pub async fn first(name: &str) -> Self {
        let host = Self::new().await;
        host.peers.init(name, "").await.unwrap();
        host
    }

    /// A host that joins the cluster of `inviter`.
    pub async fn joined(name: &str, inviter: &Self) -> Self {
        let host = Self::new().await;
        host.peers.join(&inviter.token().await, name, "").await.unwrap();
        host
    }

    async fn open(
        dir: tempfile::TempDir,
        store: Arc<MemoryStore>,
        listen: SocketAddr,
        advertise: Option<PeerAddress>,
        etcd: Option<EtcdConfig>,
    ) -> Self {
        let settings = PeerSettings {
            pki: dir.path().join("pki"),
            name: None,
            peer: PeerConfig { listen, advertise },
            etcd: etcd.clone(),
        };
        let peers = Peers::open(settings, Arc::clone(&store) as Arc<dyn HostStore>)
            .await
            .unwrap();
        let shutdown = CancellationToken::new();
        let (serving, stop) = (peers.clone(), shutdown.clone());
        let serving = Some(tokio::spawn(async move {
            serving.serve(Arc::new(Answers), stop).await
        }));
        Self {
            peers,
            store,
            dir,
            shutdown,
            serving,
            etcd,
        }
    }

    /// The same host after its daemon was stopped and started.
    pub async fn restarted(self) -> Self {
        self.stopped().await.started().await
    }

    /// Stops the daemon; what is on disk stays.
    pub async fn stopped(mut self) -> Stopped {
        let listen = self.address();
        self.shutdown.cancel();
        self.serving.take().unwrap().await.unwrap().unwrap();
        let dir = std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap());
        Stopped {
            dir,
            store: Arc::clone(&self.store),
            listen,
            etcd: self.etcd.clone(),
        }
    }

    pub async fn token(&self) -> String {
        self.peers.create_token(Duration::ZERO).await.unwrap().0
    }

    pub fn address(&self) -> SocketAddr {
        self.peers.address().unwrap().parse().unwrap()
    }

    pub fn name(&self) -> Name {
        self.peers.identity().unwrap().name
    }

    pub fn pki(&self) -> PathBuf {
        self.dir.path().join("pki")
    }

    pub fn refused(&self, reason: &str) -> u64 {
        self.peers.refusals().count(reason)
    }

    /// Waits until this host knows (or no longer counts) another.
    pub async fn until_known(&self, name: &str, known: bool) {
        for _ in 0..200 {
            if self.peers.hosts().iter().any(|host| host.name.as_str() == name) == known {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} did not become known={known} within 10 s");
    }
}

/// A host whose daemon does not run.
pub struct Stopped {
    dir: tempfile::TempDir,
    store: Arc<MemoryStore>,
    listen: SocketAddr,
    etcd: Option<EtcdConfig>,
}

impl Stopped {
    pub async fn started(self) -> TestHost {
        TestHost::open(self.dir, self.store, self.listen, None, self.etcd).await
    }

    /// At another address.
    pub async fn moved_to(self, listen: SocketAddr) -> TestHost {
        let advertise = Some(listen.into());
        TestHost::open(self.dir, self.store, listen, advertise, self.etcd).await
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// Says who asked.
struct Answers;

#[async_trait]
impl PeerMigrations for Answers {
    async fn preflight(&self, peer: PeerIdentity, _: PreflightRequest) -> Result<PreflightReply, Status> {
        Ok(PreflightReply {
            warnings: vec![peer.to_string()],
            ..Default::default()
        })
    }

    async fn migrate(&self, _: PeerIdentity, _: Streaming<MigrateMessage>) -> Result<MigrateReplies, Status> {
        Ok(Box::pin(tokio_stream::empty()))
    }

    async fn query(&self, _: PeerIdentity, _: QueryMigrationRequest) -> Result<QueryMigrationReply, Status> {
        Ok(QueryMigrationReply::default())
    }

    async fn resolved(
        &self,
        _: PeerIdentity,
        _: ResolvedMigrationRequest,
    ) -> Result<ResolvedMigrationReply, Status> {
        Ok(ResolvedMigrationReply::default())
    }
}

/// Keeps the contract of [`HostStore`] until the process ends.
#[derive(Default)]
pub struct MemoryStore(Mutex<Tables>);

#[derive(Default)]
struct Tables {
    hosts: BTreeMap<String, HostRecord>,
    tokens: BTreeMap<String, (i64, bool)>,
}

#[async_trait]
impl HostStore for MemoryStore {
    async fn hosts(&self) -> Result<Vec<HostRecord>, HostStoreError> {
        Ok(self.0.lock().unwrap().hosts.values().cloned().collect())
    }

    async fn merge_hosts(&self, records: Vec<HostRecord>) -> Result<(), HostStoreError> {
        let mut tables = self.0.lock().unwrap();
        for record in records {
            let known = tables.hosts.get(&record.name).map_or(0, |known| known.generation);
            if record.generation > known {
                tables.hosts.insert(record.name.clone(), record);
            }
        }
        Ok(())
    }

    async fn replace_hosts(&self, records: Vec<HostRecord>) -> Result<(), HostStoreError> {
        self.0.lock().unwrap().hosts.clear();
        self.merge_hosts(records).await
    }

    async fn add_token(&self, hash: &str, _: i64, expires_ms: i64) -> Result<(), HostStoreError> {
        self.0
            .lock()
            .unwrap()
            .tokens
            .insert(hash.to_owned(), (expires_ms, false));
        Ok(())
    }

    async fn admit(&self, admission: Admission) -> Result<Admitted, HostStoreError> {
        let mut tables = self.0.lock().unwrap();
        let tables = &mut *tables;
        let Some((expires_ms, used)) = tables.tokens.get_mut(&admission.token_hash) else {
            return Ok(Admitted::UnknownToken);
        };
        if *used {
            return Ok(Admitted::SpentToken);
        }
        if *expires_ms <= admission.now_ms {
            return Ok(Admitted::ExpiredToken);
        }
        let record = admission.record;
        let known = tables.hosts.get(&record.name);
        if known.is_some_and(|known| !known.removed || known.generation >= record.generation) {
            return Ok(Admitted::NameTaken);
        }
        *used = true;
        tables.hosts.insert(record.name.clone(), record);
        Ok(Admitted::Accepted)
    }
}
