//! Starts migrations from this host, takes those that come to it, and follows both to their ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tranship_checkpoint::criu::{DumpRequest, Memory};
use tranship_checkpoint::process_tree;
use tranship_migrate::control::Conversation;
use tranship_migrate::deadlines::RESUME;
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::SourceOutcome;
use tranship_migrate::source::{Plan, Source, SourceEnd};
use tranship_proto::ids::{ContainerId, MigrationId, Name};
use tranship_proto::v1::{
    Migration, MigrationOptions, MigrationOutcome, MigrationRole, Phase, StartMigrationRequest,
};

use super::board::Board;
use super::control::{GrpcControl, MESSAGES_IN_FLIGHT, Outbox};
use super::doubts::Doubts;
use super::faults;
use super::journal::JournalError;
use super::outcome;
use super::plan::{OptionError, plan};
use super::preflight::Checked;
use super::source_host::LocalSource;
use super::usage::private_bytes;
use crate::arbiter::{Arbiter, EtcdArbiter, Token};
use crate::clock::now_ms;
use crate::containers::{Anatomy, ContainerError, Containers, Verb};
use crate::daemon::Daemon;
use crate::etcd::Etcd;
use crate::network::Networks;
use crate::peers::Peers;
use crate::registry::{MigrationRecord, Registry, RegistryError};
use crate::runtime::{Found, Runtime};
use crate::storage::Storage;

/// Between two looks at a container that is about to come to life.
const STARTING: Duration = Duration::from_millis(50);

/// Why a migration cannot be started, shown or changed. One that was started says everything else in its record.
#[derive(Debug, thiserror::Error)]
pub enum ConductorError {
    /// The container is not here, does not run, or is busy.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The registry.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// What was decided before.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// No such migration.
    #[error("there is no migration {0:?} on this host: see `tranship migrate ls`")]
    NotFound(String),
    /// Nobody is in doubt about it.
    #[error("migration {0} is not in doubt: nothing was changed; see `tranship migrate status {0}`")]
    NotInDoubt(String),
    /// A host that has nothing to do with it.
    #[error(
        "migration {id} is between {source_host} and {destination}: the container can be no other host's"
    )]
    NoSuchOwner {
        /// Which.
        id: String,
        /// Where it came from.
        source_host: String,
        /// Where it went.
        destination: String,
    },
    /// The copy was removed already.
    #[error(
        "there is no copy of container {0} here any more that could be taken back: the destination has had it, look there; nothing was \
         changed"
    )]
    NothingHere(String),
    /// It was tried, and the end of it was not seen.
    #[error(
        "what was decided about migration {0} has not been done yet: see `tranship migrate status {0}`, and the daemon's log for what keeps it"
    )]
    StillInDoubt(String),
    /// An option that means nothing.
    #[error(transparent)]
    Options(#[from] OptionError),
    /// It is past the point where it could be stopped.
    #[error(
        "migration {id} is past its commit: the container belongs to {destination}; to have it back, migrate it from there"
    )]
    TooLate {
        /// Which.
        id: String,
        /// Whose the container is.
        destination: String,
    },
    /// It has ended.
    #[error("migration {id} is over: {}", outcome.as_str_name().trim_start_matches("MIGRATION_OUTCOME_").to_lowercase())]
    Over {
        /// Which.
        id: String,
        /// How it ended.
        outcome: MigrationOutcome,
    },
}

/// Migrations on this host. Clones share everything.
#[derive(Clone)]
pub struct Conductor {
    pub(super) shared: Arc<Shared>,
}

/// What the parts of this module share.
pub struct Shared {
    /// The rest of this daemon.
    pub daemon: Daemon,
    /// Containers, for short.
    pub containers: Containers,
    /// Migrations under way.
    pub board: Board,
    /// Who decides handoffs besides the journals, where the cluster has somebody.
    pub arbiter: Option<Arc<dyn Arbiter>>,
    /// Migrations in doubt.
    pub doubts: Doubts,
    /// Held by whoever forgets migrations of long ago.
    pub forgetting: tokio::sync::Mutex<()>,
    /// Where migrations have their staging.
    pub paths: crate::paths::Paths,
    /// The real CRIU.
    pub criu: PathBuf,
}

impl Shared {
    /// What survives a restart.
    pub fn registry(&self) -> &Registry {
        &self.daemon.registry
    }

    /// Networks of containers.
    pub fn networks(&self) -> &Networks {
        &self.daemon.networks
    }

    /// The cluster.
    pub fn peers(&self) -> &Peers {
        &self.daemon.peers
    }

    /// Storage drivers.
    pub fn storage(&self) -> &Storage {
        &self.daemon.storage
    }

    /// Running programs.
    pub fn runtime(&self) -> &Runtime {
        &self.daemon.runtime
    }

    /// This host's name.
    pub fn host_name(&self) -> String {
        self.daemon.host_name()
    }

    /// This host's name, as other hosts know it.
    pub fn own_name(&self) -> Result<Name, HostError> {
        let name = self.host_name().parse();
        name.map_err(|error| HostError::new("tell this host's name", error))
    }

    /// Makes certain that the arbiter, where there is one, has this host as the container's owner. Answers on what state of its
    /// record the handoff is decided.
    async fn open_handoff(&self, anatomy: &Anatomy) -> Result<Token, HostError> {
        let Some(arbiter) = &self.arbiter else {
            return Ok(Token(0));
        };
        let (record, name) = (&anatomy.record, self.own_name()?);
        let opened = arbiter.open(&record.id, &name, record.epoch).await;
        opened.map_err(|error| HostError::new("open the handoff", error))
    }

    /// Bytes of a container's memory that travel.
    pub fn memory_of(&self, cgroup: &str) -> Result<u64, HostError> {
        const WHAT: &str = "read the container's memory use";
        let charged =
            tranship_checkpoint::cgroup::memory_bytes(cgroup).map_err(|error| HostError::new(WHAT, error))?;
        let pids = process_tree::pids(cgroup).map_err(|error| HostError::new(WHAT, error))?;
        // What processes share since a fork is charged once, and travels with each of them.
        Ok(charged.max(pids.into_iter().map(private_bytes).sum()))
    }

    /// What CRIU is asked for when a container is dumped.
    pub fn dump_request(&self, anatomy: &Anatomy, images_dir: PathBuf, work_dir: PathBuf) -> DumpRequest {
        let runtime = self.runtime();
        DumpRequest {
            runc: runtime.runc.clone(),
            runc_root: runtime.runc_root.clone(),
            container: anatomy.record.id.clone(),
            cgroup: anatomy.paths.cgroup.clone(),
            images_dir,
            relay_dir: work_dir.clone(),
            work_dir,
            criu_path_dir: runtime.criu_path_dir.clone(),
            criu: self.criu.clone(),
            memory: Memory::Full,
            parent: None,
            external_unix_sockets: false,
            shell_job: false,
            log_level: None,
        }
    }

    /// The container's first process as this host numbers it, if it lives here. Waits for a monitor that is still about to
    /// say so.
    pub async fn running(&self, container: &ContainerId) -> Option<i32> {
        let give_up_at = tokio::time::Instant::now() + RESUME;
        loop {
            match crate::runtime::find(&self.containers.paths(container)).await {
                Ok(Found::Starting) if tokio::time::Instant::now() < give_up_at => {
                    tokio::time::sleep(STARTING).await;
                }
                Ok(Found::Running(life) | Found::Paused(life)) => return Some(life.pid),
                _ => return None,
            }
        }
    }
}

impl Conductor {
    /// The migrations of this daemon; [`Conductor::recover`] finds those of the one before.
    #[must_use]
    pub fn new(daemon: Daemon) -> Self {
        let etcd = daemon.config.etcd.as_ref();
        let arbiter = etcd.map(|etcd| Arc::new(EtcdArbiter::new(Etcd::new(etcd))) as Arc<dyn Arbiter>);
        let shared = Shared {
            containers: daemon.containers.clone(),
            board: Board::default(),
            doubts: Doubts::default(),
            forgetting: tokio::sync::Mutex::default(),
            arbiter,
            paths: daemon.paths.clone(),
            criu: daemon.config.criu.clone(),
            daemon,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Starts moving a container, or with `check` only asks whether it could be. Answers as soon as it has an id; with
    /// `check`, when it knows.
    ///
    /// # Errors
    /// There is no such container. Everything else is said in the record.
    pub async fn start(&self, request: StartMigrationRequest) -> Result<Migration, ConductorError> {
        let container = self
            .shared
            .containers
            .get(&request.container, Verb::Migrate)
            .await?;
        let id = MigrationId::generate();
        let options = request.options.unwrap_or_default();
        let plan = plan(&options)?;
        let record = self.new_record(id, &container.id, container.name.as_str(), &request.host, options);
        if request.check {
            return Ok(self.check(record, &container.id).await);
        }
        self.shared.store(record.clone()).await?;
        let cancelled = self.shared.board.post(id, record.clone());
        tokio::spawn(
            self.clone()
                .conduct(id, record.clone(), container.id, plan, cancelled),
        );
        Ok(record)
    }

    /// Follows a migration; the receiver's sender is gone when it has ended.
    ///
    /// # Errors
    /// There is no such migration.
    pub async fn watch(
        &self,
        text: &str,
    ) -> Result<(Migration, Option<watch::Receiver<Migration>>), ConductorError> {
        let record = self.get(text).await?;
        let id = record
            .id
            .parse()
            .map_err(|_| ConductorError::NotFound(text.to_owned()))?;
        Ok((record, self.shared.board.watch(id)))
    }

    /// The record of a migration, by its id or the unique beginning of one.
    ///
    /// # Errors
    /// There is no such migration.
    pub async fn get(&self, text: &str) -> Result<Migration, ConductorError> {
        let mut found = self.list().await?;
        let wanted = text.to_ascii_uppercase();
        found.retain(|record| !wanted.is_empty() && record.id.starts_with(&wanted));
        match (found.pop(), found.is_empty()) {
            (Some(record), true) => Ok(record),
            _ => Err(ConductorError::NotFound(text.to_owned())),
        }
    }

    /// Every migration this host has a record of, oldest first; those under way as they are now.
    ///
    /// # Errors
    /// The registry cannot be read.
    pub async fn list(&self) -> Result<Vec<Migration>, ConductorError> {
        let stored = self.shared.registry().migrations().list().await?;
        let current = |record: MigrationRecord| {
            let id = record.migration.id.parse();
            let shown = id.ok().and_then(|id| self.shared.board.get(id));
            shown.unwrap_or(record.migration)
        };
        Ok(stored.into_iter().map(current).collect())
    }

    /// Asks a migration to stop; it does so in every phase before the commit.
    ///
    /// # Errors
    /// There is no such migration, it is over, or past its commit.
    pub async fn cancel(&self, text: &str) -> Result<(), ConductorError> {
        let record = self.get(text).await?;
        let cancelled = record.id.parse().is_ok_and(|id| self.shared.board.cancel(id));
        if cancelled && record.phase() < Phase::Commit {
            return Ok(());
        }
        Err(match record.outcome() {
            MigrationOutcome::Unspecified => ConductorError::TooLate {
                id: record.id,
                destination: record.destination,
            },
            outcome => ConductorError::Over {
                id: record.id,
                outcome,
            },
        })
    }

    /// The container was removed here: the arbiter, where there is one, forgets it. Nothing depends on that.
    pub fn forget_owner(&self, container: ContainerId) {
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let (Some(arbiter), Ok(name)) = (&shared.arbiter, shared.own_name()) else {
                return;
            };
            if let Err(error) = arbiter.forget(&container, &name).await {
                tracing::warn!(%container, error = %chain(&error), "the record of the removed container's owner may still be in etcd");
            }
        });
    }

    fn new_record(
        &self,
        id: MigrationId,
        container: &ContainerId,
        name: &str,
        destination: &str,
        options: MigrationOptions,
    ) -> Migration {
        Migration {
            id: id.to_string(),
            container_id: container.to_string(),
            container_name: name.to_owned(),
            source: self.shared.host_name(),
            destination: destination.to_owned(),
            role: MigrationRole::Source.into(),
            phase: Phase::Preflight.into(),
            started_ms: now_ms(),
            options: Some(options),
            ..Migration::default()
        }
    }

    async fn check(&self, mut record: Migration, container: &ContainerId) -> Migration {
        let checked = self.shared.preflight(container, &record.destination).await;
        let fits = checked.blockers.is_empty();
        record.set_outcome(if fits {
            MigrationOutcome::Done
        } else {
            MigrationOutcome::Refused
        });
        record.advice = if fits {
            format!(
                "{} would take container {}, memory {}; nothing was changed",
                record.destination, record.container_name, checked.memory_mode
            )
        } else {
            outcome::refused_advice(&record)
        };
        record.blockers = checked.blockers;
        record.warnings = checked.warnings;
        record.memory_mode = checked.memory_mode.to_string();
        record.finished_ms = now_ms();
        record
    }

    /// From the preflight to the end.
    async fn conduct(
        self,
        id: MigrationId,
        mut record: Migration,
        container: ContainerId,
        plan: Plan,
        mut cancelled: watch::Receiver<bool>,
    ) {
        let shared = &self.shared;
        let checked = tokio::select! {
            checked = shared.preflight(&container, &record.destination) => Some(checked),
            _ = cancelled.wait_for(|set| *set) => None,
        };
        let mut left = None;
        match checked {
            Some(checked) if checked.blockers.is_empty() => {
                record.warnings.clone_from(&checked.warnings);
                record.memory_mode = checked.memory_mode.to_string();
                let mode = record.memory_mode.clone();
                shared.board.change(id, |shown| shown.memory_mode = mode);
                let asked = (checked, plan, cancelled);
                (record, left) = self.source(id, record, &container, asked).await;
            }
            Some(checked) => outcome::refused(&mut record, checked.blockers),
            None => outcome::cancelled(&mut record),
        }
        let (total_ms, blackout_ms) = (record.total_us / 1000, record.blackout_us / 1000);
        let outcome = record.outcome().as_str_name();
        tracing::info!(migration_id = %id, role = "source", container = record.container_name, peer = record.destination, outcome, total_ms, blackout_ms, error = record.error, "migration ended");
        shared.close(id, record.clone()).await;
        if let Some((destination, outcome)) = left {
            self.undo_later((id, container, destination), record, outcome);
        }
    }

    /// Plays the source's role. Answers with its record, and, where not all could be undone, with its destination and its end.
    async fn source(
        &self,
        id: MigrationId,
        mut record: Migration,
        container: &ContainerId,
        (checked, plan, cancelled): (Checked, Plan, watch::Receiver<bool>),
    ) -> (Migration, Option<(Name, SourceOutcome)>) {
        let shared = &self.shared;
        let Some(destination) = checked.destination.clone() else {
            outcome::refused(&mut record, checked.blockers);
            return (record, None);
        };
        // What cannot be claimed may belong to another migration: that is not to be released.
        if let Err(error) = shared.containers.begin_migration(container.as_str()).await {
            return (
                not_begun(record, &HostError::new("claim the container", error)),
                None,
            );
        }
        let (source, conversation) = match self.begin(id, container, checked).await {
            Ok(begun) => begun,
            Err(error) => {
                let left = self.undone(container, &[], SourceOutcome::Aborted).await;
                return (
                    not_begun(record, &error),
                    left.map(|outcome| (destination, outcome)),
                );
            }
        };
        record.epoch = source.next_epoch();
        shared.board.change(id, |shown| shown.epoch = record.epoch);
        let source = Source::new(id, faults::source(source), conversation, plan, cancelled);
        let report = source.run().await;
        let left = match &report.end {
            SourceEnd::Failed { undo, .. } => self.undone(container, undo, SourceOutcome::Aborted).await,
            SourceEnd::RolledBack { undo, .. } => {
                self.undone(container, undo, SourceOutcome::RolledBack).await
            }
            SourceEnd::Done { left } => {
                if !left.is_empty() {
                    self.decide_later(id, container.clone(), destination.clone());
                }
                None
            }
            SourceEnd::Unknown(_) => {
                if let Err(error) = shared.containers.doubt(container).await {
                    tracing::error!(migration_id = %id, error = %chain(&error), "the container could not be marked as in doubt");
                }
                self.decide_later(id, container.clone(), destination.clone());
                None
            }
        };
        outcome::of_source(&mut record, report);
        record.set_phase(
            shared
                .board
                .get(id)
                .map_or(Phase::Unspecified, |shown| shown.phase()),
        );
        (record, left.map(|outcome| (destination, outcome)))
    }

    /// A role has given up. The container is an ordinary one again, unless something could not be undone: then it stays marked as on
    /// its way, by which the next start finds it, too, and `outcome` is answered.
    async fn undone(
        &self,
        container: &ContainerId,
        undo: &[HostError],
        outcome: SourceOutcome,
    ) -> Option<SourceOutcome> {
        let whole = undo.is_empty() || self.shared.running(container).await.is_none();
        if !whole {
            return Some(outcome);
        }
        let error = self.release(container).await.err()?;
        tracing::error!(%container, error = %chain(&error), "the container is still marked as on its way; this goes on trying");
        Some(outcome)
    }

    async fn begin(
        &self,
        id: MigrationId,
        container: &ContainerId,
        checked: Checked,
    ) -> Result<(Arc<LocalSource>, Conversation), HostError> {
        let shared = &self.shared;
        let no_destination = || HostError::new("call the destination", "there is none");
        let destination = checked.destination.ok_or_else(no_destination)?;
        let anatomy = shared.containers.anatomy(container).await;
        let anatomy = anatomy.map_err(|error| HostError::new("look at the container", error))?;
        let token = shared.open_handoff(&anatomy).await?;
        let source = LocalSource::new(
            Arc::clone(shared),
            id,
            anatomy,
            destination.clone(),
            checked.memory_mode,
            token,
        )?;
        let call =
            |error: Box<dyn std::error::Error + Send + Sync>| HostError::new("call the destination", error);
        let mut client = shared
            .peers()
            .control(&destination)
            .map_err(|error| call(error.into()))?;
        let (outbox, outgoing) = mpsc::channel(MESSAGES_IN_FLIGHT);
        let calling = client.migrate(ReceiverStream::new(outgoing));
        let answered = tokio::time::timeout(tranship_migrate::deadlines::REPLY, calling).await;
        let inbox = answered
            .map_err(|error| call(error.into()))?
            .map_err(|error| call(error.into()))?;
        let control = GrpcControl::new(Outbox::Caller(outbox), inbox.into_inner());
        let control = faults::conversation("source", control);
        Ok((Arc::new(source), Conversation::new(id, control)))
    }

    /// The container is an ordinary one again.
    ///
    /// # Errors
    /// It could not be marked so.
    pub(super) async fn release(&self, container: &ContainerId) -> Result<(), HostError> {
        let released = self.shared.containers.end_migration(container).await;
        let failed = |error| HostError::new("mark the container as running again", error);
        released.map(drop).map_err(failed)
    }
}

/// One that ended before it asked anything of the destination.
fn not_begun(mut record: Migration, error: &HostError) -> Migration {
    record.set_outcome(MigrationOutcome::Failed);
    record.error = chain(error);
    record.transient = error.source.is::<tonic::Status>() || error.source.is::<tokio::time::error::Elapsed>();
    record.advice = match record.transient {
        true => outcome::try_again(&record),
        false => format!("container {} was not touched", record.container_name),
    };
    record.finished_ms = now_ms();
    record
}
