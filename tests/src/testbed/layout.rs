//! Where the testbed keeps what, and what it calls things.
//!
//! What is small and short-lived (records, logs, the sockets' links) lies below the testbed's directory, which may be on a
//! tmpfs. What must be on a real disk (databases, layers, volumes: an overlay needs it, and so do honest fsync times) lies
//! below [`DISK_PARENT`].

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Where a testbed is unless `--dir` says otherwise.
pub const DEFAULT_DIR: &str = "/run/tranship-testbed";

/// Where daemons write down what they have changed of the kernel. All hosts have one kernel, so for them it is one directory, and
/// the machine's own.
pub const OF_THE_KERNEL: &str = "/run/tranship-kernel";

/// Folder of the hosts' disks: kept across reboots and never a tmpfs on Debian.
pub const DISK_PARENT: &str = "/var/tmp";

/// Cgroup that holds those of the hosts, in every hierarchy: of the testbed in the default place.
const CGROUP: &str = "tranship-tb";

/// The namespace that holds the underlay's bridge.
pub const UNDERLAY: &str = "net";

/// The namespace with no daemon.
pub const CLIENT: &str = "client";

/// Port of the daemons' peer listeners.
pub const PEER_PORT: u16 = 7077;

/// Hosts `a` to `h`: their addresses end below the client's.
pub const MAX_HOSTS: u8 = 8;

const CLIENT_ADDRESS: u8 = 9;
const FIRST_CONTAINER: u8 = 50;
const CONTAINER_ADDRESSES: u8 = 200;

/// The directories of one testbed.
#[derive(Clone, Debug)]
pub struct Layout {
    dir: PathBuf,
}

impl Layout {
    /// The layout below an absolute directory; makes nothing.
    ///
    /// # Errors
    /// The path is not absolute or not plain.
    pub fn new(dir: &Path) -> Result<Self> {
        let plain = dir.components().all(|part| {
            matches!(
                part,
                std::path::Component::RootDir | std::path::Component::Normal(_)
            )
        });
        if !dir.is_absolute() || !plain || dir.parent().is_none() {
            bail!(
                "{} is no directory for a testbed: give an absolute path without `..`",
                dir.display()
            );
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The directory itself.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `up` was asked for, as JSON.
    #[must_use]
    pub fn record(&self) -> PathBuf {
        self.dir.join("testbed.json")
    }

    /// A link to the daemon's socket that works from the machine's own namespaces.
    #[must_use]
    pub fn socket(&self, host: &str) -> PathBuf {
        self.dir.join(format!("{host}.sock"))
    }

    /// Folder of one host's log and pid file.
    #[must_use]
    pub fn host_dir(&self, host: &str) -> PathBuf {
        self.dir.join(host)
    }

    /// The daemon's log.
    #[must_use]
    pub fn log(&self, host: &str) -> PathBuf {
        self.host_dir(host).join("transhipd.log")
    }

    /// The daemon's pid, as its host numbers it.
    #[must_use]
    pub fn pid_file(&self, host: &str) -> PathBuf {
        self.host_dir(host).join("transhipd.pid")
    }

    /// The disks of all hosts.
    #[must_use]
    pub fn disks(&self) -> PathBuf {
        Path::new(DISK_PARENT).join(self.flat_name())
    }

    /// Name of the cgroup that holds those of the hosts, in every hierarchy.
    #[must_use]
    pub fn cgroup(&self) -> String {
        if self.dir == Path::new(DEFAULT_DIR) {
            return CGROUP.to_owned();
        }
        format!("{CGROUP}-{}", self.flat_name())
    }

    /// The directory's path as one name: testbeds in different places share nothing.
    fn flat_name(&self) -> String {
        self.dir.to_string_lossy().trim_matches('/').replace('/', "-")
    }

    /// One host's disk.
    #[must_use]
    pub fn disk(&self, host: &str) -> PathBuf {
        self.disks().join(host)
    }

    /// The daemon's state directory.
    #[must_use]
    pub fn state_dir(&self, host: &str) -> PathBuf {
        self.disk(host).join("state")
    }

    /// Where the storage drivers' file system is.
    #[must_use]
    pub fn pool(&self, host: &str) -> PathBuf {
        self.disk(host).join("pool")
    }

    /// The daemon's configuration.
    #[must_use]
    pub fn config(&self, host: &str) -> PathBuf {
        self.disk(host).join("transhipd.toml")
    }
}

/// Names of the first `count` hosts.
#[must_use]
pub fn host_names(count: u8) -> Vec<String> {
    (0..count.min(MAX_HOSTS))
        .map(|index| char::from(b'a' + index).to_string())
        .collect()
}

/// Address of a host or of the client on the underlay; none for the underlay itself.
#[must_use]
pub fn address(name: &str) -> Option<Ipv4Addr> {
    if name == CLIENT {
        return Some(Ipv4Addr::new(10, 77, 0, CLIENT_ADDRESS));
    }
    match name.as_bytes() {
        [letter @ b'a'..=b'h'] => Some(Ipv4Addr::new(10, 77, 0, letter - b'a' + 1)),
        _ => None,
    }
}

/// The addresses that one of `count` hosts hands out to containers: first and last.
#[must_use]
pub fn container_range(name: &str, count: u8) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let index = address(name)?.octets()[3] - 1;
    let share = CONTAINER_ADDRESSES / count.max(4);
    let first = FIRST_CONTAINER + index * share;
    Some((
        Ipv4Addr::new(10, 77, 0, first),
        Ipv4Addr::new(10, 77, 0, first + share - 1),
    ))
}

/// The configuration of a host's daemon.
///
/// # Errors
/// No such host.
pub fn daemon_config(layout: &Layout, host: &str, hosts: u8) -> Result<String> {
    let (Some(own), Some((first, last))) = (address(host), container_range(host, hosts)) else {
        bail!("there is no host {host}");
    };
    let state_dir = layout.state_dir(host);
    let pool = layout.pool(host).join("overlay");
    Ok(format!(
        r#"name = "{host}"
state_dir = "{state_dir}"
run_dir = "/run/tranship"
cgroup_parent = "/{cgroup}/{host}"

[peer]
listen = "{own}:{PEER_PORT}"
advertise = "{own}:{PEER_PORT}"

[storage.overlay]
path = "{pool}"

[network.l2]
kind = "l2"
bridge = "br0"
uplink = "eth0"
subnet = "10.77.0.0/24"
range = "{first}-{last}"
"#,
        state_dir = state_dir.display(),
        pool = pool.display(),
        cgroup = layout.cgroup(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_all_hosts_are_apart_and_clear_of_hosts_and_client() {
        for count in 1..=MAX_HOSTS {
            let mut next = FIRST_CONTAINER;
            for name in host_names(count) {
                let (first, last) = container_range(&name, count).unwrap();
                assert_eq!(first.octets()[3], next, "{name} of {count}");
                assert!(last > first && last.octets()[3] < 250);
                next = last.octets()[3] + 1;
            }
        }
    }

    #[test]
    fn host_b_of_three_hands_out_100_to_149() {
        let (first, last) = container_range("b", 3).unwrap();
        assert_eq!(
            (first.to_string(), last.to_string()),
            ("10.77.0.100".into(), "10.77.0.149".into())
        );
    }

    #[test]
    fn testbeds_in_two_places_share_neither_cgroup_nor_disk() {
        let [one, other] = [DEFAULT_DIR, "/run/other"].map(|dir| Layout::new(Path::new(dir)).unwrap());
        assert_eq!(one.cgroup(), "tranship-tb");
        assert_ne!(one.cgroup(), other.cgroup());
        assert_ne!(one.disks(), other.disks());
    }

    #[test]
    fn a_relative_or_winding_directory_is_refused() {
        for bad in ["testbed", "/", "/run/../etc", ""] {
            assert!(Layout::new(Path::new(bad)).is_err(), "{bad:?} was taken");
        }
    }
}
