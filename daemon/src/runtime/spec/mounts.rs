//! What a container sees where: the kernel's file systems, its own small files, then the mounts that were asked for.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::error::SpecError;
use crate::runtime::paths::ContainerPaths;

/// A mount with its source on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedMount {
    /// Absolute path in the container.
    pub target: PathBuf,
    /// What is shown there.
    pub source: MountSource,
    /// Whether the container may not write it.
    pub read_only: bool,
}

/// What a mount shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    /// A directory or file of this host: a volume's, or one that was asked for by path.
    Path(PathBuf),
    /// A tmpfs of the container's own.
    Tmpfs {
        /// Its size limit; 0 is the kernel's default.
        size_bytes: u64,
    },
}

/// Every mount in the order it is made. A mount that was asked for replaces a default of the same target.
pub(super) fn mounts(
    paths: &ContainerPaths,
    asked: &[ResolvedMount],
    own_network: bool,
) -> Result<Vec<Value>, SpecError> {
    let asked = checked(asked)?;
    let replaced: BTreeSet<&Path> = asked.iter().map(|(target, _)| target.as_path()).collect();
    let mut all = kernel_mounts(own_network);
    all.extend(own_files(paths)?);
    all.retain(|mount| {
        mount["destination"]
            .as_str()
            .is_none_or(|target| !replaced.contains(Path::new(target)))
    });
    for (target, mount) in &asked {
        all.push(to_oci(target, mount)?);
    }
    Ok(all)
}

fn kernel_mounts(own_network: bool) -> Vec<Value> {
    let mount = |target: &str, kind: &str, options: &[&str]| json!({"destination": target, "type": kind, "source": kind, "options": options});
    vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev/shm",
            "tmpfs",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        sys(own_network),
    ]
}

/// A user namespace may mount the sysfs of a network namespace that it owns. For the host's it gets the host's own, with
/// all that is mounted inside of it, and all of it read-only.
fn sys(own_network: bool) -> Value {
    if own_network {
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]})
    } else {
        json!({"destination": "/sys", "type": "bind", "source": "/sys",
            "options": ["rbind", "rprivate", "nosuid", "noexec", "nodev", "rro"]})
    }
}

fn own_files(paths: &ContainerPaths) -> Result<Vec<Value>, SpecError> {
    let files = [
        ("/etc/hostname", paths.hostname()),
        ("/etc/hosts", paths.hosts()),
        ("/etc/resolv.conf", paths.resolv_conf()),
    ];
    files
        .into_iter()
        .map(|(target, source)| bind(Path::new(target), &source, "bind", false))
        .collect()
}

fn to_oci(target: &Path, mount: &ResolvedMount) -> Result<Value, SpecError> {
    match &mount.source {
        MountSource::Path(source) => bind(target, source, "rbind", mount.read_only),
        MountSource::Tmpfs { size_bytes } => {
            let mut options = vec!["nosuid".to_owned(), "noexec".to_owned(), "nodev".to_owned()];
            options.push(if mount.read_only { "ro" } else { "rw" }.to_owned());
            if *size_bytes > 0 {
                options.push(format!("size={size_bytes}"));
            }
            Ok(json!({"destination": text(target)?, "type": "tmpfs", "source": "tmpfs", "options": options}))
        }
    }
}

fn bind(target: &Path, source: &Path, kind: &str, read_only: bool) -> Result<Value, SpecError> {
    let access = if read_only { "ro" } else { "rw" };
    Ok(
        json!({"destination": text(target)?, "type": "bind", "source": text(source)?,
        "options": [kind, "rprivate", access]}),
    )
}

/// The mounts by cleaned target, outer ones before those inside of them.
fn checked(asked: &[ResolvedMount]) -> Result<Vec<(PathBuf, &ResolvedMount)>, SpecError> {
    let mut checked = Vec::with_capacity(asked.len());
    let mut seen = BTreeSet::new();
    for mount in asked {
        let target = clean(&mount.target)?;
        let reserved = ["/proc", "/sys"]
            .iter()
            .any(|kernels| target.starts_with(kernels));
        if reserved || target == Path::new("/") || target == Path::new("/dev") {
            return Err(SpecError::ReservedTarget(target));
        }
        if !seen.insert(target.clone()) {
            return Err(SpecError::DuplicateTarget(target));
        }
        checked.push((target, mount));
    }
    checked.sort_by_key(|(target, _)| target.components().count());
    Ok(checked)
}

fn clean(target: &Path) -> Result<PathBuf, SpecError> {
    let bad = || SpecError::Path {
        what: "the target of a mount",
        path: target.to_string_lossy().into_owned(),
    };
    let climbs = target
        .components()
        .any(|part| matches!(part, Component::ParentDir));
    if !target.is_absolute() || climbs {
        return Err(bad());
    }
    Ok(target.components().collect())
}

/// A path as JSON holds it.
pub(super) fn text(path: &Path) -> Result<&str, SpecError> {
    path.to_str().ok_or_else(|| SpecError::NotUtf8(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use tranship_proto::ids::ContainerId;

    use super::*;

    fn all(asked: &[ResolvedMount]) -> Result<Vec<Value>, SpecError> {
        let id = ContainerId::from_random([1; 32]);
        let paths = ContainerPaths::new(Path::new("/state"), Path::new("/run"), "/t", &id);
        mounts(&paths, asked, true)
    }

    fn volume(target: &str) -> ResolvedMount {
        ResolvedMount {
            target: target.into(),
            source: MountSource::Path("/vol".into()),
            read_only: false,
        }
    }

    #[test]
    fn outer_mounts_come_before_inner_ones() {
        let mounts = all(&[volume("/data/inner"), volume("/data//")]).unwrap();
        let targets: Vec<&str> = mounts
            .iter()
            .filter_map(|mount| mount["destination"].as_str())
            .collect();
        assert_eq!(targets[targets.len() - 2..], ["/data", "/data/inner"]);
    }

    #[test]
    fn a_mount_of_ones_own_replaces_a_default() {
        let shm = MountSource::Tmpfs { size_bytes: 1 << 20 };
        let mounts = all(&[ResolvedMount {
            target: "/dev/shm".into(),
            source: shm,
            read_only: false,
        }])
        .unwrap();
        let shm: Vec<&Value> = mounts
            .iter()
            .filter(|mount| mount["destination"] == "/dev/shm")
            .collect();
        assert_eq!(shm.len(), 1);
        assert!(
            shm[0]["options"]
                .as_array()
                .unwrap()
                .contains(&json!("size=1048576"))
        );
    }

    #[test]
    fn targets_over_the_kernels_file_systems_are_refused() {
        for target in ["/", "/proc", "/proc/sys/x", "/sys/fs", "/dev", "//proc"] {
            assert!(
                matches!(all(&[volume(target)]), Err(SpecError::ReservedTarget(_))),
                "{target}"
            );
        }
        for target in ["data", "/data/../etc", ""] {
            assert!(
                matches!(all(&[volume(target)]), Err(SpecError::Path { .. })),
                "{target}"
            );
        }
        assert!(matches!(
            all(&[volume("/a"), volume("/a/")]),
            Err(SpecError::DuplicateTarget(_))
        ));
    }
}
