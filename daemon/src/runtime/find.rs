//! What has become of a container: after a restart of the daemon, and at its end. Only the bundle and the kernel are
//! asked.

use std::time::Duration;

use super::cgroup::Cgroup;
use super::error::WaitError;
use super::monitor::{ExitStatus, MonitorRecord, ProcessId, read_record};
use super::paths::ContainerPaths;
use super::process;

/// How long a monitor whose container has ended may take to write so.
const FINISH_DEADLINE: Duration = Duration::from_secs(45);

/// What has become of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A monitor is about to bring it to life, or restores it.
    Starting,
    /// It runs.
    Running(Life),
    /// It is frozen.
    Paused(Life),
    /// It has ended.
    Exited(ExitStatus),
    /// Nothing is known: it never came to life here.
    Gone,
}

/// A container that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// Host pid of its first process.
    pub pid: i32,
    /// When it came to life on this host, in milliseconds since the Unix epoch.
    pub started_ms: i64,
    /// Whether its monitor lives; without one its output is lost, and its exit code will not be known.
    pub monitored: bool,
}

/// What has become of the container. Waits some seconds for a monitor that is about to write down the end.
///
/// # Errors
/// The records in the bundle cannot be read, or the monitor cannot be watched.
pub async fn find(paths: &ContainerPaths) -> Result<Found, WaitError> {
    if let Some(status) = exit_status(paths)? {
        return Ok(Found::Exited(status));
    }
    let Some(record) = record(paths)? else {
        return Ok(Found::Gone);
    };
    let monitored = record.monitor.is_alive();
    let Some(init) = &record.init else {
        return if monitored {
            Ok(Found::Starting)
        } else {
            Ok(exit_status(paths)?.map_or(Found::Gone, Found::Exited))
        };
    };
    if init.is_alive() {
        let life = Life {
            pid: init.pid,
            started_ms: record.started_ms,
            monitored,
        };
        let frozen = Cgroup::at(&paths.cgroup).is_frozen();
        return Ok(if frozen {
            Found::Paused(life)
        } else {
            Found::Running(life)
        });
    }
    match tokio::time::timeout(FINISH_DEADLINE, wait(paths)).await {
        Ok(status) => status.map(Found::Exited),
        Err(_) => Ok(Found::Exited(UNSEEN)),
    }
}

/// How the container ended; returns when it has. One that nobody saw end (its monitor was killed, the machine restarted)
/// has no exit code and no time. Cancel-safe; has no deadline of its own, because a container lives as long as it likes.
///
/// # Errors
/// The records in the bundle cannot be read, or a process cannot be watched.
pub async fn wait(paths: &ContainerPaths) -> Result<ExitStatus, WaitError> {
    if let Some(status) = exit_status(paths)? {
        return Ok(status);
    }
    monitor_ended(paths).await?;
    if let Some(status) = exit_status(paths)? {
        return Ok(status);
    }
    if let Some(init) = record(paths)?.and_then(|record| record.init) {
        ended(paths, &init).await?;
    }
    Ok(UNSEEN)
}

const UNSEEN: ExitStatus = ExitStatus {
    exit_code: None,
    finished_ms: 0,
    oom_killed: false,
    memory_lost: false,
};

/// Returns when the container has no monitor, or none any more.
pub(super) async fn monitor_ended(paths: &ContainerPaths) -> Result<(), WaitError> {
    match record(paths)? {
        Some(record) => ended(paths, &record.monitor).await,
        None => Ok(()),
    }
}

/// The record of the container's end; none while it has not ended.
pub(super) fn exit_status(paths: &ContainerPaths) -> Result<Option<ExitStatus>, WaitError> {
    let path = paths.exit();
    read_record(&path).map_err(|source| WaitError::Record {
        id: paths.id.clone(),
        path,
        source,
    })
}

/// The record of the container's monitor.
pub(super) fn record(paths: &ContainerPaths) -> Result<Option<MonitorRecord>, WaitError> {
    let path = paths.monitor();
    read_record(&path).map_err(|source| WaitError::Record {
        id: paths.id.clone(),
        path,
        source,
    })
}

async fn ended(paths: &ContainerPaths, of: &ProcessId) -> Result<(), WaitError> {
    let watch = |source| WaitError::Watch {
        id: paths.id.clone(),
        pid: of.pid,
        source,
    };
    process::ended(of).await.map_err(watch)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tranship_proto::ids::ContainerId;

    use super::super::monitor::write_record;
    use super::*;

    fn bundle(dir: &tempfile::TempDir) -> ContainerPaths {
        let id = ContainerId::from_random([3; 32]);
        let paths = ContainerPaths::new(dir.path(), dir.path(), "/rt-test-none", &id);
        fs::create_dir_all(&paths.bundle).unwrap();
        paths
    }

    fn this_process() -> ProcessId {
        ProcessId::of(i32::try_from(std::process::id()).unwrap()).unwrap()
    }

    fn a_dead_process() -> ProcessId {
        ProcessId {
            boot_id: "an earlier boot".to_owned(),
            ..this_process()
        }
    }

    #[tokio::test]
    async fn a_container_that_never_lived_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(&bundle(&dir)).await.unwrap(), Found::Gone);
    }

    #[tokio::test]
    async fn records_of_an_earlier_boot_are_of_a_container_that_ended_unseen() {
        let dir = tempfile::tempdir().unwrap();
        let paths = bundle(&dir);
        let record = MonitorRecord {
            monitor: a_dead_process(),
            init: Some(a_dead_process()),
            started_ms: 1,
        };
        write_record(&paths.monitor(), &record).unwrap();
        assert_eq!(find(&paths).await.unwrap(), Found::Exited(UNSEEN));
        assert_eq!(wait(&paths).await.unwrap().exit_code, None);
    }

    #[tokio::test]
    async fn a_living_process_without_its_monitor_runs_unmonitored() {
        let dir = tempfile::tempdir().unwrap();
        let paths = bundle(&dir);
        let record = MonitorRecord {
            monitor: a_dead_process(),
            init: Some(this_process()),
            started_ms: 1,
        };
        write_record(&paths.monitor(), &record).unwrap();
        let life = Life {
            pid: this_process().pid,
            started_ms: 1,
            monitored: false,
        };
        assert_eq!(find(&paths).await.unwrap(), Found::Running(life));
    }

    #[tokio::test]
    async fn the_record_of_the_end_outweighs_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let paths = bundle(&dir);
        let record = MonitorRecord {
            monitor: this_process(),
            init: Some(this_process()),
            started_ms: 1,
        };
        write_record(&paths.monitor(), &record).unwrap();
        let status = ExitStatus {
            exit_code: Some(3),
            finished_ms: 9,
            oom_killed: false,
            memory_lost: false,
        };
        write_record(&paths.exit(), &status).unwrap();
        assert_eq!(find(&paths).await.unwrap(), Found::Exited(status));
        assert_eq!(wait(&paths).await.unwrap(), status);
    }
}
