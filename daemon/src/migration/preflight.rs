//! What both hosts must know before anything is touched. The reasons themselves are `migrate`'s.

use std::error::Error as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use tranship_checkpoint::cgroup::CgroupVersion;
use tranship_checkpoint::criu::probe::probe_runc;
use tranship_checkpoint::criu::{cpuinfo_check, cpuinfo_dump, probe};
use tranship_checkpoint::memory::{Untracked, supported, untracked};
use tranship_migrate::convergence::ASSUMED_COPIED_BYTES_PER_S;
use tranship_migrate::deadlines::REPLY;
use tranship_migrate::error::chain;
use tranship_migrate::host::MemoryMode;
use tranship_migrate::preflight::{DestinationFacts, blockers};
use tranship_proto::ids::{ContainerId, Name};
use tranship_proto::v1::{ContainerState, MountKind, PreflightReply, PreflightRequest};
use tranship_proto::version;

use super::conductor::Shared;
use super::mode;
use super::usage::{memory_available_bytes, tree_bytes};
use crate::containers::Anatomy;

/// A question is asked so often where the connection breaks.
const QUESTIONS: u32 = 3;
/// For a connection that has broken to be given up.
const RECONNECT: Duration = Duration::from_millis(100);

/// Of a container's memory, what the destination needs in percent. Where it comes inside CRIU's images it is there twice for a
/// moment: on a tmpfs, and in the tasks. Where it is filled in behind them, the store gives back what was used.
const STOP_AND_COPY_PERCENT: u64 = 200;
/// See [`STOP_AND_COPY_PERCENT`].
const LIVE_PERCENT: u64 = 130;
/// See [`STOP_AND_COPY_PERCENT`]. The rounds together may take twice what the container has.
const PRE_DUMP_PERCENT: u64 = 300;

/// What shared memory costs inside the blackout, in bytes a millisecond.
const SHARED_BYTES_PER_MS: u64 = ASSUMED_COPIED_BYTES_PER_S / 1000;

/// Shared memory that is not worth a word.
const SHARED_WORTH_A_WORD: u64 = 4 << 20;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// What a preflight found.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Every reason why the container cannot move.
    pub blockers: Vec<String>,
    /// What is to be known and forbids nothing.
    pub warnings: Vec<String>,
    /// The destination, where it exists.
    pub destination: Option<Name>,
    /// How the memory would move: what both hosts can do.
    pub memory_mode: MemoryMode,
}

impl Shared {
    /// Asks both hosts whether the container can move to the host called `destination`.
    pub async fn preflight(&self, container: &ContainerId, destination: &str) -> Checked {
        let mut checked = Checked {
            blockers: Vec::new(),
            warnings: Vec::new(),
            destination: None,
            memory_mode: mode::of_this_host(&self.daemon.config).await,
        };
        match self.known_host(destination) {
            Ok(host) => checked.destination = Some(host),
            Err(reason) => checked.blockers.push(reason),
        }
        match self.question(container, &checked.memory_mode).await {
            Err(error) => checked.blockers.push(chain(error.as_ref())),
            Ok((request, mut here)) => {
                checked.blockers.append(&mut here);
                if let Some(host) = &checked.destination {
                    match self.ask(host, request).await {
                        Err(reason) => checked.blockers.push(reason),
                        Ok(mut reply) => {
                            checked.blockers.append(&mut reply.blockers);
                            checked.warnings.append(&mut reply.warnings);
                            checked.memory_mode =
                                self.with_peer(checked.memory_mode, host.as_str(), &reply).await;
                        }
                    }
                }
            }
        }
        let of_memory = self.memory_warnings(container, &checked.memory_mode);
        checked.warnings.splice(..0, of_memory);
        checked
    }

    fn known_host(&self, name: &str) -> Result<Name, String> {
        let identity = self.peers().identity();
        let Some(identity) = identity else {
            return Err(
                "this host is in no cluster: `tranship host init` or `tranship host join` first".to_owned(),
            );
        };
        if identity.name.as_str() == name {
            return Err(format!("the container is on {name} already"));
        }
        let found = self
            .peers()
            .hosts()
            .into_iter()
            .find(|host| host.name.as_str() == name);
        found
            .map(|host| host.name)
            .ok_or_else(|| format!("there is no host {name:?} in the cluster: see `tranship host ls`"))
    }

    /// What the destination is told, and the reasons that this host finds by itself.
    async fn question(
        &self,
        container: &ContainerId,
        mode: &MemoryMode,
    ) -> Result<(PreflightRequest, Vec<String>), AnyError> {
        let anatomy = self.containers.anatomy(container).await?;
        let mut reasons = Vec::new();
        let name = &anatomy.record.name;
        match anatomy.record.state {
            ContainerState::Running => {}
            ContainerState::Migrating => reasons.push(format!("container {name} is being migrated already")),
            _ => reasons.push(format!("container {name} is not running")),
        }
        let (criu, cpuinfo) = match probe(&self.criu).await {
            Ok(criu) => (criu.version.to_string(), cpuinfo_dump(&self.criu).await?),
            Err(error) => {
                reasons.push(format!(
                    "CRIU does not work on {}: {}",
                    self.host_name(),
                    chain(&error)
                ));
                (String::new(), Vec::new())
            }
        };
        let runc = match probe_runc(&self.runtime().runc).await {
            Ok(runc) => runc.to_string(),
            Err(error) => {
                reasons.push(format!(
                    "runc does not work on {}: {}",
                    self.host_name(),
                    chain(&error)
                ));
                String::new()
            }
        };
        reasons.extend(self.shared_volumes(&anatomy).await?);
        let disk_bytes = files_bytes(&anatomy).await?;
        let memory_bytes = self.memory_needed(&anatomy.paths.cgroup, mode);
        let record = &anatomy.record;
        let request = PreflightRequest {
            protocol_version: version::NEWEST,
            container_id: record.id.to_string(),
            epoch: record.epoch,
            spec: Some(record.spec.clone()),
            ip: record.ip.clone(),
            mac: record.mac.clone(),
            architecture: std::env::consts::ARCH.to_owned(),
            criu_version: criu,
            runtime_version: runc,
            cgroup_version: cgroup_word().to_owned(),
            cpuinfo,
            memory_bytes,
            disk_bytes,
            layers: anatomy.image.layers.clone(),
            arbiter: self.arbiter.is_some(),
        };
        Ok((request, reasons))
    }

    /// Bytes of memory that the destination needs for a container in this cgroup.
    fn memory_needed(&self, cgroup: &str, mode: &MemoryMode) -> u64 {
        // One that does not run has no memory to move.
        let all = self.memory_of(cgroup).unwrap_or_default();
        let inside_images = match mode {
            MemoryMode::Live => untracked(cgroup)
                .unwrap_or_default()
                .iter()
                .map(|found| found.bytes)
                .sum(),
            MemoryMode::PreDump(_) => return all / 100 * PRE_DUMP_PERCENT,
            MemoryMode::StopAndCopy(_) => all,
        };
        let inside_images = all.min(inside_images);
        inside_images / 100 * STOP_AND_COPY_PERCENT + (all - inside_images) / 100 * LIVE_PERCENT
    }

    /// What of the container's memory cannot be sent while it runs, and what that costs.
    fn memory_warnings(&self, container: &ContainerId, mode: &MemoryMode) -> Vec<String> {
        if let MemoryMode::PreDump(why) = mode {
            return vec![format!(
                "pre-dump: each round of memory stops the container for a moment, and the blackout grows with its memory, because {why}"
            )];
        }
        if let MemoryMode::StopAndCopy(why) = mode {
            return vec![format!(
                "stop and copy: the container stands still while its memory is copied, because {why}"
            )];
        }
        let cgroup = self.containers.paths(container).cgroup;
        // One that cannot be looked at is refused for that, with the reason.
        let shared = untracked(&cgroup).unwrap_or_default();
        let counts = |found: &Untracked| found.bytes >= SHARED_WORTH_A_WORD;
        let warning = |found: Untracked| {
            format!(
                "{} MiB of {} memory travel inside the blackout, which makes it about {} ms longer",
                found.bytes >> 20,
                found.what,
                found.bytes / SHARED_BYTES_PER_MS
            )
        };
        shared.into_iter().filter(counts).map(warning).collect()
    }

    /// A volume that somebody else here mounts too would be in two places.
    async fn shared_volumes(&self, anatomy: &Anatomy) -> Result<Vec<String>, AnyError> {
        let mut reasons = Vec::new();
        for volume in &anatomy.volumes {
            let (record, users) = self.daemon.volumes.get(&volume.record.name).await?;
            let others: Vec<_> = users
                .into_iter()
                .filter(|user| user != anatomy.record.name.as_str())
                .collect();
            if !others.is_empty() {
                reasons.push(format!(
                    "volume {:?} is mounted by {} too",
                    record.name.as_str(),
                    others.join(", ")
                ));
            }
        }
        Ok(reasons)
    }

    /// How memory moves to a destination that has answered this.
    async fn with_peer(&self, mode: MemoryMode, host: &str, reply: &PreflightReply) -> MemoryMode {
        let mode = match mode {
            MemoryMode::Live if !reply.no_live_memory.is_empty() => {
                mode::second_best(&self.criu, format!("{host}: {}", reply.no_live_memory)).await
            }
            other => other,
        };
        match mode {
            MemoryMode::PreDump(why) if !reply.takes_pre_dumps => {
                MemoryMode::StopAndCopy(format!("{why}, and {host} takes no pre-dumps"))
            }
            other => other,
        }
    }

    async fn ask(&self, host: &Name, request: PreflightRequest) -> Result<PreflightReply, String> {
        let unreachable = |error: AnyError| format!("{host} cannot be reached: {}", chain(error.as_ref()));
        let client = self.peers().control(host);
        let mut client = client.map_err(|error| unreachable(error.into()))?;
        let mut attempts = 1;
        loop {
            match tokio::time::timeout(REPLY, client.preflight(request.clone())).await {
                Err(_) => {
                    return Err(unreachable(
                        format!("no answer within {} s", REPLY.as_secs()).into(),
                    ));
                }
                // A status with a cause is none that the host has sent. Its daemon may have started again while it could not be seen:
                // the connection to the one before breaks with the first question, and a later one has a new connection.
                Ok(Err(status)) if attempts < QUESTIONS && status.source().is_some() => {
                    attempts += 1;
                    tokio::time::sleep(RECONNECT).await;
                }
                Ok(Err(status)) => return Err(unreachable(status.message().to_owned().into())),
                Ok(Ok(reply)) => return Ok(reply.into_inner()),
            }
        }
    }

    /// The destination's side of the question.
    pub async fn answer(&self, request: &PreflightRequest) -> Result<PreflightReply, AnyError> {
        let facts = self.facts(request).await?;
        let mut reasons = blockers(request, &facts);
        let host = self.host_name();
        match (request.arbiter, self.arbiter.is_some()) {
            (true, false) => reasons.push(format!(
                "etcd decides handoffs from the source, and {host} has no `[cluster] etcd`: configure it on both, or on neither"
            )),
            (false, true) => reasons.push(format!(
                "etcd decides handoffs to {host}, and the source has no `[cluster] etcd`: configure it on both, or on neither"
            )),
            _ => {}
        }
        let driver = request
            .spec
            .as_ref()
            .and_then(|spec| self.storage().get(&spec.storage_driver).ok());
        let mut layers_present = Vec::new();
        if let Some(driver) = driver {
            for layer in &request.layers {
                if driver.has_layer(&layer.parse()?)? {
                    layers_present.push(layer.clone());
                }
            }
        }
        Ok(PreflightReply {
            blockers: reasons,
            warnings: Vec::new(),
            layers_present,
            takes_pre_dumps: true,
            no_live_memory: supported()
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default(),
        })
    }

    async fn facts(&self, request: &PreflightRequest) -> Result<DestinationFacts, AnyError> {
        let spec = request.spec.clone().unwrap_or_default();
        let id: ContainerId = request.container_id.parse()?;
        let containers = self.containers.list().await?;
        let criu = probe(&self.criu).await;
        let runc = probe_runc(&self.runtime().runc).await;
        let cpu_mismatch = match &criu {
            Ok(_) => cpuinfo_check(&self.criu, &request.cpuinfo)
                .await
                .err()
                .map(|error| chain(&error)),
            Err(_) => None,
        };
        let known = self.registry().containers().tombstone(&id).await?;
        let network_here = self.networks().has(&spec.network);
        let address_taken_by = match request.ip.parse() {
            Ok(ip) if network_here => self.address_owner(&spec.network, ip, &request.mac).await?,
            _ => None,
        };
        let driver = self.storage().get(&spec.storage_driver).ok();
        let disk_free_bytes = driver
            .map(|driver| driver.space())
            .transpose()?
            .map_or(0, |space| space.free_bytes);
        let binds = spec.mounts.iter().filter(|mount| mount.kind() == MountKind::Bind);
        Ok(DestinationFacts {
            host: self.host_name(),
            architecture: std::env::consts::ARCH.to_owned(),
            // The probe refuses what is too old, and says so.
            criu: criu
                .map(|criu| criu.version.to_string())
                .map_err(|error| chain(&error)),
            criu_new_enough: true,
            runtime: runc
                .map(|version| version.to_string())
                .map_err(|error| chain(&error)),
            runtime_new_enough: true,
            cgroup_version: cgroup_word().to_owned(),
            cpu_mismatch,
            container_names: containers.iter().map(|record| record.name.to_string()).collect(),
            same_id_active: containers.iter().any(|record| record.id == id),
            known_epoch: known.map(|tombstone| tombstone.epoch),
            address_taken_by,
            storage_drivers: self.storage().names().into_iter().collect(),
            networks: self
                .networks()
                .list()
                .into_iter()
                .map(|network| network.name)
                .collect(),
            volume_names: self.volume_names().await?,
            bind_paths_missing: binds
                .filter(|mount| !Path::new(&mount.source).exists())
                .map(|mount| mount.source.clone())
                .collect(),
            disk_free_bytes,
            memory_available_bytes: memory_available_bytes()?,
        })
    }

    async fn volume_names(&self) -> Result<std::collections::BTreeSet<String>, AnyError> {
        let volumes = self.daemon.volumes.list().await?;
        Ok(volumes
            .into_iter()
            .map(|(record, _)| record.name.to_string())
            .collect())
    }

    /// Who answers for the address at this host, unless that is the container itself, still at its source.
    async fn address_owner(
        &self,
        network: &str,
        ip: Ipv4Addr,
        mac: &str,
    ) -> Result<Option<String>, AnyError> {
        let here = self
            .containers
            .list()
            .await?
            .into_iter()
            .find(|record| record.ip == ip.to_string());
        if let Some(record) = here {
            return Ok(Some(format!("container {}", record.name)));
        }
        let answered = self
            .networks()
            .probe_address(network, ip, mac.parse().ok())
            .await?;
        Ok(answered.map(|owner| owner.to_string()))
    }
}

/// As it stands in a preflight.
fn cgroup_word() -> &'static str {
    match CgroupVersion::detect() {
        CgroupVersion::V1 => "v1",
        CgroupVersion::V2 => "v2",
    }
}

async fn files_bytes(anatomy: &Anatomy) -> Result<u64, AnyError> {
    let mut trees: Vec<_> = anatomy.volumes.iter().map(|volume| volume.path.clone()).collect();
    trees.push(anatomy.driver.writable_path(&anatomy.record.id)?);
    let measured = crate::blocking::run(move || {
        trees
            .iter()
            .map(|tree| tree_bytes(tree))
            .sum::<std::io::Result<u64>>()
    });
    let bytes = measured.await?;
    // Layers that the destination has already are counted too: it may not have the room to lose them meanwhile.
    Ok(bytes + anatomy.image.size_bytes)
}
