//! What a user asked for: checked, and completed with this host's defaults, before anything is made.
//!
//! The completed spec is what travels. A destination has its own defaults; they must not change the container.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use tranship_proto::ids::{ContainerId, IdError, Name};
use tranship_proto::v1::{ContainerSpec, Mount, MountKind, UsernsMode};

use crate::runtime::{UnknownSignal, parse_signal};

/// What the kernel alone needs in a memory cgroup before a program can start.
const MIN_MEMORY_BYTES: u64 = 6 << 20;
/// A hundredth of a CPU: a millisecond in each period of the scheduler.
const MIN_NANO_CPUS: u64 = 10_000_000;
/// A label of DNS.
const MAX_HOSTNAME_BYTES: usize = 63;
/// Places the runtime fills itself.
const RESERVED_TARGETS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// Why a container cannot be made from what was asked for. Nothing was changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    /// A name of the wrong form.
    #[error("the {what} cannot be used")]
    Name {
        /// Which name.
        what: &'static str,
        /// What is wrong.
        #[source]
        source: IdError,
    },
    /// No image was named.
    #[error("no image was named")]
    NoImage,
    /// A setting of the wrong form.
    #[error("the {setting} {value:?} cannot be used: {reason}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What is wrong, or what would be right.
        reason: &'static str,
    },
    /// A mount whose place or source is wrong.
    #[error("the mount on {target:?} cannot be made: {reason}")]
    Mount {
        /// Where in the container.
        target: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two mounts in one place.
    #[error("two mounts have the same target {0:?}")]
    DuplicateTarget(String),
    /// A stop signal that is none.
    #[error("the stop signal cannot be used")]
    StopSignal(#[source] UnknownSignal),
}

/// What an empty field stands for on this host.
pub struct Defaults<'a> {
    /// Name of the network.
    pub network: &'a str,
    /// Name of the storage driver.
    pub storage_driver: &'a str,
}

/// Checks a spec and fills in what was left empty. Whether the image, network, driver and host paths that it names are there is
/// found when they are taken.
///
/// # Errors
/// [`SpecError`] for the first thing that is wrong.
pub fn complete(
    mut spec: ContainerSpec,
    id: &ContainerId,
    defaults: &Defaults<'_>,
) -> Result<ContainerSpec, SpecError> {
    fill(&mut spec.name, id.short());
    fill(&mut spec.hostname, id.short());
    fill(&mut spec.network, defaults.network);
    fill(&mut spec.storage_driver, defaults.storage_driver);
    name("container name", &spec.name)?;
    name("network name", &spec.network)?;
    if spec.image.is_empty() {
        return Err(SpecError::NoImage);
    }
    check_settings(&spec)?;
    check_limits(&spec)?;
    spec.mounts = complete_mounts(spec.mounts)?;
    Ok(spec)
}

fn fill(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn name(what: &'static str, text: &str) -> Result<Name, SpecError> {
    text.parse().map_err(|source| SpecError::Name { what, source })
}

fn setting(setting: &'static str, value: &str, reason: &'static str) -> SpecError {
    SpecError::Setting {
        setting,
        value: value.to_owned(),
        reason,
    }
}

fn check_settings(spec: &ContainerSpec) -> Result<(), SpecError> {
    let hostname_bytes = spec.hostname.bytes();
    let mut well_formed =
        hostname_bytes.map(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    if spec.hostname.len() > MAX_HOSTNAME_BYTES || !well_formed.all(|good| good) {
        let reason = "it takes up to 63 letters, digits, '-', '.' and '_'";
        return Err(setting("host name", &spec.hostname, reason));
    }
    for variable in &spec.env {
        // KEY alone takes the image's KEY away.
        if variable.is_empty() || variable.starts_with('=') || variable.contains('\0') {
            return Err(setting(
                "environment variable",
                variable,
                "it takes the form KEY=VALUE",
            ));
        }
    }
    if !spec.workdir.is_empty() && !spec.workdir.starts_with('/') {
        return Err(setting(
            "working directory",
            &spec.workdir,
            "it must be an absolute path",
        ));
    }
    if spec.labels.contains_key("") {
        return Err(setting("label", "", "it needs a key"));
    }
    if !spec.stop_signal.is_empty() {
        parse_signal(&spec.stop_signal).map_err(SpecError::StopSignal)?;
    }
    if UsernsMode::try_from(spec.userns).is_err() {
        return Err(setting(
            "user namespace",
            &spec.userns.to_string(),
            "this build knows keep and host",
        ));
    }
    Ok(())
}

fn check_limits(spec: &ContainerSpec) -> Result<(), SpecError> {
    if (1..MIN_MEMORY_BYTES).contains(&spec.memory_bytes) {
        let reason = "it must be at least 6 MiB";
        return Err(setting("memory limit", &spec.memory_bytes.to_string(), reason));
    }
    if (1..MIN_NANO_CPUS).contains(&spec.nano_cpus) {
        let reason = "it must be at least a hundredth of a CPU";
        return Err(setting(
            "CPU limit in billionths",
            &spec.nano_cpus.to_string(),
            reason,
        ));
    }
    Ok(())
}

fn complete_mounts(mounts: Vec<Mount>) -> Result<Vec<Mount>, SpecError> {
    let mut targets = BTreeSet::new();
    let mut completed = Vec::with_capacity(mounts.len());
    for mut mount in mounts {
        mount.target = clean_target(&mount.target)?;
        if !targets.insert(mount.target.clone()) {
            return Err(SpecError::DuplicateTarget(mount.target));
        }
        check_source(&mount)?;
        completed.push(mount);
    }
    Ok(completed)
}

/// An absolute path without `.`, `..` and doubled slashes.
fn clean_target(target: &str) -> Result<String, SpecError> {
    let refuse = |reason| SpecError::Mount {
        target: target.to_owned(),
        reason,
    };
    let path = Path::new(target);
    if !path.is_absolute() || target.contains('\0') {
        return Err(refuse("its target must be an absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(refuse("its target must not go up with \"..\""));
    }
    let clean: std::path::PathBuf = path.components().collect();
    if clean == Path::new("/") {
        return Err(refuse("the root is the image's"));
    }
    let shm = clean.starts_with("/dev/shm");
    if !shm
        && RESERVED_TARGETS
            .iter()
            .any(|reserved| clean.starts_with(reserved))
    {
        return Err(refuse("/proc, /sys and /dev are made by the runtime"));
    }
    clean
        .into_os_string()
        .into_string()
        .map_err(|_| refuse("its target must be UTF-8"))
}

fn check_source(mount: &Mount) -> Result<(), SpecError> {
    let refuse = |reason| SpecError::Mount {
        target: mount.target.clone(),
        reason,
    };
    match mount.kind() {
        // Empty: a volume of its own, named when it is made.
        MountKind::Volume if mount.source.is_empty() => Ok(()),
        MountKind::Volume => name("volume name", &mount.source).map(drop),
        MountKind::Tmpfs if mount.source.is_empty() => Ok(()),
        MountKind::Tmpfs => Err(refuse("a tmpfs has no source")),
        MountKind::Bind if Path::new(&mount.source).is_absolute() && !mount.source.contains('\0') => Ok(()),
        MountKind::Bind => Err(refuse("the host's path must be absolute")),
        MountKind::Unspecified => Err(refuse("it is neither a volume, a tmpfs nor a host path")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFAULTS: Defaults<'_> = Defaults {
        network: "l2",
        storage_driver: "overlay",
    };

    fn check(change: impl FnOnce(&mut ContainerSpec)) -> Result<ContainerSpec, SpecError> {
        let mut spec = ContainerSpec {
            image: "busybox".into(),
            ..Default::default()
        };
        change(&mut spec);
        complete(spec, &ContainerId::from_random([0xab; 32]), &DEFAULTS)
    }

    fn mount(kind: MountKind, source: &str, target: &str) -> Mount {
        Mount {
            kind: kind.into(),
            source: source.into(),
            target: target.into(),
            ..Default::default()
        }
    }

    #[track_caller]
    fn refused(says: &str, change: impl FnOnce(&mut ContainerSpec)) {
        let error = check(change).expect_err(says);
        assert!(error.to_string().contains(says), "{error} does not say {says:?}");
    }

    #[test]
    fn what_was_left_empty_is_filled_in() {
        let spec = check(|_| ()).unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.hostname.as_str()),
            ("abababababab", "abababababab")
        );
        assert_eq!(
            (spec.network.as_str(), spec.storage_driver.as_str()),
            ("l2", "overlay")
        );
        assert_eq!(
            complete(spec.clone(), &ContainerId::from_random([1; 32]), &DEFAULTS),
            Ok(spec)
        );
    }

    #[test]
    fn each_setting_of_the_wrong_form_is_named() {
        refused("container name", |spec| spec.name = "../x".into());
        refused("no image", |spec| spec.image.clear());
        refused("host name", |spec| spec.hostname = "a b".into());
        refused("KEY=VALUE", |spec| spec.env.push("A=\0".into()));
        refused("KEY=VALUE", |spec| spec.env.push("=x".into()));
        refused("working directory", |spec| spec.workdir = "tmp".into());
        refused("stop signal", |spec| spec.stop_signal = "SIGNOPE".into());
        refused("at least 6 MiB", |spec| spec.memory_bytes = 4096);
        refused("hundredth of a CPU", |spec| spec.nano_cpus = 1);
        refused("user namespace", |spec| spec.userns = 9);
    }

    #[test]
    fn each_mount_of_the_wrong_form_is_named() {
        refused("absolute", |spec| {
            spec.mounts.push(mount(MountKind::Volume, "v", "data"))
        });
        refused("go up", |spec| {
            spec.mounts.push(mount(MountKind::Volume, "v", "/a/../proc"))
        });
        refused("the root", |spec| {
            spec.mounts.push(mount(MountKind::Volume, "v", "/."))
        });
        refused("made by the runtime", |spec| {
            spec.mounts.push(mount(MountKind::Bind, "/x", "/proc/sys"))
        });
        refused("volume name", |spec| {
            spec.mounts.push(mount(MountKind::Volume, "../v", "/data"))
        });
        refused("no source", |spec| {
            spec.mounts.push(mount(MountKind::Tmpfs, "x", "/tmp"))
        });
        refused("must be absolute", |spec| {
            spec.mounts.push(mount(MountKind::Bind, "x", "/tmp"))
        });
        refused("neither", |spec| {
            spec.mounts.push(mount(MountKind::Unspecified, "x", "/tmp"))
        });
        refused("same target \"/data\"", |spec| {
            spec.mounts.push(mount(MountKind::Volume, "a", "/data"));
            spec.mounts.push(mount(MountKind::Volume, "b", "/data//./"));
        });
    }

    #[test]
    fn shared_memory_may_be_mounted_and_targets_are_cleaned() {
        let spec = check(|spec| {
            spec.mounts.push(mount(MountKind::Tmpfs, "", "/dev/shm"));
            spec.mounts.push(mount(MountKind::Volume, "v", "//var/./lib/"));
        })
        .unwrap();
        let targets: Vec<_> = spec.mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/dev/shm", "/var/lib"]);
    }
}
