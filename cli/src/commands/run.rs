//! `tranship run`.

use std::path::PathBuf;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tranship_proto::v1::{
    ContainerSpec, KillContainerRequest, LogsRequest, Mount, NameRequest, RemoveContainerRequest,
    RunContainerRequest, UsernsMode,
};

use super::root::Session;
use super::{logs, spec};
use crate::connect::Client;
use crate::failure::Failure;
use crate::units;

/// Arguments, with Docker's names.
#[derive(clap::Args)]
pub struct Run {
    /// Print the container's id and leave it running; otherwise its output is shown until it ends.
    #[arg(short, long)]
    detach: bool,
    /// Remove the container when it has ended.
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    /// A random one without it.
    #[arg(long, default_value = "")]
    name: String,
    /// The container's id without it.
    #[arg(long, default_value = "")]
    hostname: String,
    /// NAME=VALUE, or NAME for the value it has here.
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// A file of variables, one a line.
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// VOLUME:/path[:ro] or /host/path:/path[:ro].
    #[arg(short, long = "volume", value_name = "MOUNT", value_parser = spec::volume)]
    volumes: Vec<Mount>,
    /// type=volume|bind|tmpfs,source=...,target=...[,readonly][,tmpfs-size=64m].
    #[arg(long = "mount", value_name = "MOUNT", value_parser = spec::mount)]
    mounts: Vec<Mount>,
    /// /path[:size=64m,ro].
    #[arg(long, value_name = "MOUNT", value_parser = spec::tmpfs)]
    tmpfs: Vec<Mount>,
    /// A network of the host, `none` or `host`; the daemon's default without it.
    #[arg(long, default_value = "")]
    network: String,
    /// IPv4 address; the network chooses without it.
    #[arg(long, default_value = "", value_name = "ADDRESS")]
    ip: String,
    /// MAC address; the network chooses without it.
    #[arg(
        long,
        visible_alias = "mac-address",
        default_value = "",
        value_name = "ADDRESS"
    )]
    mac: String,
    /// Most memory it may use, such as 512m.
    #[arg(short, long, value_name = "SIZE", value_parser = units::size)]
    memory: Option<u64>,
    /// CPUs it may use, such as 1.5.
    #[arg(long, value_name = "NUMBER", value_parser = units::nano_cpus)]
    cpus: Option<u64>,
    /// USER[:GROUP], names or ids; the image's without it.
    #[arg(short, long, default_value = "")]
    user: String,
    /// The image's without it.
    #[arg(short, long, default_value = "", value_name = "PATH")]
    workdir: String,
    /// Replaces the image's; empty takes it away.
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Mount the root file system read-only.
    #[arg(long)]
    read_only: bool,
    /// Add a capability.
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// Take a capability away, or ALL.
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// KEY=VALUE.
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = spec::label)]
    labels: Vec<(String, String)>,
    /// How ids in the container relate to those of the host.
    #[arg(long, value_enum, default_value_t)]
    userns: Userns,
    /// What `stop` sends first; the image's, or TERM, without it.
    #[arg(long, default_value = "", value_name = "SIGNAL")]
    stop_signal: String,
    /// Until `stop` sends KILL.
    #[arg(long, value_name = "SECONDS", value_parser = units::duration)]
    stop_timeout: Option<Duration>,
    /// Run a small init as the container's first process.
    #[arg(long)]
    init: bool,
    /// Where its writable layer is; the daemon's default without it.
    #[arg(long, default_value = "", value_name = "DRIVER")]
    storage_driver: String,
    /// The image and, instead of its own, a command: everything behind the image belongs to it.
    #[arg(required = true, trailing_var_arg = true, value_names = ["IMAGE", "COMMAND"])]
    image_and_command: Vec<String>,
}

/// What `--userns` can be.
#[derive(Clone, Copy, Default, clap::ValueEnum)]
enum Userns {
    /// A user namespace in which every id is itself.
    #[default]
    Keep,
    /// None: root in the container is root.
    Host,
}

impl Run {
    pub async fn run(self, session: &Session) -> Result<u8, Failure> {
        let (detach, rm) = (self.detach, self.rm);
        let spec = self
            .into_spec()
            .map_err(|failure| failure.with_code(crate::failure::DAEMON_FAILED))?;
        let started = start(session, spec).await;
        let (mut client, id) = started.map_err(|failure| {
            let code = failure.docker_code();
            failure.with_code(code)
        })?;
        if detach {
            session.output.line(&id)?;
            return Ok(0);
        }
        let code = attend(&client, &id).await?;
        if rm {
            let request = RemoveContainerRequest {
                name: id,
                force: false,
                volumes: true,
            };
            client.remove_container(request).await?;
        }
        Ok(code)
    }

    fn into_spec(self) -> Result<ContainerSpec, Failure> {
        let mut words = self.image_and_command.into_iter();
        let image = words.next().unwrap_or_default();
        let userns = match self.userns {
            Userns::Keep => UsernsMode::Keep,
            Userns::Host => UsernsMode::Host,
        };
        Ok(ContainerSpec {
            name: self.name,
            image,
            entrypoint_set: self.entrypoint.is_some(),
            entrypoint: self
                .entrypoint
                .into_iter()
                .filter(|program| !program.is_empty())
                .collect(),
            command: words.collect(),
            env: spec::environment(&self.env_file, &self.env)?,
            mounts: [self.volumes, self.mounts, self.tmpfs].concat(),
            network: self.network,
            ip: self.ip,
            mac: self.mac,
            memory_bytes: self.memory.unwrap_or(0),
            nano_cpus: self.cpus.unwrap_or(0),
            user: self.user,
            workdir: self.workdir,
            hostname: self.hostname,
            labels: self.labels.into_iter().collect(),
            read_only: self.read_only,
            storage_driver: self.storage_driver,
            userns: userns.into(),
            stop_signal: self.stop_signal,
            stop_timeout_s: self
                .stop_timeout
                .map_or(0, |time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX)),
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            init: self.init,
        })
    }
}

async fn start(session: &Session, spec: ContainerSpec) -> Result<(Client, String), Failure> {
    let mut client = session.client().await?;
    let container = client
        .run_container(RunContainerRequest { spec: Some(spec) })
        .await?
        .into_inner();
    Ok((client, container.id))
}

/// Shows the container's output until it ends, hands signals on to it, and answers its exit code.
async fn attend(client: &Client, id: &str) -> Result<u8, Failure> {
    let follow = async {
        let request = LogsRequest {
            name: id.to_owned(),
            follow: true,
            tail: -1,
        };
        logs::copy(client.clone().logs(request).await?.into_inner()).await
    };
    let hand_on = hand_signals_on(client.clone(), id);
    let mut waiter = client.clone();
    let end = async {
        follow.await?;
        Ok(waiter
            .wait_container(NameRequest { name: id.to_owned() })
            .await?
            .into_inner()
            .exit_code)
    };
    let code: Result<i32, Failure> = tokio::select! {
        code = end => code,
        failure = hand_on => Err(failure),
    };
    Ok(u8::try_from(code?).unwrap_or(u8::MAX))
}

/// For ever; the answer is why it cannot.
async fn hand_signals_on(mut client: Client, id: &str) -> Failure {
    let listen = |kind| signal(kind).map_err(Failure::local("cannot listen for signals"));
    let (mut interrupt, mut terminate): (Signal, Signal) =
        match (listen(SignalKind::interrupt()), listen(SignalKind::terminate())) {
            (Ok(interrupt), Ok(terminate)) => (interrupt, terminate),
            (Err(failure), _) | (_, Err(failure)) => return failure,
        };
    loop {
        let signal = tokio::select! {
            _ = interrupt.recv() => "INT",
            _ = terminate.recv() => "TERM",
        };
        let request = KillContainerRequest {
            name: id.to_owned(),
            signal: signal.to_owned(),
        };
        if let Err(status) = client.kill_container(request).await {
            // The container may have ended just now; then the loop ends with it.
            eprintln!("tranship: cannot hand SIG{signal} on: {}", status.message());
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        run: Run,
    }

    fn parse(line: &str) -> ContainerSpec {
        let words = std::iter::once("run").chain(line.split(' '));
        Line::try_parse_from(words)
            .unwrap_or_else(|error| panic!("{line}: {error}"))
            .run
            .into_spec()
            .unwrap()
    }

    #[test]
    fn everything_behind_the_image_is_the_command() {
        let spec = parse("-d --name x img sh -c -d --name");
        assert_eq!(spec.image, "img");
        assert_eq!(spec.command, ["sh", "-c", "-d", "--name"]);
        assert_eq!(spec.name, "x");
    }

    #[test]
    fn an_empty_entrypoint_takes_the_images_away() {
        let spec = parse("--entrypoint= img");
        assert!(spec.entrypoint_set && spec.entrypoint.is_empty());
        assert!(!parse("img").entrypoint_set);
    }

    #[test]
    fn limits_are_in_bytes_and_billionths() {
        let spec = parse("-m 512m --cpus 0.5 --stop-timeout 3 img");
        assert_eq!(
            (spec.memory_bytes, spec.nano_cpus, spec.stop_timeout_s),
            (512 << 20, 500_000_000, 3)
        );
    }

    #[test]
    fn an_unknown_flag_before_the_image_is_refused() {
        assert!(Line::try_parse_from(["run", "--frob", "img"]).is_err());
        assert!(Line::try_parse_from(["run", "-d"]).is_err());
    }
}
