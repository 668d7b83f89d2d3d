//! `transhipd`: the daemon of one host.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tranship_daemon::config::{Config, DEFAULT_PATH};
use tranship_daemon::observe;

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
    Ok(())
}
