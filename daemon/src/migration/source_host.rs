//! What the source role asks of this daemon.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;
use tranship_checkpoint::criu::{Dump, Memory, PreDumpRequest, cpuinfo_dump, journal_of, pre_dump};
use tranship_checkpoint::freeze::Freezer;
use tranship_checkpoint::memory::fill::filling;
use tranship_checkpoint::process_tree;
use tranship_checkpoint::throttle::yield_cpus;
use tranship_migrate::convergence::ASSUMED_COPIED_BYTES_PER_S;
use tranship_migrate::deadlines::{FILLING, FREEZE, IMAGES, REPLY};
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::SourceStep;
use tranship_migrate::host::{
    ByteStream, CommitError, DestinationSays, DumpedImages, Event, MemoryMode, MemoryReader, SourceHost,
};
use tranship_migrate::trees::{Tree, TreeName};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::{Migration, MigrationRole, Reserve, Standby, VolumeSource};

use super::awake::Awake;
use super::conductor::Shared;
use super::cpu::{CpuShare, full_speed};
use super::decider::Decider;
use super::held::{ARRIVALS, NEIGHBOURS, make_private, make_staging, remove_staging, stages};
use super::journal::Journal;
use super::log;
use super::memory::LocalMemory;
use super::mode::NO_VIEW;
use super::plan::{copied_bytes_per_s, fixed_cost};
use super::rounds;
use super::usage::tree_bytes;
use crate::arbiter::{Decision, Handoff, Token};
use crate::containers::{Anatomy, VolumeFate};
use crate::network::{self, Attachment, NetworkRequest};
use crate::registry::ContainerRecord;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// How long connections that no process holds are waited for while the container runs. Clients who come meanwhile wait.
const SETTLE: Duration = Duration::from_millis(20);

/// How long while it stands still: for what a process has closed just before.
const SETTLE_FROZEN: Duration = Duration::from_millis(5);

/// Between two looks at a container whose memory is being filled in.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where in a migration's staging a dump leaves what is not an image.
pub const DUMP_DIR: &str = "dump";

/// One container on its way to another host.
pub struct LocalSource {
    shared: Arc<Shared>,
    migration: MigrationId,
    anatomy: Anatomy,
    destination: Name,
    /// What the preflight has found.
    memory_mode: MemoryMode,
    /// Memory goes by itself, so CRIU dumps state alone.
    live: AtomicBool,
    /// Pre-dumps so far.
    pre_dumps: AtomicU32,
    journal: Journal,
    decider: Decider,
    freezer: Freezer,
    attachment: OnceCell<Attachment>,
    /// From the moment when its memory is followed.
    cpu: Mutex<Option<CpuShare>>,
    dump: Mutex<Option<Dump>>,
    awake: Awake,
}

impl LocalSource {
    /// The source side of `migration`.
    ///
    /// # Errors
    /// The container has no cgroup: it does not run.
    pub fn new(
        shared: Arc<Shared>,
        migration: MigrationId,
        anatomy: Anatomy,
        destination: Name,
        memory_mode: MemoryMode,
        token: Token,
    ) -> Result<Self, HostError> {
        let decider = shared.decider(Handoff {
            container: anatomy.record.id.clone(),
            migration,
            source: shared.own_name()?,
            destination: destination.clone(),
            epoch: anatomy.record.epoch + 1,
            token,
        })?;
        let freezer = Freezer::of_cgroup(&anatomy.paths.cgroup)
            .map_err(|error| HostError::new("find the container's cgroup", error))?;
        let journal = Journal::new(shared.registry().clone(), migration, MigrationRole::Source);
        let (attachment, cpu, dump) = (OnceCell::new(), Mutex::default(), Mutex::default());
        Ok(Self {
            shared,
            migration,
            anatomy,
            destination,
            memory_mode,
            live: AtomicBool::new(false),
            pre_dumps: AtomicU32::new(0),
            journal,
            decider,
            freezer,
            attachment,
            cpu,
            dump,
            awake: Awake::default(),
        })
    }

    /// The epoch the destination will own.
    #[must_use]
    pub fn next_epoch(&self) -> u64 {
        self.anatomy.record.epoch + 1
    }

    fn staging(&self) -> PathBuf {
        self.shared.paths.migration(&self.migration)
    }

    async fn attachment(&self) -> Result<&Attachment, HostError> {
        let find = || async {
            let found = self.shared.attachment_of(&self.anatomy.record).await?;
            found.ok_or_else(|| HostError::new("find the container's network", "its link is gone"))
        };
        self.attachment.get_or_try_init(find).await
    }

    /// Waits until nothing of the container's memory is missing: what is, a dump would lose.
    async fn wait_filled(&self) -> Result<(), HostError> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
            HostError::new("wait until the container's memory is complete", error)
        };
        let give_up_at = Instant::now() + FILLING;
        while filling(&self.anatomy.paths.filling())
            .map_err(|error| failed(error.into()))?
            .is_some()
        {
            if Instant::now() >= give_up_at {
                return Err(failed(
                    "it is still being filled in after its last migration".into(),
                ));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    async fn settle(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let (attachment, networks) = (self.attachment().await?, self.shared.networks());
        let deadline = || std::time::Instant::now() + SETTLE;
        let left = networks.settle(attachment, deadline()).await?;
        let is_slowed = self.cpu.lock().await.as_ref().is_some_and(CpuShare::is_held);
        if is_slowed && !left.is_none() {
            // One that hardly runs accepts no connection.
            full_speed(&self.anatomy.paths.cgroup, self.anatomy.record.spec.nano_cpus)?;
            networks.unowned(attachment, deadline()).await?;
        }
        Ok(())
    }

    async fn sizes(&self) -> Result<(u64, Vec<VolumeSource>), HostError> {
        let writable = self.writable_layer()?;
        let volumes: Vec<_> = self
            .anatomy
            .volumes
            .iter()
            .map(|volume| (volume.record.clone(), volume.path.clone()))
            .collect();
        crate::blocking::run(move || {
            let mut total = tree_bytes(&writable)?;
            let mut sources = Vec::new();
            for (record, path) in volumes {
                let size_bytes = tree_bytes(&path)?;
                total += size_bytes;
                sources.push(VolumeSource {
                    name: record.name.to_string(),
                    driver: record.driver,
                    labels: record.labels,
                    size_bytes,
                });
            }
            Ok((total, sources))
        })
        .await
        .map_err(|error: std::io::Error| HostError::new("measure the container's files", error))
    }

    fn writable_layer(&self) -> Result<PathBuf, HostError> {
        let path = self.anatomy.driver.writable_path(&self.anatomy.record.id);
        path.map_err(|error| HostError::new("find the writable layer", error))
    }
}

#[async_trait]
impl SourceHost for LocalSource {
    async fn describe(&self) -> Result<Reserve, HostError> {
        self.wait_filled().await?;
        // Found now, so that cutting it later costs no search.
        self.attachment().await?;
        let (sizes, cpuinfo) = tokio::join!(self.sizes(), cpuinfo_dump(&self.shared.criu));
        let (disk_bytes, volumes) = sizes?;
        let host = self.shared.host_name();
        Ok(Reserve {
            source: host.clone(),
            destination: self.destination.to_string(),
            container: Some(self.anatomy.record.to_message(&host)),
            image: Some(self.anatomy.image.clone()),
            volumes,
            memory_bytes: self.shared.memory_of(&self.anatomy.paths.cgroup)?,
            disk_bytes,
            next_epoch: self.next_epoch(),
            options: None,
            page_streams: 0,
            pre_dumps: false,
            owner_token: self.decider.token(),
            cpuinfo: cpuinfo.map_err(|error| HostError::new("describe this host's CPU", error))?,
        })
    }

    async fn record(&self, step: SourceStep) -> Result<(), HostError> {
        let data = serde_json::json!({
            "container": self.anatomy.record.id,
            "destination": self.destination,
            "token": self.decider.token(),
        });
        let written = self.journal.append(step, self.next_epoch(), data).await;
        written.map_err(|error| HostError::new("write the journal", error))
    }

    async fn commit(&self, _digest: [u8; 32]) -> Result<(), CommitError> {
        let unknown =
            |error: AnyError| CommitError::Unknown(HostError::new("write the commit record", error));
        let decided = self.decider.commit().await;
        if decided.map_err(|error| unknown(error.into()))? == Decision::Abandoned {
            let why = "it was decided that the container stays";
            return Err(CommitError::NotRecorded(HostError::new(
                "write the commit record",
                why,
            )));
        }
        if self.decider.is_arbiter() {
            // A destination that asks is answered from this host's own journal.
            let mirrored = self.record(SourceStep::Committed).await;
            mirrored.map_err(CommitError::Unknown)?;
        }
        Ok(())
    }

    fn has_arbiter(&self) -> bool {
        self.decider.is_arbiter()
    }

    async fn abandon(&self) -> Result<bool, HostError> {
        let decided = self.decider.abandon().await;
        decided.map_err(|error| HostError::new("have it decided that the container stays", error))
    }

    async fn own(&self, epoch: u64) -> Result<(), HostError> {
        let taken = self.decider.take_back(epoch).await;
        taken.map_err(|error| HostError::new("take the container back", error))?;
        let owned = self.shared.containers.own(&self.anatomy.record.id, epoch).await;
        owned.map_err(|error| HostError::new("take the container back", error))
    }

    async fn memory_mode(&self) -> MemoryMode {
        self.memory_mode.clone()
    }

    async fn track_memory(&self) -> Result<Box<dyn MemoryReader>, HostError> {
        let (cgroup, images) = (self.anatomy.paths.cgroup.clone(), self.staging().join("images"));
        self.live.store(true, Ordering::Release);
        *self.cpu.lock().await = Some(CpuShare::measure(&cgroup)?);
        let injector = self.shared.runtime().injector.clone();
        let following = crate::blocking::run(move || LocalMemory::follow(&cgroup, &injector, images));
        Ok(Box::new(following.await?))
    }

    async fn pre_dump(&self, round: u32) -> Result<Tree, HostError> {
        let failed = |error: AnyError| HostError::new("write a round of the container's memory", error);
        let staging = self.staging();
        if round == 0 {
            make_staging(&staging).map_err(|error| failed(error.into()))?;
        } else {
            rounds::empty(&rounds::directory(&staging, round - 1)).map_err(|error| failed(error.into()))?;
        }
        let (images_dir, work_dir) = (rounds::directory(&staging, round), staging.join(DUMP_DIR));
        for directory in [&images_dir, &work_dir] {
            make_private(directory).map_err(|error| failed(error.into()))?;
        }
        let request = self.shared.dump_request(&self.anatomy, images_dir, work_dir);
        let request = PreDumpRequest {
            runc: request.runc,
            runc_root: request.runc_root,
            container: request.container,
            images_dir: request.images_dir.clone(),
            parent: rounds::parent(round),
            work_dir: request.work_dir,
            criu_path_dir: request.criu_path_dir,
            criu: request.criu,
        };
        pre_dump(&request, Instant::now() + IMAGES)
            .await
            .map_err(|error| failed(error.into()))?;
        self.pre_dumps.store(round + 1, Ordering::Release);
        Ok(Tree {
            name: TreeName::Round(round),
            path: request.images_dir,
        })
    }

    async fn fixed_cost(&self) -> Option<Duration> {
        fixed_cost(&self.shared.earlier().await, self.destination.as_str())
    }

    async fn copied_bytes_per_s(&self) -> u64 {
        let shown = copied_bytes_per_s(&self.shared.earlier().await, self.destination.as_str());
        shown.unwrap_or(ASSUMED_COPIED_BYTES_PER_S)
    }

    async fn slow_down(&self, percent: Option<u8>) -> Result<(), HostError> {
        let (cgroup, nano_cpus) = (&self.anatomy.paths.cgroup, self.anatomy.record.spec.nano_cpus);
        match (percent, self.cpu.lock().await.as_mut()) {
            (Some(percent), Some(share)) => share.hold_to(percent),
            (Some(_), None) => Err(HostError::new(
                "limit the container's CPU time",
                "it is not followed",
            )),
            (None, _) => full_speed(cgroup, nano_cpus),
        }
    }

    async fn open_stream(&self) -> Result<Box<dyn ByteStream>, HostError> {
        let stream = self.shared.peers().open_data(&self.destination).await;
        Ok(Box::new(
            stream.map_err(|error| HostError::new("open a data stream", error))?,
        ))
    }

    async fn layer(&self, name: &TreeName) -> Result<Tree, HostError> {
        let TreeName::Layer(digest) = name else {
            return Err(HostError::new("find a layer", format!("{name} is none")));
        };
        let (driver, digest) = (Arc::clone(&self.anatomy.driver), digest.clone());
        let path = crate::blocking::run(move || driver.layer_path(&digest)).await;
        let path = path.map_err(|error| HostError::new("find a layer", error))?;
        Ok(Tree {
            name: name.clone(),
            path,
        })
    }

    async fn standby(&self) -> Result<Standby, HostError> {
        super::standby::of_source(self.shared.runtime(), &self.anatomy.record.id)
            .map_err(|error| HostError::new("read the container's state in runc", error))
    }

    async fn prepare_dump(&self) -> Result<MemoryMode, HostError> {
        let staging = self.staging();
        let (images_dir, work_dir) = (staging.join("images"), staging.join(DUMP_DIR));
        let pre_dumps = self.pre_dumps.load(Ordering::Acquire);
        if pre_dumps == 0 {
            let made = make_staging(&staging);
            made.map_err(|error| HostError::new("make the migration's staging", error))?;
        }
        for directory in [&images_dir, &work_dir] {
            make_private(directory).map_err(|error| HostError::new("make the migration's staging", error))?;
        }
        let mut request = self.shared.dump_request(&self.anatomy, images_dir, work_dir);
        request.parent = rounds::parent(pre_dumps);
        let live = self.live.load(Ordering::Acquire);
        if live {
            request.memory = Memory::StateOnly;
        }
        let prepared = Dump::prepare(request, Instant::now() + REPLY).await;
        let prepared = prepared.map_err(|error| HostError::new("prepare the dump", error))?;
        let whole = live && prepared.memory() != Memory::StateOnly;
        *self.dump.lock().await = Some(prepared);
        if whole {
            self.live.store(false, Ordering::Release);
            return Ok(MemoryMode::StopAndCopy(NO_VIEW.to_owned()));
        }
        Ok(self.memory_mode.clone())
    }

    async fn freeze(&self) -> Result<(), HostError> {
        self.awake.begin();
        let frozen = self.freezer.freeze(Instant::now() + FREEZE).await;
        frozen
            .map(drop)
            .map_err(|error| HostError::new("freeze the container", error))
    }

    async fn settle_network(&self) -> Result<(), HostError> {
        // What is lost without it is a connection that is just being made, which the container moves without.
        if let Err(error) = self.settle().await {
            tracing::warn!(migration_id = %self.migration, error = %chain(error.as_ref()), "new connections are not held back");
        }
        Ok(())
    }

    async fn cut_network(&self) -> Result<(), HostError> {
        let failed = |error| HostError::new("cut the container's network", error);
        let attachment = self.attachment().await?;
        let deadline = std::time::Instant::now() + SETTLE_FROZEN;
        let left = self
            .shared
            .networks()
            .unowned(attachment, deadline)
            .await
            .map_err(failed)?;
        if !left.is_none() {
            tracing::warn!(migration_id = %self.migration, new = left.new, closing = left.closing, "connections that no process holds stay behind: their clients hear nothing more");
        }
        self.shared.networks().cut(attachment).await.map_err(failed)?;
        let known = network::neighbours_of(self.anatomy.record.pid).map_err(failed)?;
        network::save_neighbours(&self.staging().join("images").join(NEIGHBOURS), &known).map_err(failed)
    }

    async fn gather_arrivals(&self) -> Result<(), HostError> {
        let frames = self.shared.networks().caught(self.attachment().await?).await;
        network::save_arrivals(&self.staging().join("images").join(ARRIVALS), &frames)
            .map_err(|error| HostError::new("keep what was sent to the container", error))
    }

    async fn dump(&self) -> Result<DumpedImages, HostError> {
        let mut prepared = self.dump.lock().await;
        let dump = prepared
            .as_mut()
            .ok_or_else(|| HostError::new("dump the container", "it was not prepared"))?;
        let barrier = match dump.write(Instant::now() + IMAGES).await {
            Ok(barrier) if self.live.load(Ordering::Acquire) && barrier.memory != Memory::StateOnly => {
                return Err(HostError::new("dump the container", NO_VIEW));
            }
            Ok(barrier) => barrier,
            Err(error) => {
                // It has ended, and there is nothing left to give up.
                prepared.take();
                return Err(HostError::new("dump the container", error));
            }
        };
        Ok(DumpedImages {
            path: self.staging().join("images"),
            stages: stages(&barrier.stages),
        })
    }

    async fn finish_dump(&self) -> Result<(), HostError> {
        let Some(dump) = self.dump.lock().await.take() else {
            return Ok(());
        };
        let finished = dump.complete(Instant::now() + REPLY).await;
        finished
            .map(drop)
            .map_err(|error| HostError::new("dump the container", error))
    }

    async fn frozen_trees(&self) -> Result<Vec<Tree>, HostError> {
        let mut trees = vec![Tree {
            name: TreeName::Rootfs,
            path: self.writable_layer()?,
        }];
        for volume in &self.anatomy.volumes {
            trees.push(Tree {
                name: TreeName::Volume(volume.record.name.clone()),
                path: volume.path.clone(),
            });
        }
        // Last: by now its monitor has written what the container said before it stood still.
        let path = log::to_send(&self.anatomy.paths);
        trees.push(Tree {
            name: TreeName::Log,
            path: path.map_err(|error| HostError::new("find the container's log", error))?,
        });
        Ok(trees)
    }

    async fn mend_network(&self) -> Result<(), HostError> {
        let attachment = self.attachment().await?;
        let plugged = self.shared.networks().plug(attachment).await;
        plugged
            .map(drop)
            .map_err(|error| HostError::new("give the network back", error))
    }

    async fn thaw(&self) -> Result<(), HostError> {
        self.awake.end();
        if let Some(prepared) = self.dump.lock().await.take() {
            let given_up = prepared.abort().await;
            given_up.map_err(|error| HostError::new("give the dump up", error))?;
        }
        let (id, work_dir) = (&self.anatomy.record.id, self.staging().join(DUMP_DIR));
        self.shared
            .thaw(&self.freezer, &self.anatomy.paths.cgroup, id, &work_dir)
    }

    async fn drop_staging(&self) -> Result<(), HostError> {
        // One that was prepared but never used ends with its connection.
        self.dump.lock().await.take();
        self.shared.networks().let_go(&self.anatomy.record.id).await;
        log::forget(&self.anatomy.paths).map_err(|error| HostError::new("remove what was sent", error))?;
        remove_staging(self.staging()).await
    }

    async fn remove_copy(&self) -> Result<(), HostError> {
        self.awake.end();
        let id = &self.anatomy.record.id;
        // Its processes give their memory back as they end, at the cost of whoever runs here; there is no hurry.
        if let Err(error) = yield_cpus(&self.anatomy.paths.cgroup) {
            tracing::debug!(migration_id = %self.migration, %error, "the copy is removed as fast as the machine can");
        }
        let to = self.destination.as_str();
        let moved = self
            .shared
            .containers
            .moved(id, to, self.next_epoch(), VolumeFate::Remove)
            .await;
        moved.map_err(|error| HostError::new("remove the moved container's copy", error))
    }

    async fn ask_destination(&self) -> Result<DestinationSays, HostError> {
        self.shared
            .ask_destination(self.migration, &self.destination)
            .await
    }

    fn observe(&self, event: Event<'_>) {
        self.shared.board.observe(self.migration, &event);
    }
}

impl Shared {
    /// The migrations this host has on record; none where they cannot be read.
    async fn earlier(&self) -> Vec<Migration> {
        let stored = self.registry().migrations().list().await.unwrap_or_default();
        stored.into_iter().map(|record| record.migration).collect()
    }

    /// The place in its network that a container of this host has.
    ///
    /// # Errors
    /// What the kernel says, or its link is somebody else's.
    pub async fn attachment_of(&self, record: &ContainerRecord) -> Result<Option<Attachment>, HostError> {
        let failed = |error| HostError::new("find the container's network", error);
        let request = NetworkRequest::parse(&record.spec.network, &record.ip, &record.mac, Vec::new());
        let netns = PathBuf::from(format!("/proc/{}/ns/net", record.pid));
        self.networks()
            .find(&record.id, &request.map_err(failed)?, &netns)
            .await
            .map_err(failed)
    }

    /// Thaws a container after CRIU was at it, once nothing of CRIU is left in its tasks. `work_dir` is the dump's.
    ///
    /// # Errors
    /// A task is still traced or holds CRIU's code, or the freezer fails. The container stays frozen then.
    pub fn thaw(
        &self,
        freezer: &Freezer,
        cgroup: &str,
        id: &ContainerId,
        work_dir: &Path,
    ) -> Result<(), HostError> {
        let recovered = process_tree::recover(cgroup, &journal_of(work_dir))
            .map_err(|error| HostError::new("thaw the container", error))?;
        let process_tree::Recovered { connections, threads } = recovered;
        if connections + threads > 0 {
            tracing::warn!(container = %id, connections, threads, "CRIU was killed; what it had left silent or astray is put right");
        }
        // runc notes a dump there; one that was rolled back is none.
        let mark = self.runtime().runc_root.join(id.as_str()).join("checkpoint");
        match std::fs::remove_file(mark) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(HostError::new("take runc's note of the dump back", error));
            }
            _ => {}
        }
        freezer
            .thaw()
            .map_err(|error| HostError::new("thaw the container", error))
    }
}
