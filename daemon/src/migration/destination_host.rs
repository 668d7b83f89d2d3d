//! What the destination role asks of this daemon.

mod remains;

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::Instant;
use tranship_checkpoint::criu::{Relay, cpuinfo_check, unprivileged};
use tranship_migrate::deadlines::{IMAGES, REPLY};
use tranship_migrate::error::HostError;
use tranship_migrate::handoff::{DestinationStep, Inspection, Resolution, Verdict};
use tranship_migrate::host::{
    AcceptedStream, DestinationHost, Event, HeldRestore, Reservation, ReserveError, Stage,
};
use tranship_migrate::transport::{PageKeeper, TreeSink};
use tranship_migrate::trees::TreeName;
use tranship_proto::ids::{ContainerId, Digest, MigrationId, Name};
use tranship_proto::v1::{Image, MigrationRole, Reserve, Standby};

use super::awake::Awake;
use super::conductor::Shared;
use super::decider::Decider;
use super::doubts::Doubt;
use super::held::{ARRIVALS, NEIGHBOURS, make_private, make_staging, remove_staging, stages};
use super::journal::Journal;
use super::log;
use super::memory::{Arrived, store_dir};
use super::rounds;
use super::sink::LocalSink;
use super::standby::{Begin, StandingBy, restore_failed, runc_ended};
use crate::arbiter::{Decision, Handoff, Token};
use crate::network::{self, Attachment, NetworkRequest};
use crate::peers::streams::ExpectedStreams;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of the token that a migration's streams must show.
const TOKEN_BYTES: usize = 32;

/// One container on its way to this host.
pub struct LocalDestination {
    shared: Arc<Shared>,
    migration: MigrationId,
    source: Name,
    container: ContainerId,
    image: Image,
    reserve: Reserve,
    journal: Journal,
    decider: Decider,
    sink: Arc<LocalSink>,
    streams: AsyncMutex<Option<ExpectedStreams>>,
    memory: AsyncMutex<Option<Arrived>>,
    standing_by: AsyncMutex<Option<StandingBy>>,
    attachment: Mutex<Option<Attachment>>,
    pid: Mutex<i32>,
    awake: Awake,
    doubt: AsyncMutex<Option<Doubt>>,
}

impl LocalDestination {
    /// The destination side of `migration`, as its source describes it.
    ///
    /// # Errors
    /// The description is not whole.
    pub fn new(
        shared: Arc<Shared>,
        migration: MigrationId,
        source: Name,
        reserve: &Reserve,
    ) -> Result<Self, HostError> {
        let incomplete = |what: &'static str| HostError::new("read the reservation", what);
        let container = reserve
            .container
            .as_ref()
            .ok_or_else(|| incomplete("it describes no container"))?;
        let image = reserve
            .image
            .clone()
            .ok_or_else(|| incomplete("it describes no image"))?;
        let spec = container
            .spec
            .as_ref()
            .ok_or_else(|| incomplete("its container has no spec"))?;
        let driver = shared.storage().get(&spec.storage_driver);
        let driver = driver.map_err(|error| HostError::new("read the reservation", error))?;
        let id: ContainerId = container
            .id
            .parse()
            .map_err(|error| HostError::new("read the reservation", error))?;
        let decider = shared.decider(Handoff {
            container: id.clone(),
            migration,
            source: source.clone(),
            destination: shared.own_name()?,
            epoch: reserve.next_epoch,
            token: Token(reserve.owner_token),
        })?;
        let journal = Journal::new(shared.registry().clone(), migration, MigrationRole::Destination);
        let sink = LocalSink::new(driver);
        Ok(Self {
            shared,
            migration,
            source,
            container: id,
            image,
            // Compared once, and not for the journal.
            reserve: Reserve {
                cpuinfo: Vec::new(),
                ..reserve.clone()
            },
            journal,
            decider,
            sink: Arc::new(sink),
            streams: AsyncMutex::default(),
            memory: AsyncMutex::default(),
            standing_by: AsyncMutex::default(),
            attachment: Mutex::default(),
            pid: Mutex::default(),
            awake: Awake::default(),
            doubt: AsyncMutex::default(),
        })
    }

    fn staging(&self) -> PathBuf {
        self.shared.paths.migration(&self.migration)
    }

    fn images(&self) -> PathBuf {
        self.staging().join("images")
    }

    /// What the preflight has found may not be so any more, and another host may have answered it.
    async fn compare_cpu(&self, cpuinfo: &[u8]) -> Result<(), HostError> {
        // A source of an earlier version does not say again what its CPU can do.
        if cpuinfo.is_empty() {
            return Ok(());
        }
        let compared = cpuinfo_check(&self.shared.criu, cpuinfo).await;
        compared.map_err(|error| HostError::new("run on this CPU what runs on the source's", error))
    }

    async fn missing_layers(&self) -> Result<Vec<String>, HostError> {
        let (driver, wanted) = (Arc::clone(self.sink.driver()), self.image.layers.clone());
        crate::blocking::run(move || {
            let mut missing = Vec::new();
            for layer in wanted {
                let digest: Digest = layer
                    .parse()
                    .map_err(|error| HostError::new("read the image", error))?;
                if !driver
                    .has_layer(&digest)
                    .map_err(|error| HostError::new("look for a layer", error))?
                {
                    missing.push(layer);
                }
            }
            Ok(missing)
        })
        .await
    }

    fn expect_streams(&self) -> Result<(ExpectedStreams, Vec<u8>), HostError> {
        let token = random_token().map_err(|error| HostError::new("make a stream token", error))?;
        let streams = self
            .shared
            .peers()
            .data_streams()
            .expect(self.migration, &self.source, &token);
        Ok((
            streams.map_err(|error| HostError::new("expect data streams", error))?,
            token,
        ))
    }

    /// Everything that is received goes below one of these directories.
    async fn make_places(&self, missing: &[String]) -> Result<(), HostError> {
        let containers = &self.shared.containers;
        let failed = |error| HostError::new("make room for the container", error);
        let images = self.images();
        make_staging(&self.staging())
            .and_then(|()| make_private(&images))
            .map_err(|error| HostError::new("make the migration's staging", error))?;
        self.sink.place(TreeName::Images, images);
        if self.reserve.pre_dumps {
            self.sink.await_rounds(self.staging());
        }
        let log = log::to_receive(&containers.paths(&self.container));
        let log = log.map_err(|error| HostError::new("make room for the container's log", error))?;
        self.sink.place(TreeName::Log, log);
        for layer in missing {
            let digest: Digest = layer
                .parse()
                .map_err(|error| HostError::new("read the image", error))?;
            self.sink.await_layer(digest)?;
        }
        for volume in &self.reserve.volumes {
            let path = containers
                .receive_volume(&self.container, volume)
                .await
                .map_err(failed)?;
            let name = volume
                .name
                .parse()
                .map_err(|error| HostError::new("read the reservation", error))?;
            self.sink.place(TreeName::Volume(name), path);
        }
        if missing.is_empty() {
            self.make_rootfs().await?;
        }
        Ok(())
    }

    /// Possible as soon as every layer is here.
    async fn make_rootfs(&self) -> Result<(), HostError> {
        let containers = &self.shared.containers;
        let failed = |error| HostError::new("make the root file system", error);
        containers
            .receive_image(self.image.clone())
            .await
            .map_err(failed)?;
        let path = containers
            .receive_rootfs(&self.container, &self.image)
            .await
            .map_err(failed)?;
        self.sink.place(TreeName::Rootfs, path);
        Ok(())
    }

    /// Where CRIU works at the restore.
    fn work(&self) -> PathBuf {
        self.staging().join("restore")
    }

    fn network_request(&self) -> Result<NetworkRequest, HostError> {
        let container = self.reserve.container.clone().unwrap_or_default();
        let network = container.spec.map(|spec| spec.network).unwrap_or_default();
        NetworkRequest::parse(&network, &container.ip, &container.mac, Vec::new())
            .map_err(|error| HostError::new("read the container's address", error))
    }

    fn restored_as(&self, pid: i32, attachment: Option<Attachment>) {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
        *self.attachment.lock().unwrap_or_else(PoisonError::into_inner) = attachment;
    }

    async fn attach(&self, pid: i32) -> Result<(), HostError> {
        let failed = |error| HostError::new("prepare the container's network", error);
        let request = self.network_request()?;
        let known = network::load_neighbours(&self.images().join(NEIGHBOURS)).map_err(failed)?;
        let early = network::load_arrivals(&self.images().join(ARRIVALS)).map_err(failed)?;
        self.shared.networks().add_early(&self.container, &early);
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let attachment = self
            .shared
            .networks()
            .prepare(&self.container, &request, &netns, known)
            .await
            .map_err(failed)?;
        self.shared.networks().listen(&attachment).map_err(failed)?;
        self.restored_as(pid, Some(attachment));
        Ok(())
    }

    /// Everything of a restore that needs no image.
    async fn begin_restore(&self, standby: Option<&Standby>) -> Result<StandingBy, HostError> {
        let containers = &self.shared.containers;
        containers
            .receive_bundle(&self.container, &self.image)
            .await
            .map_err(|error| HostError::new("prepare the restore", error))?;
        let work = self.work();
        make_private(&work).map_err(|error| HostError::new("prepare the restore", error))?;
        let begin = Begin {
            paths: containers.paths(&self.container),
            images: self.images(),
            work,
            criu: self.shared.criu.clone(),
            store: Some(store_dir(&self.staging())).filter(|store| store.exists()),
        };
        StandingBy::begin(self.shared.runtime(), &begin, standby).await
    }

    async fn run_to_the_barrier(&self, relay: &mut Relay) -> Result<Vec<Stage>, HostError> {
        let work = self.work();
        let failed = |error| restore_failed(&work, error);
        let deadline = Instant::now() + IMAGES;
        relay.release_request().await.map_err(failed)?;
        let pid = relay.wait_namespaces(deadline).await.map_err(failed)?;
        let began = std::time::Instant::now();
        self.attach(pid).await?;
        let cable = Stage {
            name: "cable".to_owned(),
            start: began,
            duration: began.elapsed(),
        };
        relay.continue_namespaces().await.map_err(failed)?;
        let barrier = relay.wait_barrier(deadline).await.map_err(failed)?;
        let mut stages = stages(&barrier.stages);
        stages.push(cable);
        Ok(stages)
    }
}

#[async_trait]
impl DestinationHost for LocalDestination {
    async fn reserve(&self, reserve: &Reserve) -> Result<Reservation, ReserveError> {
        let compared = self.compare_cpu(&reserve.cpuinfo).await;
        compared.map_err(ReserveError::Refused)?;
        let container = reserve.container.clone().unwrap_or_default();
        let on_its_way = self.shared.on_its_way(&self.container, self.migration).await;
        let on_its_way = on_its_way.map_err(ReserveError::Refused)?;
        self.shared
            .containers
            .reserve_incoming(&container, reserve.next_epoch, on_its_way)
            .await
            .map_err(|error| ReserveError::Refused(HostError::new("reserve the container", error)))?;
        let missing = self.missing_layers().await?;
        self.make_places(&missing).await?;
        let (streams, data_token) = self.expect_streams()?;
        *self.streams.lock().await = Some(streams);
        Ok(Reservation {
            layers_missing: missing,
            data_token,
        })
    }

    async fn accept_stream(&self) -> Result<AcceptedStream, HostError> {
        let failed =
            |error: Box<dyn std::error::Error + Send + Sync>| HostError::new("accept a data stream", error);
        let mut streams = self.streams.lock().await;
        let streams = streams
            .as_mut()
            .ok_or_else(|| failed("nothing was reserved".into()))?;
        let stream = streams.next(REPLY).await.map_err(|error| failed(error.into()))?;
        Ok(AcceptedStream {
            page_stream: stream.page_stream,
            stream: Box::new(stream.tls),
        })
    }

    async fn page_keeper(&self) -> Result<Arc<dyn PageKeeper>, HostError> {
        let arrived = Arrived::create(&self.staging(), self.reserve.memory_bytes)?;
        let keeper = arrived.keeper();
        *self.memory.lock().await = Some(arrived);
        Ok(keeper)
    }

    async fn memory_complete(&self) -> Result<(), HostError> {
        match self.memory.lock().await.as_ref() {
            Some(arrived) => arrived.complete(self.images()).await,
            None => Err(HostError::new(
                "complete the container's memory",
                "none was reserved",
            )),
        }
    }

    async fn secure(&self) -> Result<(), HostError> {
        let sink = Arc::clone(&self.sink);
        let synced = crate::blocking::run(move || sink.sync());
        let verified = async {
            match self.memory.lock().await.as_ref() {
                Some(arrived) => arrived.verify(self.images()).await,
                None => Ok(()),
            }
        };
        let (synced, verified) = tokio::join!(synced, verified);
        synced.map_err(|error| HostError::new("bring what was received to the disk", error))?;
        verified
    }

    fn sink(&self) -> Arc<dyn TreeSink> {
        Arc::clone(&self.sink) as Arc<dyn TreeSink>
    }

    async fn layers_complete(&self) -> Result<(), HostError> {
        let missing = self.sink.layers_kept().await;
        missing.map_err(|error| HostError::new("wait for the image's layers", error))?;
        // It is tried again when it is needed, and said then what that costs.
        if let Err(error) = self
            .shared
            .networks()
            .expect(&self.container, &self.network_request()?)
            .await
        {
            tracing::debug!(migration_id = %self.migration, %error, "cannot hold frames yet");
        }
        if self.sink.has_place(&TreeName::Rootfs) {
            Ok(())
        } else {
            self.make_rootfs().await
        }
    }

    async fn record(&self, step: DestinationStep) -> Result<(), HostError> {
        let data = serde_json::json!({ "container": self.container, "source": self.source, "reserve": self.reserve });
        // A person decides for this host, not for the arbiter.
        if step == DestinationStep::TakenOver
            && self.has_arbiter()
            && self.claim().await? != Verdict::Committed
        {
            let why = "it was decided that the container stays at its source";
            return Err(HostError::new("take the container over", why));
        }
        let written = self.journal.append(step, self.reserve.next_epoch, data).await;
        written.map_err(|error| HostError::new("write the journal", error))
    }

    async fn prepare_restore(&self, standby: &Standby) -> Result<(), HostError> {
        let earlier = self.standing_by.lock().await.take();
        if let Some(earlier) = earlier {
            earlier.give_up().await;
        }
        if standby.memory_in_images {
            self.memory.lock().await.take();
            Arrived::forget(&self.staging()).await?;
        }
        let begun = self.begin_restore(Some(standby)).await?;
        *self.standing_by.lock().await = Some(begun);
        Ok(())
    }

    async fn restore_held(&self) -> Result<Box<dyn HeldRestore>, HostError> {
        rounds::check(&self.staging()).map_err(|error| HostError::new("follow the images", error))?;
        let prepared = match self.standing_by.lock().await.take() {
            Some(prepared) => prepared.if_of_use(&self.images()).await,
            None => None,
        };
        let mut prepared = match prepared {
            Some(prepared) => prepared,
            None => self.begin_restore(None).await?,
        };
        if let Err(error) = log::take(&self.shared.containers.paths(&self.container)) {
            prepared.give_up().await;
            return Err(HostError::new("take the container's log", error));
        }
        let began = std::time::Instant::now();
        let mount = self.shared.containers.receive_mount(&self.container);
        let mount = async {
            mount
                .await
                .map_err(|error| HostError::new("prepare the restore", error))
        };
        if let Err(error) = prepared.use_root(mount).await {
            prepared.give_up().await;
            return Err(error);
        }
        let rooted = Stage {
            name: "root file system".to_owned(),
            start: began,
            duration: began.elapsed(),
        };
        let failure = tokio::select! {
            stages = self.run_to_the_barrier(&mut prepared.relay) => match stages {
                Ok(mut stages) => {
                    stages.insert(0, rooted);
                    return Ok(Box::new(prepared.held(stages)));
                }
                Err(error) => error,
            },
            ended = &mut prepared.runc => return Err(HostError::new("restore the container", runc_ended(&self.work(), ended))),
        };
        prepared.give_up().await;
        Err(failure)
    }

    async fn plug_network(&self) -> Result<(), HostError> {
        let attachment = self
            .attachment
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(attachment) = attachment else {
            return Ok(());
        };
        let plugged = self.shared.networks().plug_until_it_is_in(&attachment).await;
        plugged
            .map(drop)
            .map_err(|error| HostError::new("put the container on its network", error))
    }

    async fn hold_network(&self) -> Result<(), HostError> {
        self.awake.begin();
        let request = self.network_request()?;
        let held = self.shared.networks().hold(&self.container, &request).await;
        held.map_err(|error| HostError::new("hold what is sent to the container", error))
    }

    async fn adopt(&self) -> Result<(), HostError> {
        self.awake.end();
        let pid = *self.pid.lock().unwrap_or_else(PoisonError::into_inner);
        let adopted = self.shared.containers.adopt(&self.container, pid).await;
        adopted
            .map(drop)
            .map_err(|error| HostError::new("register the container", error))
    }

    async fn drop_staging(&self) -> Result<(), HostError> {
        self.streams.lock().await.take();
        self.shared.networks().let_go(&self.container).await;
        remove_staging(self.staging()).await
    }

    async fn drop_all(&self) -> Result<(), HostError> {
        self.sink.forget();
        // First of all: the source takes the address back.
        self.shared.networks().let_go(&self.container).await;
        if let Some(prepared) = self.standing_by.lock().await.take() {
            prepared.give_up().await;
        }
        // A relay that was killed could not.
        unprivileged::put_back_abandoned();
        let dropped = self.shared.containers.drop_incoming(&self.container).await;
        let staging = self.drop_staging().await;
        dropped
            .map_err(|error| HostError::new("remove what was received", error))
            .and(staging)
    }

    async fn inspect(&self) -> Result<Inspection, HostError> {
        self.look_for_tasks().await
    }

    fn has_arbiter(&self) -> bool {
        self.decider.is_arbiter()
    }

    async fn claim(&self) -> Result<Verdict, HostError> {
        match self.decider.commit().await {
            Ok(Decision::Committed) => Ok(Verdict::Committed),
            Ok(Decision::Abandoned) => Ok(Verdict::Abandoned),
            Err(error) => Err(HostError::new(
                "have it decided that the container is this host's",
                error,
            )),
        }
    }

    async fn resolved(&self) -> Resolution {
        let mut doubt = self.doubt.lock().await;
        let open = || self.shared.doubts.open(self.migration);
        doubt.get_or_insert_with(open).resolved().await
    }

    async fn ask_source(&self) -> Result<Verdict, HostError> {
        self.shared.ask_source(self.migration, &self.source).await
    }

    fn observe(&self, event: Event<'_>) {
        self.shared.board.observe(self.migration, &event);
    }
}

fn random_token() -> io::Result<Vec<u8>> {
    let mut token = vec![0; TOKEN_BYTES];
    io::Read::read_exact(&mut fs::File::open("/dev/urandom")?, &mut token)?;
    Ok(token)
}
