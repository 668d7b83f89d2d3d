//! The shape of the file: every key there is, none with a meaning yet.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ConfigFile {
    pub name: Option<String>,
    pub state_dir: Option<String>,
    pub run_dir: Option<String>,
    pub socket: Option<String>,
    pub socket_group: Option<String>,
    pub allowed_uids: Vec<u32>,
    pub cgroup_parent: Option<String>,
    pub runc: Option<String>,
    pub criu: Option<String>,
    pub libexec_dir: Option<String>,
    pub log: Option<String>,
    pub log_format: Option<String>,
    pub default_network: Option<String>,
    pub default_storage_driver: Option<String>,
    pub migrate: MigrateFile,
    pub peer: PeerFile,
    pub storage: StorageFile,
    pub(super) cluster: ClusterFile,
    pub network: BTreeMap<String, NetworkFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MigrateFile {
    pub memory: Option<String>,
    pub history: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct PeerFile {
    pub listen: Option<String>,
    pub advertise: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ClusterFile {
    pub etcd: Vec<String>,
    pub etcd_prefix: Option<String>,
    pub etcd_ca: Option<String>,
    pub etcd_cert: Option<String>,
    pub etcd_key: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct StorageFile {
    pub overlay: OverlayFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct OverlayFile {
    pub path: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NetworkFile {
    pub kind: Option<String>,
    pub bridge: Option<String>,
    pub uplink: Option<String>,
    pub subnet: Option<String>,
    pub range: Option<String>,
    pub gateway: Option<String>,
    pub mtu: Option<u32>,
}
