//! Fills in the defaults and refuses what cannot work.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Component, Path, PathBuf};

use tranship_proto::ids::Name;

use super::error::ConfigError;
use super::file::{ConfigFile, NetworkFile, PeerFile};
use super::position::Document;
use super::{Config, LogFormat, MemoryWish, NetworkConfig, PeerConfig, STORAGE_DRIVERS, cluster, network};
use crate::peers::address::{DEFAULT_PORT, PeerAddress};
use crate::peers::names::host_name;

const STATE_DIR: &str = "/var/lib/tranship";
const RUN_DIR: &str = "/run/tranship";
const OWN_CRIU: &str = "/opt/tranship/criu/sbin/criu";

/// A record and its journal have some ten kilobytes.
const HISTORY: u32 = 1000;

/// Longest path of a unix socket: the kernel's field has 108 bytes and ends in a zero.
const MAX_SOCKET_PATH_BYTES: usize = 107;

pub(super) fn check(document: &Document, file: ConfigFile) -> Result<Config, ConfigError> {
    let state_dir = directory(document, "state_dir", file.state_dir, || STATE_DIR.into())?;
    let run_dir = directory(document, "run_dir", file.run_dir, || RUN_DIR.into())?;
    if state_dir == run_dir {
        return Err(document.value("run_dir", "must not be the state_dir"));
    }
    let overlay_path = directory(
        document,
        "storage.overlay.path",
        file.storage.overlay.path,
        || state_dir.join("drivers/overlay"),
    )?;
    let networks = check_networks(document, file.network)?;
    Ok(Config {
        name: file.name.map(|name| check_name(document, &name)).transpose()?,
        socket: check_socket(document, file.socket, &run_dir)?,
        socket_group: file.socket_group,
        allowed_uids: file.allowed_uids,
        cgroup_parent: check_cgroup(document, file.cgroup_parent)?,
        runc: program(document, "runc", file.runc, || "runc".into())?,
        criu: program(document, "criu", file.criu, default_criu)?,
        libexec_dir: file
            .libexec_dir
            .map(|path| directory(document, "libexec_dir", Some(path), PathBuf::new))
            .transpose()?,
        log: check_log(document, file.log)?,
        log_format: check_log_format(document, file.log_format.as_deref())?,
        default_network: check_default_network(document, file.default_network, &networks)?,
        default_storage_driver: check_driver(document, file.default_storage_driver)?,
        memory: check_memory(document, file.migrate.memory.as_deref())?,
        history: check_history(document, file.migrate.history)?,
        peer: check_peer(document, file.peer)?,
        etcd: cluster::check(document, file.cluster)?,
        state_dir,
        run_dir,
        overlay_path,
        networks,
    })
}

fn check_memory(document: &Document, value: Option<&str>) -> Result<MemoryWish, ConfigError> {
    match value {
        None | Some("auto") => Ok(MemoryWish::Auto),
        Some("pre-dump") => Ok(MemoryWish::PreDump),
        Some("stop-and-copy") => Ok(MemoryWish::StopAndCopy),
        Some(other) => Err(document.value(
            "migrate.memory",
            format!("must be auto, pre-dump or stop-and-copy, not {other:?}"),
        )),
    }
}

fn check_history(document: &Document, value: Option<u32>) -> Result<u32, ConfigError> {
    match value {
        Some(0) => Err(document.value("migrate.history", "must be at least 1")),
        value => Ok(value.unwrap_or(HISTORY)),
    }
}

fn default_criu() -> PathBuf {
    let own = Path::new(OWN_CRIU);
    if own.exists() {
        own.to_owned()
    } else {
        "criu".into()
    }
}

/// An absolute path that goes down only.
pub(super) fn directory(
    document: &Document,
    key: &str,
    value: Option<String>,
    default: impl FnOnce() -> PathBuf,
) -> Result<PathBuf, ConfigError> {
    let path = value.map_or_else(default, PathBuf::from);
    if !path.is_absolute() {
        return Err(document.value(
            key,
            format!("must be an absolute path, not {:?}", path.display().to_string()),
        ));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(document.value(key, "must not go up with \"..\""));
    }
    Ok(path)
}

fn program(
    document: &Document,
    key: &str,
    value: Option<String>,
    default: impl FnOnce() -> PathBuf,
) -> Result<PathBuf, ConfigError> {
    let program = value.map_or_else(default, PathBuf::from);
    let is_name = program.components().count() == 1 && program.file_name().is_some();
    if program.is_absolute() || is_name {
        return Ok(program);
    }
    Err(document.value(key, "must be an absolute path or the name of a program in PATH"))
}

fn check_name(document: &Document, text: &str) -> Result<Name, ConfigError> {
    host_name(text).map_err(|error| document.value("name", format!("cannot be used: {error}")))
}

fn check_socket(document: &Document, value: Option<String>, run_dir: &Path) -> Result<PathBuf, ConfigError> {
    let socket = directory(document, "socket", value, || run_dir.join("transhipd.sock"))?;
    let length = socket.as_os_str().len();
    if length > MAX_SOCKET_PATH_BYTES {
        let problem =
            format!("is {length} bytes long, a unix socket's path has at most {MAX_SOCKET_PATH_BYTES}");
        return Err(document.value("socket", problem));
    }
    Ok(socket)
}

fn check_cgroup(document: &Document, value: Option<String>) -> Result<String, ConfigError> {
    let cgroup = value.unwrap_or_else(|| "/tranship".to_owned());
    let good = |part: &str| !part.is_empty() && part != "." && part != "..";
    match cgroup.strip_prefix('/') {
        Some(rest) if rest.split('/').all(good) => Ok(cgroup),
        _ => Err(document.value(
            "cgroup_parent",
            format!("must be a path such as \"/tranship\", not {cgroup:?}"),
        )),
    }
}

fn check_log(document: &Document, value: Option<String>) -> Result<String, ConfigError> {
    let log = value.unwrap_or_else(|| "info".to_owned());
    match tracing_subscriber::EnvFilter::try_new(&log) {
        Ok(_) => Ok(log),
        Err(error) => Err(document.value("log", format!("is not a log filter such as \"info\": {error}"))),
    }
}

fn check_log_format(document: &Document, value: Option<&str>) -> Result<LogFormat, ConfigError> {
    match value {
        None | Some("text") => Ok(LogFormat::Text),
        Some("json") => Ok(LogFormat::Json),
        Some(other) => Err(document.value(
            "log_format",
            format!("must be \"text\" or \"json\", not {other:?}"),
        )),
    }
}

fn check_default_network(
    document: &Document,
    value: Option<String>,
    networks: &BTreeMap<Name, NetworkConfig>,
) -> Result<Name, ConfigError> {
    let text = value.unwrap_or_else(|| "none".to_owned());
    let refuse = |problem: String| document.value("default_network", problem);
    let name: Name = text
        .parse()
        .map_err(|error| refuse(format!("cannot be used: {error}")))?;
    if network::BUILT_IN.contains(&name.as_str()) || networks.contains_key(&name) {
        return Ok(name);
    }
    Err(refuse(format!("is {name}, but there is no [network.{name}]")))
}

fn check_driver(document: &Document, value: Option<String>) -> Result<String, ConfigError> {
    let driver = value.unwrap_or_else(|| "overlay".to_owned());
    if STORAGE_DRIVERS.contains(&driver.as_str()) {
        return Ok(driver);
    }
    let known = STORAGE_DRIVERS.join(", ");
    Err(document.value(
        "default_storage_driver",
        format!("is {driver:?}; the storage drivers are: {known}"),
    ))
}

fn check_peer(document: &Document, file: PeerFile) -> Result<PeerConfig, ConfigError> {
    let listen = match file.listen {
        None => SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)),
        Some(text) => text.parse().map_err(|_| {
            document.value(
                "peer.listen",
                format!("must be ADDRESS:PORT such as 0.0.0.0:7077, not {text:?}"),
            )
        })?,
    };
    let refuse = |error| document.value("peer.advertise", format!("cannot be used: {error}"));
    let advertise = file
        .advertise
        .map(|text| text.parse::<PeerAddress>().map_err(refuse))
        .transpose()?;
    Ok(PeerConfig { listen, advertise })
}

fn check_networks(
    document: &Document,
    files: BTreeMap<String, NetworkFile>,
) -> Result<BTreeMap<Name, NetworkConfig>, ConfigError> {
    let checked = files
        .into_iter()
        .map(|(name, file)| network::check(document, &name, file));
    let networks = checked.collect::<Result<BTreeMap<_, _>, _>>()?;
    network::check_apart(document, networks.iter())?;
    Ok(networks)
}
