//! The relay process: what runs where runc believes it has started CRIU.
//!
//! ```text
//!            request                notification            runc's answer
//! runc -----> [hold] -----> CRIU --------------> runc ------> [hold] -----> CRIU
//! ```
//! It is single-threaded and small, because a restore starts it inside the container's cgroup. It prints nothing: in a
//! restore its standard streams are the container's.
//!
//! CRIU is started when runc's first packet has arrived: by then runc has moved this process into the container's
//! cgroup, and CRIU, and with it every restored task, is born there. CRIU inherits every descriptor that runc left
//! open for it, under the same numbers.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use prost::Message;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

use super::cpu::FILE_NAME as CPUINFO_NAME;
use super::options;
use super::rpc::{self, Malformed, Setting, kind, option};
use super::unprivileged::Permission;
use super::wire::{AREAS_NAME, JOURNAL_NAME, Memory, Operation, environment};
use crate::packet::{self, Packet};
use crate::sys::inherited;
use crate::sys::undo::Undo;
use crate::sys::view::View;

mod children;
pub(super) mod guard;
mod link;
mod session;

use guard::Guard;
use link::DaemonLink;
use session::Session;

/// How long CRIU may take to load the library that hides pages. The loader does it before anything else.
const LOADING: Duration = Duration::from_secs(1);

/// Why the relay gave up. Nobody reads its text but a person with a debugger: its standard streams are not its own.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The real CRIU could not be run.
    #[error("{} cannot be started: {source}", criu.display())]
    Start {
        /// Its path.
        criu: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The number after `swrk` is no open socket.
    #[error("{argument:?} is not a descriptor that runc has passed: {source}")]
    Socket {
        /// The argument.
        argument: OsString,
        /// Why.
        source: io::Error,
    },
    /// A descriptor that runc's request names could not be opened.
    #[error("descriptor {number} of process {pid} cannot be opened: {source}")]
    Directory {
        /// The number in the request.
        number: i32,
        /// runc's process.
        pid: i32,
        /// Why.
        source: io::Error,
    },
    /// A request or an answer that is not protobuf.
    #[error("what came from {from} cannot be read: {source}")]
    Message {
        /// `runc` or `criu`.
        from: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A socket failed.
    #[error("the connection to {peer} failed: {source}")]
    Connection {
        /// `runc`, `criu` or `the daemon`.
        peer: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl From<Malformed> for ProcessError {
    fn from(source: Malformed) -> Self {
        Self::Message {
            from: "runc",
            source: Box::new(source),
        }
    }
}

/// What the environment tells the relay.
#[derive(Clone, Debug)]
pub struct Settings {
    criu: PathBuf,
    daemon: Option<(PathBuf, Operation)>,
    log_level: Option<u64>,
    memory: Memory,
    lazy_pages: bool,
    cgroup: Option<String>,
}

impl Settings {
    /// Reads [`environment`]. Where the daemon's socket or the operation is missing the relay only passes on; where
    /// CRIU's path is missing it takes Debian's.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let operation = variable(environment::OPERATION)
            .and_then(|word| Operation::of_word(word.to_str().unwrap_or_default()));
        let log_level = variable(environment::LOG_LEVEL)
            .and_then(|level| level.to_str().and_then(|level| level.parse().ok()))
            .filter(|level| (0..=4).contains(level));
        Self {
            criu: variable(environment::CRIU).map_or_else(|| PathBuf::from("/usr/sbin/criu"), PathBuf::from),
            daemon: variable(environment::SOCKET).map(PathBuf::from).zip(operation),
            log_level,
            memory: variable(environment::MEMORY).map_or(Memory::Full, |word| {
                Memory::of_word(word.to_str().unwrap_or_default())
            }),
            lazy_pages: variable(environment::LAZY_PAGES).is_some(),
            cgroup: variable(environment::CGROUP).and_then(|cgroup| cgroup.into_string().ok()),
        }
    }
}

/// Does what `criu ARGUMENTS` would do, with the daemon's say in between; returns the status to exit with.
pub fn run(arguments: &[OsString], settings: &Settings) -> Result<u8, ProcessError> {
    let ([word, number], Some((socket, operation))) = (arguments, settings.daemon.as_ref()) else {
        return Err(exec(&settings.criu, arguments));
    };
    if word != "swrk" {
        return Err(exec(&settings.criu, arguments));
    }
    let runc = take_socket(number)?;
    let Some(first) = packet::receive(&runc).map_err(|source| lost("runc", source))? else {
        return Ok(0);
    };
    let request = rpc::Request::decode(first.bytes.as_slice()).map_err(|source| ProcessError::Message {
        from: "runc",
        source: Box::new(source),
    })?;
    let held = request.kind == Some(kind_of(*operation));
    let lazy = held && settings.lazy_pages && *operation == Operation::Restore;
    // Kept open until CRIU has opened them through this process.
    let mut directories = Vec::new();
    let mut edits = Vec::new();
    if held {
        edits = self::edits(&runc, &request, *operation, settings.log_level, &mut directories)?;
        if lazy {
            edits.push(Setting {
                number: option::LAZY_PAGES,
                value: 1,
            });
        }
    }
    let dumps = held && *operation == Operation::Dump;
    let hide = dumps && settings.memory == Memory::StateOnly;
    // Without the library everything works, and takes longer.
    let view = held.then(|| view(*operation, hide)).and_then(Result::ok);
    let areas = socket.with_file_name(AREAS_NAME);
    let journal = socket.with_file_name(JOURNAL_NAME);
    // Without the journal a dump is as good; only a CRIU that is killed in it may not be undone then.
    let undo = dumps.then(|| Undo::create(&journal));
    let undo = undo.and_then(Result::ok);
    let shown = view.as_ref().map(|view| (view, areas.as_path()));
    if dumps {
        children::inherit();
    }
    let (criu, child) = start(&settings.criu, shown, undo.as_ref(), dumps.then_some(&journal))?;
    let mut session = Session::new(runc, criu, child)?;
    if dumps {
        session.leave_no_children();
        if let Some(cgroup) = &settings.cgroup {
            session.watch_over(cgroup);
        }
    }
    if let Some(view) = view.filter(|view| view.wait_loaded(LOADING) && hide) {
        session.hide_pages(view);
    }
    if held {
        session.attach(DaemonLink::connect(socket)?, *operation);
    }
    if lazy {
        session.permit(Permission::take());
    }
    let asked = || asked(first, held.then_some((*operation, edits)));
    // Kept until CRIU has ended, which loads the library through this process.
    let status = session.run(request.options.and_then(|options| options.pid), asked);
    drop(undo);
    status
}

fn kind_of(operation: Operation) -> i32 {
    match operation {
        Operation::Dump => kind::DUMP,
        Operation::Restore => kind::RESTORE,
    }
}

/// Becomes CRIU; returns only where that fails.
fn exec(criu: &Path, arguments: &[OsString]) -> ProcessError {
    let source = Command::new(criu).args(arguments).exec();
    ProcessError::Start {
        criu: criu.to_owned(),
        source,
    }
}

fn take_socket(number: &OsString) -> Result<OwnedFd, ProcessError> {
    number
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
        .and_then(inherited::take)
        .map_err(|source| ProcessError::Socket {
            argument: number.clone(),
            source,
        })
}

fn lost(peer: &'static str, source: io::Error) -> ProcessError {
    ProcessError::Connection { peer, source }
}

/// The options to set in the request. CRIU looks descriptors up in the process that made its socket, which is now this
/// one and not runc: so each that the request names is opened here, and named by the number it has here.
fn edits(
    runc: &OwnedFd,
    request: &rpc::Request,
    operation: Operation,
    log_level: Option<u64>,
    opened: &mut Vec<File>,
) -> Result<Vec<Setting>, ProcessError> {
    let mut edits = options::settings(operation, log_level);
    let runc_pid = sockopt::socket_peercred(runc)
        .map_err(|errno| lost("runc", errno.into()))?
        .pid
        .as_raw_pid();
    let options = request.options.clone().unwrap_or_default();
    let named = [
        (option::IMAGES_DIR_FD, options.images_dir_fd),
        (option::WORK_DIR_FD, options.work_dir_fd),
        (option::STATUS_FD, options.status_fd),
    ];
    for (field, number) in named {
        // -1 means that a path is given instead.
        let Some(number) = number.filter(|number| *number >= 0) else {
            continue;
        };
        let file = File::options()
            .read(field != option::STATUS_FD)
            .write(field == option::STATUS_FD)
            .open(format!("/proc/{runc_pid}/fd/{number}"))
            .map_err(|source| ProcessError::Directory {
                number,
                pid: runc_pid,
                source,
            })?;
        let value = u64::try_from(file.as_raw_fd()).unwrap_or_default();
        edits.push(Setting { number: field, value });
        opened.push(file);
    }
    Ok(edits)
}

/// runc's request as CRIU gets it, when it gets it: only by then a restore has its images.
fn asked(mut request: Packet, edits: Option<(Operation, Vec<Setting>)>) -> Result<Packet, ProcessError> {
    let Some((operation, mut edits)) = edits else {
        return Ok(request);
    };
    let images = edits.iter().find(|edit| edit.number == option::IMAGES_DIR_FD);
    let described =
        |images: &Setting| Path::new(&format!("/proc/self/fd/{}/{CPUINFO_NAME}", images.value)).exists();
    if operation == Operation::Restore && images.is_some_and(described) {
        edits.push(options::compare_cpu());
    }
    request.bytes = rpc::override_options(&request.bytes, &edits)?;
    Ok(request)
}

/// The library for CRIU, asked for what helps an operation.
fn view(operation: Operation, hide_pages: bool) -> io::Result<View> {
    let view = View::create()?;
    view.spare_tar()?;
    if hide_pages {
        view.hide_pages()?;
    }
    if operation == Operation::Dump {
        view.skip_tracking()?;
    }
    Ok(view)
}

/// Starts the real CRIU as `swrk` on a socket of its own, with everything that runc left open. In a dump it is marked by
/// the path of the journal.
fn start(
    criu: &Path,
    view: Option<(&View, &Path)>,
    undo: Option<&Undo>,
    journal: Option<&PathBuf>,
) -> Result<(OwnedFd, Child), ProcessError> {
    let failed = |source| ProcessError::Start {
        criu: criu.to_owned(),
        source,
    };
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed(errno.into()))?;
    fcntl_setfd(&theirs, FdFlags::empty()).map_err(|errno| failed(errno.into()))?;
    let mut command = Command::new(criu);
    command.arg("swrk").arg(theirs.as_raw_fd().to_string());
    if let Some((view, areas)) = view {
        view.give_to(&mut command, areas);
    }
    if let Some(undo) = undo {
        undo.give_to(&mut command);
    }
    if let Some(journal) = journal {
        command.env(environment::DUMP, journal);
    }
    let child = command.spawn().map_err(failed)?;
    Ok((ours, child))
}

/// How a process ended, in words.
fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => "unknown".to_owned(),
    }
}

/// The status that passes a child's end on, as shells do.
fn passed_on(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}
