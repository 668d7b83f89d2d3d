//! From what a user asked for to a container that runs: a list of steps, undone as a whole when one fails.
//!
//! ```text
//!   plan       check the spec, find the image            nothing is made
//!   reserve    record in the state CREATED               takes name and id
//!   volumes    make those that are missing
//!   rootfs     layers, writable layer, mount; fill new volumes with what the image has in their place
//!   address    choose it                                 takes the address
//!   bundle     hostname, hosts, resolv.conf, config.json
//!   create     namespaces and first process, not started
//!   attach     the network, into those namespaces
//!   start      the program runs
//!   record     state RUNNING
//! ```

use std::net::Ipv4Addr;
use std::path::PathBuf;

use tranship_proto::ids::{ContainerId, Digest, Name};
use tranship_proto::v1::{ContainerSpec, ContainerState, Image, MountKind};

use super::bundle;
use super::engine::Containers;
use super::error::{ContainerError, PartError};
use super::seed;
use super::spec::{self, Defaults};
use crate::clock::now_ms;
use crate::image;
use crate::network::NetworkRequest;
use crate::random;
use crate::registry::ContainerRecord;
use crate::runtime::spec::{MountSource, ResolvedMount, SpecRequest};
use crate::runtime::{self, ImageConfig};
use crate::volumes::{self, VolumeError};

/// A step that failed, and why.
type Failed = (&'static str, PartError);

/// What is known before anything is made.
struct Plan {
    record: ContainerRecord,
    image: Image,
    layers: Vec<Digest>,
    request: NetworkRequest,
}

impl Containers {
    /// Makes a container and starts it.
    ///
    /// # Errors
    /// [`ContainerError`]; nothing is left of the container then, unless the error says so.
    pub async fn run(&self, spec: ContainerSpec) -> Result<ContainerRecord, ContainerError> {
        let plan = self.plan(spec).await?;
        let _held = self.shared.locks.hold(&plan.record.id).await?;
        self.reserve(&plan.record).await?;
        let mut new_volumes = Vec::new();
        match self.make(&plan, &mut new_volumes).await {
            Ok(record) => {
                tracing::info!(container = %record.name, pid = record.pid, "started");
                self.watch(&record.id);
                Ok(record)
            }
            Err(failed) => Err(self.unmake(&plan, new_volumes, failed).await),
        }
    }

    async fn plan(&self, spec: ContainerSpec) -> Result<Plan, ContainerError> {
        let shared = &self.shared;
        let id = ContainerId::from_random(random::bytes().map_err(ContainerError::Random)?);
        let defaults = Defaults {
            network: &shared.default_network,
            storage_driver: shared.parts.storage.default_name(),
        };
        let mut spec = spec::complete(spec, &id, &defaults)?;
        shared.parts.storage.get(&spec.storage_driver)?;
        name_volumes(&mut spec)?;
        let request = self.network_request(&spec).await?;
        let images = self.registry().images().list().await?;
        let image = image::resolve(&images, &spec.image)?.clone();
        image::check_architecture(&image)?;
        let config = ImageConfig::parse(&image.config_json)?;
        if spec.stop_signal.is_empty() {
            spec.stop_signal.clone_from(&config.stop_signal);
        }
        let name = spec
            .name
            .parse()
            .map_err(|_| ContainerError::Malformed("its name"))?;
        let (image_digest, layers) = digests(&image)?;
        let record = new_record(id, name, spec, image_digest);
        Ok(Plan {
            record,
            image,
            layers,
            request,
        })
    }

    /// What the spec wants of its network, with the addresses that this host's containers have.
    pub(super) async fn network_request(
        &self,
        spec: &ContainerSpec,
    ) -> Result<NetworkRequest, ContainerError> {
        let taken: Vec<Ipv4Addr> = self
            .list()
            .await?
            .iter()
            .filter_map(|record| record.ip.parse().ok())
            .collect();
        let request = NetworkRequest::from_spec(spec, &self.shared.default_network, taken);
        request.map_err(ContainerError::NetworkRequest)
    }

    async fn reserve(&self, record: &ContainerRecord) -> Result<(), ContainerError> {
        match self.registry().containers().insert(record.clone()).await {
            Err(error) if error.is_exists() => Err(ContainerError::NameTaken(record.name.to_string())),
            inserted => Ok(inserted?),
        }
    }

    async fn make(&self, plan: &Plan, new_volumes: &mut Vec<Name>) -> Result<ContainerRecord, Failed> {
        let spec = &plan.record.spec;
        self.make_volumes(spec, new_volumes)
            .await
            .map_err(|e| ("make the volumes", e))?;
        let mounts = self
            .find_mounts(spec)
            .await
            .map_err(|e| ("find what is to be mounted", e))?;
        self.make_rootfs(plan)
            .await
            .map_err(|e| ("make the root file system", e))?;
        self.fill_volumes(&plan.record, &mounts)
            .await
            .map_err(|e| ("fill the new volumes", e))?;
        let record = self
            .choose_address(plan)
            .await
            .map_err(|e| ("choose an address", e))?;
        let record = self
            .make_bundle(&record, &plan.image, &mounts)
            .await
            .map_err(|e| ("make the bundle", e))?;
        self.start(record).await
    }

    async fn make_volumes(&self, spec: &ContainerSpec, new_volumes: &mut Vec<Name>) -> Result<(), PartError> {
        for name in volumes::mounted(spec) {
            // A name of this form was given by `name_volumes`, or by a user who wants the same.
            let anonymous = name.as_str().parse::<ContainerId>().is_ok();
            let (_, made) = self.shared.parts.volumes.ensure(&name, anonymous).await?;
            if made {
                new_volumes.push(name);
            }
        }
        Ok(())
    }

    /// The mounts of a spec, with their sources on this host. Volumes must be there.
    pub(super) async fn find_mounts(&self, spec: &ContainerSpec) -> Result<Vec<ResolvedMount>, PartError> {
        let mut found = Vec::with_capacity(spec.mounts.len());
        for mount in &spec.mounts {
            let source = match mount.kind() {
                MountKind::Tmpfs => MountSource::Tmpfs {
                    size_bytes: mount.size_bytes,
                },
                MountKind::Volume => MountSource::Path(self.volume_path(&mount.source).await?),
                MountKind::Bind | MountKind::Unspecified => {
                    MountSource::Path(host_path(&mount.source).await?)
                }
            };
            found.push(ResolvedMount {
                target: (&mount.target).into(),
                source,
                read_only: mount.read_only,
            });
        }
        Ok(found)
    }

    async fn volume_path(&self, name: &str) -> Result<PathBuf, PartError> {
        let volumes = &self.shared.parts.volumes;
        let name: Name = name.parse().map_err(VolumeError::Name)?;
        let (record, _) = volumes.get(&name).await?;
        Ok(volumes.path(&record).await?)
    }

    async fn make_rootfs(&self, plan: &Plan) -> Result<(), PartError> {
        let driver = self.shared.parts.storage.get(&plan.record.spec.storage_driver)?;
        let (id, layers) = (plan.record.id.clone(), plan.layers.clone());
        let _outcome = crate::blocking::run(move || driver.create_rootfs(&id, &layers)).await?;
        self.mount_rootfs(&plan.record).await
    }

    /// Mounts the root file system in its place. Again is no error.
    pub(super) async fn mount_rootfs(&self, record: &ContainerRecord) -> Result<(), PartError> {
        let driver = self.shared.parts.storage.get(&record.spec.storage_driver)?;
        let (id, target) = (record.id.clone(), self.paths(&record.id).rootfs());
        crate::blocking::run(move || {
            bundle::make_directory(&target)?;
            let _outcome = driver.mount_rootfs(&id, &target)?;
            Ok(())
        })
        .await
    }

    /// An empty volume gets what the image has in its place, owners and modes included, as Docker does it.
    async fn fill_volumes(
        &self,
        record: &ContainerRecord,
        mounts: &[ResolvedMount],
    ) -> Result<(), PartError> {
        let rootfs = self.paths(&record.id).rootfs();
        for (mount, resolved) in record.spec.mounts.iter().zip(mounts) {
            let MountSource::Path(volume) = &resolved.source else {
                continue;
            };
            if mount.kind() != MountKind::Volume {
                continue;
            }
            let (rootfs, target, volume) = (rootfs.clone(), resolved.target.clone(), volume.clone());
            let filled = crate::blocking::run(move || seed::fill(&rootfs, &target, &volume)).await;
            filled.map_err(|source| PartError::Copy {
                volume: mount.source.clone(),
                source,
            })?;
        }
        Ok(())
    }

    async fn choose_address(&self, plan: &Plan) -> Result<ContainerRecord, PartError> {
        let id = &plan.record.id;
        let chosen = self
            .shared
            .parts
            .networks
            .choose_address(id, &plan.request)
            .await?;
        let update = move |record: &mut ContainerRecord| {
            if let Some((ip, mac)) = chosen {
                record.ip = ip.to_string();
                record.mac = mac.to_string();
            }
        };
        let changed = self.registry().containers().update(id, update).await?;
        Ok(changed.unwrap_or_else(|| plan.record.clone()))
    }

    /// Writes the bundle of a container whose root file system is mounted, and notes its runtime configuration.
    pub(super) async fn make_bundle(
        &self,
        record: &ContainerRecord,
        image: &Image,
        mounts: &[ResolvedMount],
    ) -> Result<ContainerRecord, PartError> {
        let (of, paths) = (record.clone(), self.paths(&record.id));
        let (mounts, config_json) = (mounts.to_vec(), image.config_json.clone());
        let config = crate::blocking::run(move || -> Result<String, PartError> {
            bundle::write_files(&paths.bundle, &of.spec, &of.ip)?;
            let image = ImageConfig::parse(&config_json)?;
            let request = SpecRequest {
                spec: &of.spec,
                image: &image,
                paths: &paths,
                mounts: &mounts,
            };
            let config = runtime::spec::build(&request)?;
            bundle::write_config(&paths.config(), &config)?;
            Ok(config)
        });
        let config = config.await?;
        let update = move |record: &mut ContainerRecord| record.runtime_config = config;
        let changed = self.registry().containers().update(&record.id, update).await?;
        Ok(changed.unwrap_or_else(|| record.clone()))
    }

    async fn start(&self, record: ContainerRecord) -> Result<ContainerRecord, Failed> {
        let created = self.shared.parts.runtime.create(&self.paths(&record.id)).await;
        let created = created.map_err(|e| ("create the processes", e.into()))?;
        self.attach(&record, created.pid())
            .await
            .map_err(|e| ("attach the network", e))?;
        let pid = created
            .start()
            .await
            .map_err(|e| ("start the processes", e.into()))?;
        let started = move |record: &mut ContainerRecord| {
            record.state = ContainerState::Running;
            record.pid = pid;
            record.started_ms = now_ms();
        };
        self.note(&record, started)
            .await
            .map_err(|e| ("record the start", e))
    }

    async fn attach(&self, record: &ContainerRecord, pid: i32) -> Result<(), PartError> {
        let request = NetworkRequest::parse(&record.spec.network, &record.ip, &record.mac, Vec::new())?;
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        self.shared
            .parts
            .networks
            .attach(&record.id, &request, &netns)
            .await?;
        Ok(())
    }

    async fn note<F>(&self, record: &ContainerRecord, change: F) -> Result<ContainerRecord, PartError>
    where
        F: FnOnce(&mut ContainerRecord) + Send + 'static,
    {
        let changed = self.registry().containers().update(&record.id, change).await?;
        self.shared.watches.announce();
        Ok(changed.unwrap_or_else(|| record.clone()))
    }

    /// Removes what was made of a container that did not start. The record stays where something could not be removed, so that
    /// `rm` can try again.
    async fn unmake(&self, plan: &Plan, new_volumes: Vec<Name>, (step, source): Failed) -> ContainerError {
        let record = &plan.record;
        let mut undo = self.dismantle(record).await;
        for name in &new_volumes {
            let removed = async { Ok(self.shared.parts.volumes.remove_with(name, &record.id).await?) };
            undo.took("remove a new volume", removed).await;
        }
        if undo.is_empty() {
            let forget = async { Ok(self.registry().containers().remove(&record.id).await.map(drop)?) };
            undo.took("remove its record", forget).await;
        }
        ContainerError::Making {
            name: record.name.to_string(),
            step,
            source: Box::new(source),
            undo,
        }
    }
}

/// A host path that can be mounted: it is there.
async fn host_path(path: &str) -> Result<PathBuf, PartError> {
    match tokio::fs::symlink_metadata(path).await {
        Ok(_) => Ok(path.into()),
        Err(source) => Err(PartError::HostPath {
            path: path.to_owned(),
            source,
        }),
    }
}

/// A volume that the user gave no name gets one of its own.
fn name_volumes(spec: &mut ContainerSpec) -> Result<(), ContainerError> {
    for mount in &mut spec.mounts {
        if mount.kind() == MountKind::Volume && mount.source.is_empty() {
            mount.source = ContainerId::from_random(random::bytes().map_err(ContainerError::Random)?).into();
        }
    }
    Ok(())
}

/// The digests of an image and of its layers, lowest first.
pub(super) fn digests(image: &Image) -> Result<(Digest, Vec<Digest>), ContainerError> {
    let malformed = |_| ContainerError::Malformed("a digest of its image");
    let layers = image
        .layers
        .iter()
        .map(|layer| layer.parse())
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    Ok((image.digest.parse().map_err(malformed)?, layers))
}

fn new_record(id: ContainerId, name: Name, spec: ContainerSpec, image_digest: Digest) -> ContainerRecord {
    ContainerRecord {
        id,
        name,
        spec,
        state: ContainerState::Created,
        pid: 0,
        exit_code: 0,
        oom_killed: false,
        memory_lost: false,
        created_ms: now_ms(),
        started_ms: 0,
        finished_ms: 0,
        epoch: 1,
        ip: String::new(),
        mac: String::new(),
        image_digest,
        runtime_config: String::new(),
    }
}
