//! What an operator decides: `/etc/tranship/transhipd.toml`.
//!
//! A value that cannot work is refused here, with file, line and key, so that no other part has to doubt what it is
//! given. `file` is the text's shape, `network` the networks of containers, `cluster` the store hosts share, `position` finds a key's line, `error` is
//! what a refusal looks like.

mod cluster;
mod error;
mod file;
mod network;
mod position;
mod values;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tranship_proto::ids::Name;

pub use cluster::{EtcdConfig, EtcdTls};
pub use error::ConfigError;
pub use network::{Ipv4Network, L2Config, NetworkConfig};

use crate::peers::address::PeerAddress;
use file::ConfigFile;
use position::Document;

/// Where the configuration is looked for when no path is given.
pub const DEFAULT_PATH: &str = "/etc/tranship/transhipd.toml";

/// The storage drivers of this build.
pub const STORAGE_DRIVERS: &[&str] = &["overlay"];

/// A checked configuration, with every default filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The host's name where the operator chose one.
    pub name: Option<Name>,
    /// What must survive a reboot.
    pub state_dir: PathBuf,
    /// What need not.
    pub run_dir: PathBuf,
    /// The API's unix socket.
    pub socket: PathBuf,
    /// Group whose members may use the API; `None` is `tranship` where that group exists, else root's.
    pub socket_group: Option<String>,
    /// Users that may use the API besides root and the group.
    pub allowed_uids: Vec<u32>,
    /// Cgroup that holds the containers' cgroups, such as `/tranship`.
    pub cgroup_parent: String,
    /// The OCI runtime: a path, or a name to look up in PATH.
    pub runc: PathBuf,
    /// CRIU: a path, or a name to look up in PATH.
    pub criu: PathBuf,
    /// Folder of the helper programs; `None` is the daemon's own.
    pub libexec_dir: Option<PathBuf>,
    /// Filter of the log, in `tracing`'s form.
    pub log: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Network of a container that names none.
    pub default_network: Name,
    /// Storage driver of a container that names none.
    pub default_storage_driver: String,
    /// How memory may leave this host.
    pub memory: MemoryWish,
    /// How many migrations stay on record when they have ended.
    pub history: u32,
    /// The way to and from other hosts.
    pub peer: PeerConfig,
    /// The etcd that keeps who owns which container; `None` leaves it to the two hosts of a migration.
    pub etcd: Option<EtcdConfig>,
    /// The pool of the overlay driver.
    pub overlay_path: PathBuf,
    /// Networks for containers besides `none` and `host`, by name.
    pub networks: BTreeMap<Name, NetworkConfig>,
}

/// The way to and from other hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    /// Where the peer listener binds.
    pub listen: SocketAddr,
    /// Where other hosts reach it; `None` leaves it to `host init` and `host join`.
    pub advertise: Option<PeerAddress>,
}

/// How memory may leave a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryWish {
    /// As well as kernel and CRIU can.
    #[default]
    Auto,
    /// By CRIU's pre-dumps at best.
    PreDump,
    /// While the container stands still.
    StopAndCopy,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads the file at `path`; without a path the default one, which may be missing.
    ///
    /// # Errors
    /// The file cannot be read, or [`Config::parse`] refuses it.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(file) {
            Ok(text) => Self::parse(file, &text),
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => Self::parse(file, ""),
            Err(source) => Err(ConfigError::Read {
                file: file.to_owned(),
                source,
            }),
        }
    }

    /// Reads a configuration from text; `file` is what errors call it.
    ///
    /// # Errors
    /// The text is not TOML, has a key that nobody knows, or a value that cannot work.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let document = Document::parse(file, text)?;
        let parsed: ConfigFile = toml::from_str(text).map_err(|error| document.refuse(&error))?;
        values::check(&document, parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("t.toml"), text)
    }

    #[track_caller]
    fn refused(text: &str, parts: &[&str]) {
        let error = parse(text).expect_err(&format!("{text:?} was taken")).to_string();
        for part in parts {
            assert!(error.contains(part), "{error:?} does not say {part:?}");
        }
    }

    const EVERYTHING: &str = r#"
        name = "a"
        state_dir = "/s"
        run_dir = "/r"
        socket = "/r/api.sock"
        socket_group = "wheel"
        allowed_uids = [1000]
        cgroup_parent = "/tranship/a"
        runc = "/usr/bin/runc"
        criu = "/opt/criu"
        libexec_dir = "/usr/libexec/tranship"
        log = "info,tranship_daemon=debug"
        log_format = "json"
        default_network = "l2"
        default_storage_driver = "overlay"
        [migrate]
        memory = "pre-dump"
        history = 50
        [peer]
        listen = "10.77.0.1:7077"
        advertise = "10.77.0.1"
        [cluster]
        etcd = ["https://10.77.0.1:2379", "https://etcd.example:2379/"]
        etcd_prefix = "/site/tranship"
        etcd_ca = "/etc/tranship/etcd-ca.pem"
        etcd_cert = "/etc/tranship/etcd.pem"
        etcd_key = "/etc/tranship/etcd.key"
        [storage.overlay]
        path = "/pool"
        [network.l2]
        kind = "l2"
        bridge = "br0"
        uplink = "eth0"
        subnet = "10.77.0.0/24"
        range = "10.77.0.50-10.77.0.250"
        gateway = "10.77.0.9"
        mtu = 1500
    "#;

    #[test]
    fn every_key_that_is_documented_is_taken() {
        let config = parse(EVERYTHING).unwrap();
        assert_eq!(config.name.unwrap().as_str(), "a");
        assert_eq!(config.peer.advertise.unwrap().to_string(), "10.77.0.1:7077");
        assert_eq!(config.overlay_path, Path::new("/pool"));
        assert_eq!(config.memory, MemoryWish::PreDump);
        assert_eq!(config.history, 50);
        let etcd = config.etcd.unwrap();
        assert_eq!(etcd.endpoints[1], "https://etcd.example:2379");
        assert_eq!(etcd.prefix, "/site/tranship");
        assert_eq!(
            etcd.tls.unwrap().identity.unwrap().1,
            Path::new("/etc/tranship/etcd.key")
        );
        let NetworkConfig::L2(network) = &config.networks[&"l2".parse().unwrap()];
        assert!(network.subnet.contains("10.77.0.200".parse().unwrap()));
        assert_eq!(network.range.start().octets()[3], 50);
    }

    #[test]
    fn an_empty_file_is_the_defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.socket, Path::new("/run/tranship/transhipd.sock"));
        assert_eq!(
            config.overlay_path,
            Path::new("/var/lib/tranship/drivers/overlay")
        );
        assert_eq!(config.peer.listen, "0.0.0.0:7077".parse().unwrap());
        assert_eq!(config.default_network.as_str(), "none");
        assert_eq!(config.etcd, None);
    }

    #[test]
    fn an_etcd_that_cannot_be_used_is_named_with_its_line() {
        let etcd = parse("[cluster]\netcd = ['http://[::1]:2379']")
            .unwrap()
            .etcd
            .unwrap();
        assert_eq!((etcd.prefix.as_str(), etcd.tls), ("/tranship", None));
        assert_eq!(parse("[cluster]\netcd = []").unwrap().etcd, None);
        for endpoint in [
            "10.0.0.1:2379",
            "ftp://a:1",
            "http://a",
            "http://a:x",
            "http://a:1/v3",
            "http://u@a:1",
            "http://:1",
        ] {
            let text = format!("[cluster]\netcd = ['http://b:1', '{endpoint}']");
            refused(&text, &["t.toml:2", "`cluster.etcd`", endpoint]);
        }
        let with = |endpoint: &str, lines: &str| format!("[cluster]\netcd = ['{endpoint}']\n{lines}");
        let (plain, tls) = ("http://a:1", "https://a:1");
        for (text, parts) in [
            (
                with(plain, "etcd_prefix = 'tranship'"),
                &["t.toml:3", "`cluster.etcd_prefix`"][..],
            ),
            (with(plain, "etcd_prefix = '/a/'"), &["`cluster.etcd_prefix`"]),
            (
                with(plain, "etcd_ca = '/ca'"),
                &["t.toml:3", "`cluster.etcd_ca`", "https"],
            ),
            (with(tls, ""), &["`cluster.etcd_ca`", "missing"]),
            (with(tls, "etcd_ca = 'ca'"), &["`cluster.etcd_ca`", "absolute"]),
            (
                with(tls, "etcd_ca = '/ca'\netcd_cert = '/c'"),
                &["`cluster.etcd_key`", "missing"],
            ),
            (
                with(tls, "etcd_ca = '/ca'\netcd_key = '/k'"),
                &["`cluster.etcd_cert`", "missing"],
            ),
            (with("http://a:1', 'https://b:1", ""), &["`cluster.etcd`", "both"]),
            (
                "[cluster]\netcd_prefix = '/x'".into(),
                &["t.toml:2", "`cluster.etcd_prefix`", "etcd"],
            ),
            (
                "[cluster]\nectd = []".into(),
                &["`cluster.ectd`", "did you mean `etcd`"],
            ),
        ] {
            refused(&text, parts);
        }
    }

    #[test]
    fn the_default_file_may_be_missing_but_not_one_that_was_asked_for() {
        let error = Config::load(Some(Path::new("/nonexistent/t.toml"))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/t.toml"), "{error}");
    }

    #[test]
    fn the_default_socket_lies_in_the_run_dir() {
        assert_eq!(
            parse("run_dir = '/x'").unwrap().socket,
            Path::new("/x/transhipd.sock")
        );
    }

    #[test]
    fn an_unknown_key_is_named_at_each_level() {
        refused("state = '/x'", &["t.toml:1", "unknown key `state`"]);
        refused(
            "\n\nstate_dri = '/x'",
            &["t.toml:3", "`state_dri`", "did you mean `state_dir`"],
        );
        refused(
            "[peer]\nlisten_on = 'x'",
            &["t.toml:2", "`peer.listen_on`", "known here: listen, advertise"],
        );
        refused("[pear]\n", &["t.toml:1", "`pear`", "did you mean `peer`"]);
        refused("[storage.zfs]\n", &["t.toml:1", "`storage.zfs`"]);
        refused(
            "[storage.overlay]\npaht = '/x'",
            &["t.toml:2", "`storage.overlay.paht`", "`path`"],
        );
        refused(
            "[network.l2]\nkind = 'l2'\nbrigde = 'b'",
            &["t.toml:3", "`network.l2.brigde`", "`bridge`"],
        );
        refused(
            "peer.advertize = 'x'",
            &["t.toml:1", "`peer.advertize`", "did you mean `advertise`"],
        );
    }

    #[test]
    fn a_value_that_cannot_work_is_named_with_its_line() {
        refused("\nstate_dir = 'x'", &["t.toml:2", "`state_dir`", "absolute"]);
        refused("run_dir = 5", &["t.toml:1", "`run_dir`", "integer"]);
        refused("run_dir = '/a/../b'", &["`run_dir`", ".."]);
        refused(&format!("socket = '/{}'", "x".repeat(120)), &["`socket`", "107"]);
        refused("cgroup_parent = '/'", &["`cgroup_parent`"]);
        refused("log = 'a=b=c'", &["`log`"]);
        refused(
            "[migrate]\nmemory = 'fast'",
            &["t.toml:2", "`migrate.memory`", "stop-and-copy"],
        );
        refused(
            "[migrate]\nhistory = 0",
            &["t.toml:2", "`migrate.history`", "at least 1"],
        );
        refused("log_format = 'xml'", &["`log_format`", "json"]);
        refused("default_network = 'l3'", &["`default_network`", "l3"]);
        refused(
            "default_storage_driver = 'zfs'",
            &["`default_storage_driver`", "overlay"],
        );
        refused("name = 'A B'", &["`name`"]);
        refused("[peer]\nlisten = 'nowhere'", &["t.toml:2", "`peer.listen`"]);
        refused(
            "[peer]\nadvertise = '0.0.0.0:1'",
            &["t.toml:2", "`peer.advertise`"],
        );
        refused(
            "[storage.overlay]\npath = 'pool'",
            &["t.toml:2", "`storage.overlay.path`"],
        );
        refused("state_dir = '/x'\nstate_dir = '/y'", &["t.toml:2"]);
        refused("state_dir = ", &["t.toml:1"]);
    }

    #[test]
    fn a_network_that_cannot_work_is_named_with_its_line() {
        let network = |line: &str| {
            let base = "[network.n]\nkind = 'l2'\nbridge = 'b'\nsubnet = '10.0.0.0/24'\nrange = '10.0.0.5-10.0.0.9'\n";
            let key = line.split(' ').next().unwrap();
            let mut lines: Vec<&str> = base.lines().filter(|old| !old.starts_with(key)).collect();
            lines.push(line);
            lines.join("\n")
        };
        assert!(parse(&network("mtu = 1400")).is_ok());
        refused(
            &network("subnet = '10.0.0.1/24'"),
            &["`network.n.subnet`", "10.0.0.0/24"],
        );
        refused(&network("subnet = '10.0.0.0'"), &["`network.n.subnet`"]);
        refused(&network("range = '10.0.0.9-10.0.0.5'"), &["`network.n.range`"]);
        refused(
            &network("range = '10.0.1.5-10.0.1.9'"),
            &["`network.n.range`", "10.0.0.0/24"],
        );
        refused(&network("range = '10.0.0.0-10.0.0.9'"), &["`network.n.range`"]);
        refused(
            &network("gateway = '10.0.0.6'"),
            &["`network.n.gateway`", "range"],
        );
        refused(&network("gateway = '10.9.0.6'"), &["`network.n.gateway`"]);
        refused(&network("bridge = 'a/b'"), &["t.toml:5", "`network.n.bridge`"]);
        refused(&network("kind = 'l3'"), &["`network.n.kind`", "l2"]);
        refused(&network("mtu = 9"), &["`network.n.mtu`"]);
        refused(
            "[network.host]\nkind = 'l2'",
            &["t.toml:1", "`network.host`", "built in"],
        );
        refused(
            "[network.n]\nkind = 'l2'\n",
            &["t.toml:1", "`network.n.subnet`", "missing"],
        );
        let twice = format!(
            "{}\n{}",
            network("mtu = 1400"),
            network("mtu = 1400").replace("network.n", "network.m")
        );
        refused(&twice, &["t.toml:1", "`network.n`", "interface b", "network m"]);
    }
}
