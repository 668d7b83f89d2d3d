//! What this host is and has, and what its operator should know.

use std::fs;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, FsType, TMPFS_MAGIC, statfs};
use tonic::Status;
use tranship_checkpoint::criu::probe;
use tranship_checkpoint::criu::probe::probe_runc;
use tranship_proto::v1::{ContainerState, InfoReply};

use super::status;
use crate::containers::chain;
use crate::daemon::Daemon;
use crate::migration::mode;

/// Where runc looks for the cgroup hierarchies.
const CGROUPS: &str = "/sys/fs/cgroup";

pub async fn info(daemon: &Daemon) -> Result<InfoReply, Status> {
    let containers = daemon
        .containers
        .list()
        .await
        .map_err(|error| status::of(&error))?;
    let images = daemon
        .registry
        .images()
        .list()
        .await
        .map_err(|error| status::of(&error))?;
    let alive = |state| {
        matches!(
            state,
            ContainerState::Running | ContainerState::Paused | ContainerState::Migrating
        )
    };
    let running = containers.iter().filter(|record| alive(record.state)).count();
    let mut warnings = host_warnings(daemon);
    let criu_version = criu_version(daemon, &mut warnings).await;
    let runtime_version = runtime_version(daemon, &mut warnings).await;
    Ok(InfoReply {
        host: daemon.host_name(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: read_trimmed("/proc/sys/kernel/osrelease"),
        architecture: std::env::consts::ARCH.to_owned(),
        runtime: daemon.config.runc.display().to_string(),
        runtime_version,
        criu_version,
        cgroup_version: cgroup_version().to_owned(),
        storage_drivers: daemon.storage.names(),
        containers: count(containers.len()),
        running: count(running),
        images: count(images.len()),
        warnings,
        peer_address: daemon.peers.address().unwrap_or_default(),
        memory_bytes: memory_bytes(),
        memory_mode: mode::of_this_host(&daemon.config).await.to_string(),
        cpus: std::thread::available_parallelism().map_or(0, |cpus| count(cpus.get())),
    })
}

/// Empty where CRIU cannot be used, with a warning that says why.
async fn criu_version(daemon: &Daemon, warnings: &mut Vec<String>) -> String {
    match daemon.criu.get_or_try_init(|| probe(&daemon.config.criu)).await {
        Ok(criu) => {
            warnings.extend(criu.warnings.iter().cloned());
            criu.version.to_string()
        }
        Err(error) => {
            warnings.push(format!(
                "containers cannot migrate from or to this host: {}",
                chain(&error)
            ));
            String::new()
        }
    }
}

async fn runtime_version(daemon: &Daemon, warnings: &mut Vec<String>) -> String {
    match probe_runc(&daemon.config.runc).await {
        Ok(version) => version.to_string(),
        Err(error) => {
            warnings.push(format!("no container can run on this host: {}", chain(&error)));
            String::new()
        }
    }
}

fn host_warnings(daemon: &Daemon) -> Vec<String> {
    let mut warnings = Vec::new();
    let run_dir = &daemon.config.run_dir;
    if !is_on(run_dir, TMPFS_MAGIC) {
        let path = run_dir.display();
        warnings.push(format!(
            "run_dir {path} is not on a tmpfs: migrations write memory images there, slowly"
        ));
    }
    if is_on(&daemon.config.state_dir, TMPFS_MAGIC) {
        let path = daemon.config.state_dir.display();
        warnings.push(format!(
            "state_dir {path} is on a tmpfs: a reboot loses every container and volume"
        ));
    }
    warnings
}

/// The hierarchy that runc uses: the unified one only where nothing else is mounted.
pub fn cgroup_version() -> &'static str {
    if is_on(Path::new(CGROUPS), CGROUP2_SUPER_MAGIC) {
        "v2"
    } else {
        "v1"
    }
}

fn is_on(path: &Path, kind: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == kind)
}

fn read_trimmed(path: &str) -> String {
    fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

fn memory_bytes() -> u64 {
    let table = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = table.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = total
        .and_then(|line| line.trim().split(' ').next())
        .and_then(|text| text.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
