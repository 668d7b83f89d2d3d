//! What `transhipd` does: reads its command line, and is a daemon until it is told to stop.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::fs::Mode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::api::{self, Api};
use crate::config::{Config, DEFAULT_PATH};
use crate::daemon::Daemon;
use crate::lock::StateLock;
use crate::migration::Conductor;
use crate::notify::{self, Stage};
use crate::registry::Registry;
use crate::{guard, heap, observe, serve};

/// For work in the background when the daemon ends; what is on disk does not need it.
const CLOSING_DEADLINE: Duration = Duration::from_secs(2);

/// Runs containers and moves them between hosts.
#[derive(Parser)]
#[command(name = "transhipd", version)]
struct Arguments {
    /// Configuration to use instead of /etc/tranship/transhipd.toml
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Look at the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Wait for the end of the daemon at the other end of standard input, and let go what it held still
    #[command(name = guard::COMMAND, hide = true)]
    Guard,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether a configuration can be used
    Check {
        /// The file; /etc/tranship/transhipd.toml without one
        path: Option<PathBuf>,
    },
}

/// The whole program.
#[must_use]
pub fn main() -> ExitCode {
    heap::limit();
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::Config(ConfigCommand::Check { path })) => check(path.or(arguments.config)),
        Some(Command::Guard) => stand_guard(arguments.config),
        None => run(arguments.config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("transhipd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: Option<PathBuf>) -> anyhow::Result<()> {
    Config::load(path.as_deref())?;
    println!("{}: ok", path.unwrap_or(DEFAULT_PATH.into()).display());
    Ok(())
}

fn run(path: Option<PathBuf>) -> anyhow::Result<()> {
    let config = Config::load(path.as_deref())?;
    observe::init(&config.log, config.log_format)?;
    // Whatever the shell that starts the daemon has: containers see the directories made for them.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let guard = guard_arguments(path)?;
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads of the daemon")?;
    let lived = runtime.block_on(live(config, guard));
    runtime.shutdown_timeout(CLOSING_DEADLINE);
    lived
}

fn stand_guard(path: Option<PathBuf>) -> anyhow::Result<()> {
    let config = Config::load(path.as_deref())?;
    observe::init(&config.log, config.log_format)?;
    Ok(guard::stand(config)?)
}

/// What leads the guard to the same configuration, from any directory.
fn guard_arguments(path: Option<PathBuf>) -> anyhow::Result<Vec<OsString>> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let path = std::path::absolute(path).context("cannot find the working directory")?;
    Ok(vec!["--config".into(), path.into()])
}

/// From the lock to the last call. Containers outlive it.
async fn live(config: Config, guard: Vec<OsString>) -> anyhow::Result<()> {
    let shutdown = until_told()?;
    // Until the process is gone, and not only until this returns: what runs in the background may be writing the journal.
    std::mem::forget(StateLock::take(&config.state_dir)?);
    tokio::spawn(guard::keep(guard));
    let socket = config.socket.clone();
    let connections = api::listen(&config).await?;
    let (daemon, _) = Daemon::open(config).await?;
    tokio::spawn(end_when_broken(daemon.registry.clone()));
    let conductor = Conductor::new(daemon.clone());
    conductor.recover().await?;
    notify::tell(Stage::Ready);
    tracing::info!(host = daemon.host_name(), socket = %socket.display(), "transhipd is ready");
    let api = Api::new(daemon.clone(), conductor.clone());
    let served = serve::serve(api, connections, &daemon.peers, Arc::new(conductor), shutdown).await;
    tracing::info!("transhipd has stopped; containers go on");
    Ok(served?)
}

/// Ends the process where it stands as soon as nobody knows any more what the registry holds: whoever opens it next finds out, which is the
/// guard where no other daemon is started.
async fn end_when_broken(registry: Registry) {
    registry.until_broken().await;
    tracing::error!(path = %registry.path().display(), "the registry could not be written; transhipd ends, and what is stored is read anew");
    std::process::exit(1);
}

/// Cancelled by the first signal to stop. A second one ends the process where it stands, which is safe at any time.
fn until_told() -> anyhow::Result<CancellationToken> {
    let mut signals = [
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
    ];
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    tokio::spawn(async move {
        any(&mut signals).await;
        tracing::info!("told to stop");
        notify::tell(Stage::Stopping);
        told.cancel();
        any(&mut signals).await;
        std::process::exit(1);
    });
    Ok(shutdown)
}

async fn any([first, second, third]: &mut [Signal; 3]) {
    tokio::select! {
        _ = first.recv() => {}
        _ = second.recv() => {}
        _ = third.recv() => {}
    }
}
