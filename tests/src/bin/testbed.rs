//! `testbed`: several hosts on one machine, to try Tranship on.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use tranship_tests::testbed::layout::{DEFAULT_DIR, Layout};
use tranship_tests::testbed::{Host, Options, PoolKind, Testbed, daemon, holder};

/// Stands in for several machines on one: hosts as namespaces, joined by a bridge.
#[derive(Parser)]
#[command(
    version,
    after_help = "The underlay is 10.77.0.0/24: host a is .1, b .2, c .3, the client .9."
)]
struct Arguments {
    /// The testbed's directory.
    #[arg(long, global = true, env = "TB_DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Bring up hosts, a client and the link between them, and the daemons.
    Up {
        /// Number of hosts: a, b, c...
        #[arg(long, default_value_t = 2)]
        hosts: u8,
        /// Rate of each link, such as 1gbit.
        #[arg(long)]
        link: Option<String>,
        /// File system below the storage drivers.
        #[arg(long, value_enum, default_value_t)]
        pool: PoolKind,
        /// Take down what an earlier run left.
        #[arg(long)]
        force: bool,
        /// Do not start the daemons.
        #[arg(long)]
        no_daemons: bool,
    },
    /// Print export lines for a shell: TB_DIR, TB_A, TB_B...
    Env,
    /// Run a command inside a host's namespaces.
    Exec {
        /// a, b, c... or client.
        host: String,
        /// The command, after `--`.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Cut or shape a link: up, down, or rate 8mbit.
    Link {
        /// a, b, c... or client.
        host: String,
        #[command(subcommand)]
        change: LinkChange,
    },
    /// Start or end a daemon alone; containers stay.
    Daemon {
        /// a, b, c...
        host: String,
        /// What to do.
        #[arg(value_enum)]
        action: DaemonAction,
    },
    /// Remove every namespace, mount, cgroup, process and file of the testbed.
    Down,
    /// Starts a holder.
    #[command(name = holder::UNSHARE, hide = true)]
    Unshare { name: String, held_dir: PathBuf },
    /// Is a host.
    #[command(name = holder::HOLD, hide = true)]
    Hold { name: String, held_dir: PathBuf },
}

#[derive(Subcommand)]
enum LinkChange {
    /// Plug the cable in.
    Up,
    /// Pull the cable.
    Down,
    /// Limit it in both directions.
    Rate {
        /// Such as 8mbit, or unlimited.
        rate: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum DaemonAction {
    /// Start it and wait until it answers.
    Start,
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testbed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let dir = arguments.dir;
    match arguments.verb {
        Verb::Up {
            hosts,
            link,
            pool,
            force,
            no_daemons,
        } => up(
            &Options {
                hosts,
                link,
                pool,
                dir,
                force,
                keep_failed: true,
            },
            !no_daemons,
        ),
        Verb::Env => print_environment(&dir),
        Verb::Exec { host, command } => exec(Testbed::open(&dir)?.host(&host)?, &command),
        Verb::Link { host, change } => {
            let bed = Testbed::open(&dir)?;
            match change {
                LinkChange::Up => bed.set_link(&host, true),
                LinkChange::Down => bed.set_link(&host, false),
                LinkChange::Rate { rate } => bed.set_rate(&host, &rate),
            }
        }
        Verb::Daemon { host, action } => control_daemon(&dir, &host, action),
        Verb::Down => Testbed::take_down(&Layout::new(&dir)?),
        Verb::Unshare { name, held_dir } => holder::unshare_main(&name, &held_dir),
        Verb::Hold { name, .. } => holder::hold_main(&name),
    }
}

fn up(options: &Options, daemons: bool) -> Result<()> {
    let bed = if daemons {
        Testbed::up(options)?
    } else {
        Testbed::up_without_daemons(options)?
    };
    let names: Vec<_> = bed.hosts().iter().map(Host::name).collect();
    eprintln!(
        "testbed: hosts {} and client are up; `eval \"$(testbed env)\"` for their sockets",
        names.join(" ")
    );
    bed.keep();
    Ok(())
}

fn print_environment(dir: &Path) -> Result<()> {
    let bed = Testbed::open(dir)?;
    println!("export TB_DIR={}", quoted(dir));
    for host in bed.hosts() {
        let name = host.name();
        println!(
            "export TB_{}=unix://{}",
            name.to_uppercase(),
            quoted(&bed.layout().socket(name))
        );
    }
    Ok(())
}

/// A path as a shell takes it for one word.
fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "/._-".contains(letter);
    if text.chars().all(plain) {
        text.into_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

/// Becomes the command, so that its exit status and signals are this program's.
fn exec(host: &Host, command: &[String]) -> Result<()> {
    let [program, arguments @ ..] = command else {
        bail!("give a command after `--`")
    };
    let error = host.command(program, arguments).exec();
    bail!("cannot start nsenter: {error}")
}

fn control_daemon(dir: &Path, host: &str, action: DaemonAction) -> Result<()> {
    let bed = Testbed::open(dir)?;
    let host = bed.host(host)?;
    if host.name() == bed.client().name() {
        bail!("the client has no daemon");
    }
    match action {
        DaemonAction::Start => daemon::start(host),
        DaemonAction::Stop => daemon::stop(host),
        DaemonAction::Kill => daemon::kill(host),
    }
}
