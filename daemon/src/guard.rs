//! The guard: a second process of this program that waits for nothing but the end of its daemon. A container that stands still for a
//! migration then would do so until the daemon is started again; the guard gives it its network back and lets it run.
//!
//! It does what a daemon that starts would do ([`Conductor::give_back`]), by the same journal and under the same lock: so nobody
//! can be about to write a commit while it looks for one, and where there is one it leaves the container as it is. A daemon that is
//! started meanwhile waits for it; one that was faster does the work itself, and the guard ends. What cannot be done, as where etcd is to
//! decide and is away, is tried again until a daemon is started.
//!
//! Its daemon holds the other end of its standard input and writes nothing there. That ends with the daemon's last thread,
//! however that ends, so after the last write of the journal.

use std::ffi::OsString;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use std::{fs, io};

use tokio::process::{ChildStdin, Command};
use tranship_migrate::error::{HostError, chain};
use tranship_proto::v1::MigrationRole;

use crate::config::Config;
use crate::daemon::{Daemon, OpenError};
use crate::lock::{LockError, StateLock};
use crate::migration::Conductor;
use crate::paths::Paths;
use crate::registry::{Registry, RegistryError};

/// The word on the command line that makes a guard of this program.
pub const COMMAND: &str = "guard";

/// What the process is called, so that nobody takes it for a daemon.
const NAME: &str = "tranship-guard";

/// Before another guard takes the place of one that has ended, and before a guard tries again what did not work: then twice as
/// long each time,
const PAUSE: Duration = Duration::from_secs(1);

/// up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Why a guard could not do its work. Containers stay as they are until the daemon is started.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Its standard input, or the threads it needs.
    #[error("the guard cannot wait for the end of its daemon")]
    Wait(#[from] io::Error),
    /// The state directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What a daemon needs to start.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The migrations.
    #[error(transparent)]
    Migrations(#[from] HostError),
}

/// Keeps a guard beside this daemon, for as long as this is polled. `arguments` make this program find the daemon's configuration.
pub async fn keep(arguments: Vec<OsString>) {
    loop {
        match post(&arguments).await {
            Ok(status) => tracing::warn!(%status, "the guard has ended; another one takes its place"),
            Err(error) => {
                tracing::error!(%error, "no guard can be started: if transhipd dies, a container that stands still does so until the next start");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// One guard, until it ends.
async fn post(arguments: &[OsString]) -> io::Result<ExitStatus> {
    // Whatever has become of the file this program was started from.
    let mut guard = Command::new("/proc/self/exe")
        .args(arguments)
        .arg(COMMAND)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .current_dir("/")
        // A Ctrl-C is for the daemon.
        .process_group(0)
        .spawn()?;
    // Taken, because waiting would close it. The end of this task does not close it either: when a daemon stops, threads of its may
    // be writing the journal until the process is gone.
    let held = guard.stdin.take().map(ChildStdin::into_owned_fd).transpose()?;
    let held = held.map(ManuallyDrop::new);
    let ended = guard.wait().await;
    drop(held.map(ManuallyDrop::into_inner));
    ended
}

/// What the guard's process does, to its end.
///
/// # Errors
/// [`GuardError`].
pub fn stand(config: Config) -> Result<(), GuardError> {
    fs::write("/proc/self/comm", NAME)?;
    // When memory runs out it is needed most. Without the right to say so it is as likely to be ended as the daemon.
    fs::write("/proc/self/oom_score_adj", "-1000").ok();
    io::copy(&mut io::stdin().lock(), &mut io::sink())?;
    let (mut pause, mut told) = (PAUSE, String::new());
    while let Some(lock) = StateLock::take_as_guard(&config.state_dir)? {
        let runtime = tokio::runtime::Runtime::new()?;
        let whole = runtime
            .block_on(give_back(config.clone()))
            .unwrap_or_else(|error| {
                let why = chain(&error);
                if why != told {
                    tracing::error!(
                        error = why,
                        "the guard can do nothing yet; it tries again until a daemon is started"
                    );
                    told = why;
                }
                false
            });
        // With all that it was doing in the background, before anybody else may.
        drop(runtime);
        drop(lock);
        if whole {
            break;
        }
        // A daemon that is started now is faster.
        std::thread::sleep(pause);
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
    Ok(())
}

/// Whether nothing is left to be given back.
async fn give_back(config: Config) -> Result<bool, GuardError> {
    if !has_source(&config.state_dir, &config.run_dir).await? {
        return Ok(true);
    }
    tracing::warn!("transhipd has ended in the middle of a migration; its guard looks after the container");
    let (daemon, _) = Daemon::open(config).await?;
    Ok(Conductor::new(daemon).give_back().await?)
}

/// Whether a migration away from here has no end: seldom so, and everything else takes longer to look at.
async fn has_source(state_dir: &Path, run_dir: &Path) -> Result<bool, RegistryError> {
    let registry = Registry::open(&Paths::new(state_dir, run_dir).registry())?;
    let unfinished = registry.migrations().unfinished().await?;
    Ok(unfinished
        .iter()
        .any(|record| record.migration.role() == MigrationRole::Source))
}
