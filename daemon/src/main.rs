//! `transhipd`: the daemon of one host.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::fs::Mode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tranship_daemon::api::{self, Api};
use tranship_daemon::config::{Config, DEFAULT_PATH};
use tranship_daemon::daemon::Daemon;
use tranship_daemon::lock::StateLock;
use tranship_daemon::migration::Conductor;
use tranship_daemon::notify::{self, Stage};
use tranship_daemon::{heap, observe, serve};

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
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Say whether a configuration can be used
    Check {
        /// The file; /etc/tranship/transhipd.toml without one
        path: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    heap::limit();
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(Command::Config(ConfigCommand::Check { path })) => check(path.or(arguments.config)),
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
    let runtime = tokio::runtime::Runtime::new().context("cannot start the threads of the daemon")?;
    let lived = runtime.block_on(live(config));
    runtime.shutdown_timeout(CLOSING_DEADLINE);
    lived
}

/// From the lock to the last call. Containers outlive it.
async fn live(config: Config) -> anyhow::Result<()> {
    let shutdown = until_told()?;
    let _lock = StateLock::take(&config.state_dir)?;
    let socket = config.socket.clone();
    let connections = api::listen(&config).await?;
    let (daemon, _) = Daemon::open(config).await?;
    let conductor = Conductor::new(daemon.clone());
    conductor.recover().await?;
    notify::tell(Stage::Ready);
    tracing::info!(host = daemon.host_name(), socket = %socket.display(), "transhipd is ready");
    let api = Api::new(daemon.clone(), conductor.clone());
    let served = serve::serve(api, connections, &daemon.peers, Arc::new(conductor), shutdown).await;
    tracing::info!("transhipd has stopped; containers go on");
    Ok(served?)
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
