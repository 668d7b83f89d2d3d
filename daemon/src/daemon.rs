//! The daemon put together: from a configuration to everything that answers calls.
//!
//! Opening finds what the daemon before has left; nothing that runs depends on this process. What is dropped here ends nothing but
//! the watching.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use tokio::sync::{Mutex, OnceCell};
use tranship_checkpoint::criu::{CriuInfo, unprivileged};
use tranship_migrate::error::chain;
use tranship_storage_drivers::driver::DriverError;

use crate::config::Config;
use crate::containers::{ContainerError, Containers, Parts, Recovered};
use crate::network::{NetworkError, Networks};
use crate::paths::Paths;
use crate::peers::names::machine_name;
use crate::peers::{PeerSettings, Peers, PeersError};
use crate::registry::{Registry, RegistryError};
use crate::runtime::Runtime;
use crate::storage::Storage;
use crate::volumes::Volumes;

/// Why the daemon does not start. What runs goes on.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A directory or link of the daemon's own.
    #[error("cannot make {}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A program that comes with the daemon is missing.
    #[error("{} is missing: it comes with transhipd; set libexec_dir to the folder it is in", path.display())]
    Program {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// A storage driver.
    #[error("cannot open a storage driver")]
    Storage(#[from] DriverError),
    /// The networks.
    #[error("cannot set up the networks")]
    Networks(#[from] NetworkError),
    /// The cluster.
    #[error(transparent)]
    Peers(#[from] PeersError),
    /// The containers of the daemon before.
    #[error("cannot find the containers of the daemon before")]
    Recover(#[from] ContainerError),
}

/// One host's daemon. Clones share everything.
#[derive(Clone)]
pub struct Daemon {
    /// What the operator decided.
    pub config: Arc<Config>,
    /// Where things are.
    pub paths: Paths,
    /// What survives a restart.
    pub registry: Registry,
    /// Storage drivers.
    pub storage: Storage,
    /// Volumes.
    pub volumes: Volumes,
    /// Networks.
    pub networks: Networks,
    /// Running programs.
    pub runtime: Runtime,
    /// Containers.
    pub containers: Containers,
    /// The cluster.
    pub peers: Peers,
    /// What CRIU said of itself, once it was asked.
    pub criu: Arc<OnceCell<CriuInfo>>,
    /// Held while images are imported or removed: a layer that one brings is not taken away by the other.
    pub images_changing: Arc<Mutex<()>>,
}

impl Daemon {
    /// Opens everything and finds what runs; answers also what was found. Migrations are not looked at: what is
    /// [`Recovered::unfinished`] is theirs to decide.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(config: Config) -> Result<(Self, Recovered), OpenError> {
        let config = Arc::new(config);
        let paths = Paths::new(&config.state_dir, &config.run_dir);
        make_directories(&paths)?;
        unprivileged::put_back_abandoned();
        let runtime = runtime(&config, &paths)?;
        let registry = Registry::open(&paths.registry())?;
        let storage = {
            let config = Arc::clone(&config);
            crate::blocking::run(move || Storage::open(&config)).await?
        };
        let volumes = Volumes::new(registry.clone(), storage.clone());
        if let Err(error) = volumes.sweep().await {
            tracing::warn!(error = %chain(&error), "volumes that nobody was told of may be left");
        }
        let networks = Networks::new(config.networks.clone())?;
        let peers = Peers::open(PeerSettings::of(&config), Arc::new(registry.clone())).await?;
        let parts = Parts {
            registry: registry.clone(),
            storage: storage.clone(),
            volumes: volumes.clone(),
            networks: networks.clone(),
            runtime: runtime.clone(),
        };
        let containers = Containers::new(&config, parts);
        let recovered = containers.recover().await?;
        let (running, ended) = (recovered.running, recovered.ended);
        tracing::info!(
            running,
            ended,
            unfinished = recovered.unfinished.len(),
            "containers found"
        );
        let daemon = Self {
            config,
            paths,
            registry,
            storage,
            volumes,
            networks,
            runtime,
            containers,
            peers,
            criu: Arc::default(),
            images_changing: Arc::default(),
        };
        Ok((daemon, recovered))
    }

    /// This host's name: that of its certificate, else the configured one, else the machine's.
    #[must_use]
    pub fn host_name(&self) -> String {
        let in_cluster = self.peers.identity().map(|identity| identity.name);
        let chosen = in_cluster
            .or_else(|| self.config.name.clone())
            .or_else(|| machine_name().ok());
        chosen.map_or_else(|| "localhost".to_owned(), String::from)
    }
}

fn make_directories(paths: &Paths) -> Result<(), OpenError> {
    let directories = [
        (paths.state_dir().to_owned(), 0o700),
        (paths.bundles(), 0o700),
        (paths.run_dir().to_owned(), 0o711),
        (paths.runc_root(), 0o700),
        (paths.criu_path(), 0o700),
        (paths.live(), 0o711),
        (paths.migrations(), 0o700),
    ];
    for (path, mode) in directories {
        let made = fs::DirBuilder::new().recursive(true).mode(mode).create(&path);
        made.map_err(|source| OpenError::Directory { path, source })?;
    }
    Ok(())
}

/// The programs of the runtime, found and checked, with the relay where runc finds it as `criu`.
fn runtime(config: &Config, paths: &Paths) -> Result<Runtime, OpenError> {
    let libexec = match &config.libexec_dir {
        Some(path) => path.clone(),
        None => own_directory()?,
    };
    let monitor = program(&libexec, "tranship-monitor")?;
    let filler = program(&libexec, "tranship-filler")?;
    let injector = program(&libexec, "tranship-injector")?;
    let relay = program(&libexec, "tranship-criu")?;
    let link = paths.criu_path().join("criu");
    point(&link, &relay).map_err(|source| OpenError::Directory { path: link, source })?;
    Ok(Runtime {
        runc: config.runc.clone(),
        runc_root: paths.runc_root(),
        criu_path_dir: paths.criu_path(),
        monitor,
        filler,
        injector,
    })
}

fn own_directory() -> Result<PathBuf, OpenError> {
    let own = std::env::current_exe().map_err(|source| OpenError::Directory {
        path: "/proc/self/exe".into(),
        source,
    })?;
    Ok(own.parent().unwrap_or(Path::new("/")).to_owned())
}

fn program(libexec: &Path, name: &str) -> Result<PathBuf, OpenError> {
    let path = libexec.join(name);
    if path.is_file() {
        Ok(path)
    } else {
        Err(OpenError::Program { path })
    }
}

/// Makes or changes a symbolic link, in one step: runc may look at it at any time.
fn point(link: &Path, target: &Path) -> io::Result<()> {
    let new = link.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::os::unix::fs::symlink(target, &new)?;
    fs::rename(&new, link)
}
