//! Where the parts of one container are. Nobody else puts these paths together.

use std::path::{Path, PathBuf};

use tranship_proto::ids::ContainerId;

/// The places of one container on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPaths {
    /// Whose they are.
    pub id: ContainerId,
    /// The bundle, on a disk that survives a reboot: `<state_dir>/containers/ID`.
    pub bundle: PathBuf,
    /// What does not survive one: `<run_dir>/containers/ID`.
    pub run: PathBuf,
    /// Its cgroup, below the root of every hierarchy: `/tranship/ID`.
    pub cgroup: String,
}

impl ContainerPaths {
    /// The places of container `id` of the daemon with these directories and this `cgroup_parent`.
    #[must_use]
    pub fn new(state_dir: &Path, run_dir: &Path, cgroup_parent: &str, id: &ContainerId) -> Self {
        Self {
            id: id.clone(),
            bundle: state_dir.join("containers").join(id.as_str()),
            run: run_dir.join("containers").join(id.as_str()),
            cgroup: format!("/{}/{id}", cgroup_parent.trim_matches('/')),
        }
    }

    /// Where the root filesystem is mounted.
    #[must_use]
    pub fn rootfs(&self) -> PathBuf {
        self.run.join("rootfs")
    }

    /// The OCI runtime configuration.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.bundle.join("config.json")
    }

    /// The file shown as `/etc/hostname`.
    #[must_use]
    pub fn hostname(&self) -> PathBuf {
        self.bundle.join("hostname")
    }

    /// The file shown as `/etc/hosts`.
    #[must_use]
    pub fn hosts(&self) -> PathBuf {
        self.bundle.join("hosts")
    }

    /// The file shown as `/etc/resolv.conf`.
    #[must_use]
    pub fn resolv_conf(&self) -> PathBuf {
        self.bundle.join("resolv.conf")
    }

    /// What the container wrote to its standard output and error.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.bundle.join("container.log")
    }

    /// The log on its way to or from another host: a directory with the file alone.
    #[must_use]
    pub fn moving_log(&self) -> PathBuf {
        self.bundle.join("moving-log")
    }

    /// How the container ended; absent while it has not.
    #[must_use]
    pub fn exit(&self) -> PathBuf {
        self.bundle.join("exit")
    }

    /// Which monitor watches which process.
    #[must_use]
    pub fn monitor(&self) -> PathBuf {
        self.bundle.join("monitor.json")
    }

    /// What runc warned of; the container's own standard error stays free of it.
    #[must_use]
    pub fn runc_log(&self) -> PathBuf {
        self.bundle.join("runc.log")
    }

    /// What went wrong in the monitor after nobody was listening to it any more.
    #[must_use]
    pub fn monitor_log(&self) -> PathBuf {
        self.bundle.join("monitor.log")
    }

    /// Exists as long as the container's memory is not complete after a migration.
    #[must_use]
    pub fn filling(&self) -> PathBuf {
        self.run.join("filling")
    }

    /// The cgroup of the container's monitor: a sibling of the container's, never part of it.
    #[must_use]
    pub fn monitor_cgroup(&self) -> String {
        let parent = self.cgroup.rsplit_once('/').map_or("", |(parent, _)| parent);
        format!("{parent}/monitor-{}", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_monitor_is_beside_its_container_and_not_in_it() {
        let id = ContainerId::from_random([7; 32]);
        let paths = ContainerPaths::new(Path::new("/s"), Path::new("/r"), "/tranship/", &id);
        assert_eq!(paths.cgroup, format!("/tranship/{id}"));
        assert_eq!(paths.monitor_cgroup(), format!("/tranship/monitor-{id}"));
        assert_eq!(
            paths.rootfs(),
            PathBuf::from(format!("/r/containers/{id}/rootfs"))
        );
    }
}
