//! The command line as a whole: global flags and the list of verbs.

use clap::{Parser, Subcommand};

use super::{
    completion, exec, host, image, info, inspect, kill, logs, migrate, network, pause, ps, rm, run, stop,
    version, volume, wait,
};
use crate::connect::{self, Address, Client, DEFAULT_HOST};
use crate::failure::Failure;
use crate::output::{Format, Output};

/// Runs containers, and moves them between hosts while they run.
#[derive(Parser)]
#[command(
    name = "tranship",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Args)]
struct Global {
    /// The daemon: unix:///path or tcp://host:port.
    // Not called `host`: verbs have an argument of that name.
    #[arg(
        long = "host",
        global = true,
        env = "TRANSHIP_HOST",
        default_value = DEFAULT_HOST,
        value_name = "ADDRESS"
    )]
    address: Address,
    /// How lists and records are printed; json is one object per line, or an array for `inspect`.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    format: Format,
    /// Print names or ids only.
    #[arg(short, long, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Verb {
    /// Create a container and start it.
    Run(Box<run::Run>),
    /// List containers.
    #[command(visible_alias = "ls")]
    Ps(ps::Ps),
    /// Show everything about containers, as JSON.
    Inspect(inspect::Inspect),
    /// Show what a container has written.
    Logs(logs::Logs),
    /// Run a command in a running container.
    Exec(exec::Exec),
    /// Stop containers: their stop signal, then SIGKILL.
    Stop(stop::Stop),
    /// Send a signal to containers.
    Kill(kill::Kill),
    /// Freeze containers.
    Pause(pause::Pause),
    /// Let frozen containers go on.
    Unpause(pause::Unpause),
    /// Wait for containers to end, and print their exit codes.
    Wait(wait::Wait),
    /// Remove containers.
    Rm(rm::Rm),
    /// Images.
    #[command(subcommand)]
    Image(image::Image),
    /// Volumes: named storage that outlives containers.
    #[command(subcommand)]
    Volume(volume::Volume),
    /// Networks.
    #[command(subcommand)]
    Network(network::Network),
    /// The hosts of the cluster.
    #[command(subcommand)]
    Host(host::Host),
    /// Move a running container to another host; its clients stay connected.
    Migrate(migrate::Migrate),
    /// Show the daemon and its machine.
    Info(info::Info),
    /// Show the versions of this program and of the daemon.
    Version(version::Version),
    /// Print a completion script for a shell.
    Completion(completion::Completion),
}

/// What every verb gets.
pub struct Session {
    address: Address,
    /// Where to print.
    pub output: Output,
}

impl Session {
    /// A connection to the daemon.
    ///
    /// # Errors
    /// No daemon answers.
    pub async fn client(&self) -> Result<Client, Failure> {
        connect::connect(&self.address).await
    }
}

/// Does what the command line says and answers the exit code.
///
/// # Errors
/// What the verb says.
pub async fn dispatch(arguments: Arguments) -> Result<u8, Failure> {
    let Global {
        address,
        format,
        quiet,
    } = arguments.global;
    let session = Session {
        address,
        output: Output { format, quiet },
    };
    match arguments.verb {
        Verb::Run(verb) => return verb.run(&session).await,
        Verb::Exec(verb) => return verb.run(&session).await,
        Verb::Migrate(verb) => return verb.run(&session).await,
        Verb::Ps(verb) => verb.run(&session).await,
        Verb::Inspect(verb) => verb.run(&session).await,
        Verb::Logs(verb) => verb.run(&session).await,
        Verb::Stop(verb) => verb.run(&session).await,
        Verb::Kill(verb) => verb.run(&session).await,
        Verb::Pause(verb) => verb.run(&session).await,
        Verb::Unpause(verb) => verb.run(&session).await,
        Verb::Wait(verb) => verb.run(&session).await,
        Verb::Rm(verb) => verb.run(&session).await,
        Verb::Image(verb) => verb.run(&session).await,
        Verb::Volume(verb) => verb.run(&session).await,
        Verb::Network(verb) => verb.run(&session).await,
        Verb::Host(verb) => verb.run(&session).await,
        Verb::Info(verb) => verb.run(&session).await,
        Verb::Version(verb) => verb.run(&session).await,
        Verb::Completion(verb) => verb.run(&session),
    }?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_words_of_the_contract_are_understood() {
        for line in [
            "run -d --name db -e A=1 -v data:/data:ro --tmpfs /t:size=1m --network l2 --ip 10.0.0.1 -m 1g --cpus 1.5 img",
            "run --user 1:2 --workdir / --hostname h --label a=b --read-only --storage-driver overlay img sh -c -d",
            "ps -a -q",
            "inspect x",
            "logs -f --tail 5 x",
            "exec -it -e A=b -u 1 -w / x sh -c -i",
            "stop -t 5 x y",
            "kill -s HUP x",
            "pause x",
            "unpause x",
            "wait x",
            "rm -f -v x",
            "image import x.tar name:tag",
            "image ls",
            "image rm x",
            "volume create x",
            "volume ls",
            "volume inspect x",
            "volume rm x",
            "network ls",
            "host init",
            "host token",
            "host join TOKEN",
            "host ls",
            "host rm x",
            "migrate db b --check",
            "migrate db b --max-downtime 100ms --timeout 1h --on-timeout force --max-bandwidth 10m --streams 2 --detach",
            "migrate ls",
            "migrate status x",
            "migrate watch x",
            "migrate cancel x",
            "--format json --host tcp://h:1 -q info",
            "version",
            "completion bash",
        ] {
            let words = std::iter::once("tranship").chain(line.split(' '));
            assert!(
                Arguments::try_parse_from(words).is_ok(),
                "{line:?} was not understood"
            );
        }
    }

    #[test]
    fn migrate_without_a_host_is_a_usage_error() {
        let words = ["tranship", "migrate", "db"];
        assert_eq!(
            Arguments::try_parse_from(words)
                .err()
                .map(|error| error.exit_code()),
            Some(2)
        );
    }
}
