//! The reasons to refuse a migration before anything is touched. Pure: facts in, reasons out, every reason named so
//! that an operator can mend all of them at once.

use std::collections::BTreeSet;

use tranship_proto::v1::{MountKind, PreflightRequest};
use tranship_proto::version;

/// What a destination knows about itself when it is asked.
#[derive(Clone, Debug)]
pub struct DestinationFacts {
    /// Its name.
    pub host: String,
    /// As `uname -m` has it.
    pub architecture: String,
    /// Version of CRIU, if it works, else why it does not.
    pub criu: Result<String, String>,
    /// Whether that CRIU is new enough.
    pub criu_new_enough: bool,
    /// Version of runc, if it works, else why it does not.
    pub runtime: Result<String, String>,
    /// Whether that runc is new enough.
    pub runtime_new_enough: bool,
    /// `v1` or `v2`.
    pub cgroup_version: String,
    /// What CRIU says of the source's CPU, when it refuses.
    pub cpu_mismatch: Option<String>,
    /// Names of containers here.
    pub container_names: BTreeSet<String>,
    /// Whether a container of this id runs here, and its epoch if one is known.
    pub same_id_active: bool,
    /// The highest epoch this host has on record for the container.
    pub known_epoch: Option<u64>,
    /// Addresses in use here, or answered for on the network by another MAC than the container's.
    pub address_taken_by: Option<String>,
    /// Storage drivers.
    pub storage_drivers: BTreeSet<String>,
    /// Names of networks, `none` and `host` included.
    pub networks: BTreeSet<String>,
    /// Names of volumes.
    pub volume_names: BTreeSet<String>,
    /// Host paths of bind mounts that are missing here.
    pub bind_paths_missing: Vec<String>,
    /// Free bytes of the storage pool.
    pub disk_free_bytes: u64,
    /// Memory that can be had without swapping, in bytes.
    pub memory_available_bytes: u64,
}

/// Every reason to refuse, in words for a person; empty when there is none.
#[must_use]
pub fn blockers(request: &PreflightRequest, here: &DestinationFacts) -> Vec<String> {
    let mut reasons = Vec::new();
    platform(request, here, &mut reasons);
    names(request, here, &mut reasons);
    space(request, here, &mut reasons);
    reasons
}

fn platform(request: &PreflightRequest, here: &DestinationFacts, reasons: &mut Vec<String>) {
    let host = &here.host;
    if !version::SUPPORTED.contains(&request.protocol_version) {
        reasons.push(format!(
            "{host} speaks the migration protocol {:?}, not {}: bring both daemons to versions next to each other",
            version::SUPPORTED,
            request.protocol_version
        ));
    }
    if request.architecture != here.architecture {
        reasons.push(format!(
            "{host} is {}, the container's host is {}",
            here.architecture, request.architecture
        ));
    }
    tool(host, "CRIU", &here.criu, here.criu_new_enough, reasons);
    tool(host, "runc", &here.runtime, here.runtime_new_enough, reasons);
    if request.cgroup_version != here.cgroup_version {
        reasons.push(format!(
            "{host} has cgroup {}, the container's host {}: a checkpoint cannot cross that",
            here.cgroup_version, request.cgroup_version
        ));
    }
    if let Some(mismatch) = &here.cpu_mismatch {
        reasons.push(format!(
            "the CPU of {host} lacks features the container may use: {mismatch}"
        ));
    }
}

fn tool(
    host: &str,
    name: &str,
    version: &Result<String, String>,
    new_enough: bool,
    reasons: &mut Vec<String>,
) {
    match version {
        Err(why) => reasons.push(format!("{name} does not work on {host}: {why}")),
        Ok(version) if !new_enough => reasons.push(format!("{name} {version} on {host} is too old")),
        Ok(_) => {}
    }
}

fn names(request: &PreflightRequest, here: &DestinationFacts, reasons: &mut Vec<String>) {
    let host = &here.host;
    let Some(spec) = &request.spec else {
        reasons.push("the request describes no container".to_owned());
        return;
    };
    if here.same_id_active {
        reasons.push(format!("{host} already has this container"));
    }
    if here.known_epoch.is_some_and(|known| known > request.epoch) {
        reasons.push(format!(
            "{host} knows a newer owner of this container: the copy here is stale"
        ));
    }
    if here.container_names.contains(&spec.name) {
        reasons.push(format!("a container named {:?} is on {host}", spec.name));
    }
    if let Some(owner) = &here.address_taken_by {
        reasons.push(format!(
            "the address {} is in use at {host}, by {owner}",
            request.ip
        ));
    }
    if !here.storage_drivers.contains(&spec.storage_driver) {
        reasons.push(format!("{host} has no storage driver {:?}", spec.storage_driver));
    }
    if spec.network == "host" {
        reasons.push(
            "it is on the network \"host\": its connections are its host's, and cannot move".to_owned(),
        );
    }
    if !here.networks.contains(&spec.network) {
        reasons.push(format!("{host} has no network {:?}", spec.network));
    }
    for mount in &spec.mounts {
        if mount.kind() == MountKind::Volume && here.volume_names.contains(&mount.source) {
            reasons.push(format!("a volume named {:?} is on {host}", mount.source));
        }
    }
    for path in &here.bind_paths_missing {
        reasons.push(format!("the bind mount's path {path:?} is missing on {host}"));
    }
}

fn space(request: &PreflightRequest, here: &DestinationFacts, reasons: &mut Vec<String>) {
    let host = &here.host;
    if request.disk_bytes > here.disk_free_bytes {
        reasons.push(format!(
            "{host} has {} bytes of disk free, the container's files need {}",
            here.disk_free_bytes, request.disk_bytes
        ));
    }
    if request.memory_bytes > here.memory_available_bytes {
        reasons.push(format!(
            "{host} has {} bytes of memory available, the container needs {}",
            here.memory_available_bytes, request.memory_bytes
        ));
    }
}

#[cfg(test)]
mod tests {
    use tranship_proto::v1::{ContainerSpec, Mount};

    use super::*;

    fn set(words: &[&str]) -> BTreeSet<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn facts() -> DestinationFacts {
        DestinationFacts {
            host: "b".to_owned(),
            architecture: "x86_64".to_owned(),
            criu: Ok("4.2.1".to_owned()),
            criu_new_enough: true,
            runtime: Ok("1.1.5".to_owned()),
            runtime_new_enough: true,
            cgroup_version: "v1".to_owned(),
            cpu_mismatch: None,
            container_names: set(&["other"]),
            same_id_active: false,
            known_epoch: None,
            address_taken_by: None,
            storage_drivers: set(&["overlay"]),
            networks: set(&["l2", "none", "host"]),
            volume_names: set(&[]),
            bind_paths_missing: Vec::new(),
            disk_free_bytes: 1 << 30,
            memory_available_bytes: 1 << 30,
        }
    }

    fn request() -> PreflightRequest {
        PreflightRequest {
            protocol_version: version::NEWEST,
            architecture: "x86_64".to_owned(),
            cgroup_version: "v1".to_owned(),
            ip: "10.77.0.50".to_owned(),
            epoch: 3,
            disk_bytes: 1 << 20,
            memory_bytes: 1 << 20,
            spec: Some(ContainerSpec {
                name: "web".to_owned(),
                network: "l2".to_owned(),
                storage_driver: "overlay".to_owned(),
                mounts: vec![Mount {
                    kind: MountKind::Volume.into(),
                    source: "data".to_owned(),
                    ..Mount::default()
                }],
                ..ContainerSpec::default()
            }),
            ..PreflightRequest::default()
        }
    }

    #[test]
    fn a_fitting_destination_gives_no_reason() {
        assert_eq!(blockers(&request(), &facts()), Vec::<String>::new());
    }

    /// A change that spoils the facts, and a word its reason must have.
    type Case = (&'static str, fn(&mut DestinationFacts));

    #[test]
    fn each_thing_that_does_not_fit_is_a_reason_of_its_own() {
        let cases: [Case; 15] = [
            ("aarch64", |here| here.architecture = "aarch64".to_owned()),
            ("CRIU does not work", |here| {
                here.criu = Err("no such file".to_owned())
            }),
            ("CRIU 4.2.1 on b is too old", |here| here.criu_new_enough = false),
            ("runc 1.1.5 on b is too old", |here| {
                here.runtime_new_enough = false
            }),
            ("cgroup v2", |here| here.cgroup_version = "v2".to_owned()),
            ("avx512", |here| here.cpu_mismatch = Some("avx512f".to_owned())),
            ("named \"web\"", |here| {
                here.container_names.extend(["web".to_owned()])
            }),
            ("already has this container", |here| here.same_id_active = true),
            ("stale", |here| here.known_epoch = Some(4)),
            ("10.77.0.50 is in use", |here| {
                here.address_taken_by = Some("aa:bb".to_owned())
            }),
            ("no storage driver", |here| here.storage_drivers.clear()),
            ("no network", |here| here.networks.clear()),
            ("volume named \"data\"", |here| {
                here.volume_names.extend(["data".to_owned()])
            }),
            ("disk free", |here| here.disk_free_bytes = 10),
            ("memory available", |here| here.memory_available_bytes = 10),
        ];
        for (word, spoil) in cases {
            let mut here = facts();
            spoil(&mut here);
            let reasons = blockers(&request(), &here);
            assert_eq!(reasons.len(), 1, "{word}: {reasons:?}");
            assert!(reasons[0].contains(word), "{word}: {reasons:?}");
        }
    }

    #[test]
    fn all_reasons_are_given_at_once() {
        let mut here = facts();
        here.architecture = "riscv64".to_owned();
        here.networks.clear();
        here.disk_free_bytes = 0;
        assert_eq!(blockers(&request(), &here).len(), 3);
    }

    #[test]
    fn a_container_on_its_hosts_own_network_stays() {
        let mut request = request();
        request.spec.as_mut().unwrap().network = "host".to_owned();
        let reasons = blockers(&request, &facts());
        assert!(
            reasons.len() == 1 && reasons[0].contains("cannot move"),
            "{reasons:?}"
        );
    }

    #[test]
    fn an_unknown_protocol_is_a_reason() {
        let request = PreflightRequest {
            protocol_version: 99,
            ..request()
        };
        assert!(blockers(&request, &facts())[0].contains("protocol"));
    }
}
