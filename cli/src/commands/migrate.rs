//! `tranship migrate`, and what becomes of migrations.

use std::io;
use std::time::Duration;

use tranship_proto::v1::{
    ListMigrationsRequest, Migration, MigrationOptions, MigrationOutcome, NameRequest,
    ResolveMigrationRequest, StartMigrationRequest,
};

use super::follow::{exit_code, explain, follow, report_check, tell};
use super::retry::Retries;
use super::root::Session;
use super::several;
use super::timeline::{self, Detail};
use crate::failure::Failure;
use crate::output::{Columns, Format};
use crate::{json, terminal, units};

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed before anything changed; 2 usage; 3 no such container or migration;
4 refused by the preflight, also for an unknown host; 5 failed and rolled back: the container
runs at the source; 6 outcome unknown: see `migrate status`; 7 cancelled; 8 timed out and rolled
back.

What fails because a connection is lost, or the other daemon starts again, before the container was
touched, is tried again: see --retries. Each try is a migration of its own, with an id of its own.

A container whose name is that of a subcommand is named by its id.";

const RESOLVE: &str = "\
For a migration in doubt: one whose outcome is unknown at its source, or whose destination waits for a
source that does not answer. In nearly every case that resolves itself within a second of both hosts
seeing each other again; this is for when they never will. It says what will happen, and asks.

What is decided is on record, and the other host obeys when it comes back.

Exit codes: 0 done; 1 failed; 2 usage, or not confirmed; 3 no such migration; 4 it is not in doubt, or
cannot be decided so.";

/// Arguments.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true, after_help = EXIT_CODES)]
pub struct Migrate {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    start: Start,
}

#[derive(clap::Args)]
struct Start {
    /// Name or id of a running container of this host.
    #[arg(required = true)]
    container: Option<String>,
    /// Where to: a host of the cluster.
    #[arg(required = true)]
    host: Option<String>,
    /// Only tell whether it could be moved, and what is in the way.
    #[arg(long)]
    check: bool,
    /// Longest blackout, such as 100ms.
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    max_downtime: Option<Duration>,
    /// Longest time before the container is frozen, such as 1h.
    #[arg(long, value_name = "DURATION", value_parser = units::duration)]
    timeout: Option<Duration>,
    /// What to do then: give up, or freeze whatever the blackout.
    #[arg(long, value_name = "ACTION", value_parser = ["cancel", "force"], default_value = "cancel")]
    on_timeout: String,
    /// Most bytes a second, such as 100m.
    #[arg(long, value_name = "SIZE", value_parser = units::size)]
    max_bandwidth: Option<u64>,
    /// Number of data connections.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=64))]
    streams: Option<u32>,
    /// How often to try again when the connection is lost before the container was touched.
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=100))]
    retries: u32,
    /// Print the migration's id and leave it to itself; nothing is tried again.
    #[arg(long, conflicts_with = "check")]
    detach: bool,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// List migrations, running and past.
    Ls,
    /// Show everything about migrations.
    Status {
        /// Ids.
        #[arg(required = true, value_name = "MIGRATION")]
        ids: Vec<String>,
    },
    /// Follow a migration to its end; with `--format json` each change of its record is a line.
    Watch {
        /// Its id.
        #[arg(value_name = "MIGRATION")]
        id: String,
    },
    /// Decide whose a container is when a host is gone for ever and the other one cannot know.
    #[command(after_help = RESOLVE)]
    Resolve {
        /// The migration's id.
        #[arg(value_name = "MIGRATION")]
        id: String,
        /// The host that the container belongs to from now on: the migration's source or its destination.
        #[arg(long, value_name = "HOST")]
        owner: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
    /// Cancel migrations: the containers stay where they are.
    Cancel {
        /// Ids.
        #[arg(required = true, value_name = "MIGRATION")]
        ids: Vec<String>,
    },
}

impl Migrate {
    pub async fn run(self, session: &Session) -> Result<u8, Failure> {
        let coded = |failure: Failure| match failure {
            coded @ (Failure::WithCode { .. } | Failure::Some { .. }) => coded,
            failure => {
                let code = failure.migrate_code();
                failure.with_code(code)
            }
        };
        match self.verb {
            None => self.start.run(session).await.map_err(coded),
            Some(Verb::Watch { id }) => {
                let client = session.client().await?;
                let every_change = session.output.format == Format::Json;
                let migration = follow(session.output, client, id, every_change)
                    .await
                    .map_err(coded)?;
                if every_change {
                    explain(&migration);
                    return Ok(exit_code(migration.outcome()));
                }
                tell(session.output, &migration)
            }
            Some(Verb::Ls) => ls(session).await.map(|()| 0),
            Some(Verb::Status { ids }) => status(session, &ids).await.map_err(coded).map(|()| 0),
            Some(Verb::Resolve { id, owner, yes }) => {
                resolve(session, id, owner, yes).await.map_err(coded).map(|()| 0)
            }
            Some(Verb::Cancel { ids }) => {
                let client = session.client().await?;
                let cancelled = several::each(session.output, &ids, async |id| {
                    client
                        .clone()
                        .cancel_migration(NameRequest { name: id.to_owned() })
                        .await?;
                    Ok(id.to_owned())
                });
                cancelled.await.map(|()| 0)
            }
        }
    }
}

impl Start {
    async fn run(self, session: &Session) -> Result<u8, Failure> {
        let (detach, check, mut retries) = (self.detach, self.check, Retries::new(self.retries));
        let mut client = session.client().await?;
        let output = session.output;
        let request = self.into_request();
        loop {
            let mut migration = client.start_migration(request.clone()).await?.into_inner();
            if check {
                return report_check(output, &migration);
            }
            if migration.outcome() == MigrationOutcome::Unspecified {
                if detach {
                    output.line(&migration.id)?;
                    return Ok(0);
                }
                migration = follow(output, client.clone(), migration.id, false).await?;
            }
            match retries.next(&migration) {
                Some(pause) => retries.wait(&migration, pause).await?,
                None => return tell(output, &migration),
            }
        }
    }

    fn into_request(self) -> StartMigrationRequest {
        let milliseconds = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1);
        let options = MigrationOptions {
            max_downtime_ms: self.max_downtime.map_or(0, milliseconds),
            timeout_s: self.timeout.map_or(0, seconds),
            on_timeout: self.on_timeout,
            max_bandwidth_bytes: self.max_bandwidth.unwrap_or(0),
            streams: self.streams.unwrap_or(0),
        };
        StartMigrationRequest {
            container: self.container.unwrap_or_default(),
            host: self.host.unwrap_or_default(),
            check: self.check,
            options: Some(options),
        }
    }
}

/// Says what will happen, and does it when that is wanted.
async fn resolve(session: &Session, migration: String, owner: String, yes: bool) -> Result<(), Failure> {
    let mut client = session.client().await?;
    let request = |confirmed| ResolveMigrationRequest {
        migration: migration.clone(),
        owner: owner.clone(),
        confirmed,
    };
    let planned = client.resolve_migration(request(false)).await?.into_inner();
    for sentence in &planned.consequences {
        eprintln!("- {sentence}");
    }
    let container = planned.migration.unwrap_or_default().container_name;
    if !yes && !confirm(&container)? {
        let advice = "nothing was changed: give --yes, or type the container's name when asked";
        return Err(Failure::Usage(advice.to_owned()));
    }
    let resolved = client.resolve_migration(request(true)).await?.into_inner();
    tell(session.output, &resolved.migration.unwrap_or_default()).map(drop)
}

/// Whether the person at the terminal wants it; nobody there does not.
fn confirm(container: &str) -> Result<bool, Failure> {
    if !terminal::is_terminal() {
        return Ok(false);
    }
    eprint!("Type the name of the container, {container}, to go on: ");
    let mut typed = String::new();
    io::stdin()
        .read_line(&mut typed)
        .map_err(Failure::local("cannot read the terminal"))?;
    Ok(typed.trim() == container)
}

async fn ls(session: &Session) -> Result<(), Failure> {
    let reply = session
        .client()
        .await?
        .list_migrations(ListMigrationsRequest {})
        .await?;
    let columns = Columns {
        headings: &[
            "MIGRATION",
            "CONTAINER",
            "FROM",
            "TO",
            "STARTED",
            "PHASE",
            "OUTCOME",
            "BLACKOUT",
            "TOTAL",
        ],
        cells: &|migration: &Migration| {
            let time = |us: u64| {
                if us == 0 {
                    "-".to_owned()
                } else {
                    units::show_us(us)
                }
            };
            vec![
                migration.id.clone(),
                migration.container_name.clone(),
                migration.source.clone(),
                migration.destination.clone(),
                units::show_age(migration.started_ms),
                json::phase(migration.phase),
                json::outcome(migration.outcome).replace('_', " "),
                time(migration.blackout_us),
                time(migration.total_us),
            ]
        },
        key: &|migration: &Migration| migration.id.clone(),
    };
    session.output.list(&reply.into_inner().migrations, &columns)
}

async fn status(session: &Session, ids: &[String]) -> Result<(), Failure> {
    let client = session.client().await?;
    let get = async |id: &str| -> Result<Migration, Failure> {
        Ok(client
            .clone()
            .get_migration(NameRequest { name: id.to_owned() })
            .await?
            .into_inner())
    };
    if let [id] = ids {
        let migration = get(id).await?;
        return match session.output.format {
            Format::Json => session.output.record(&migration),
            Format::Table => {
                session.output.line(&timeline::show(&migration, Detail::Stages))?;
                if migration.outcome() != MigrationOutcome::Unspecified {
                    explain(&migration);
                }
                Ok(())
            }
        };
    }
    several::each(session.output, ids, async |id| {
        let migration = get(id).await?;
        match session.output.format {
            Format::Json => Ok(json::value(&migration)?.to_string()),
            Format::Table => Ok(timeline::show(&migration, Detail::Stages)),
        }
    })
    .await
}
