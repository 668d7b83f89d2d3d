//! The call of `runc exec`: what it is told, and what its standard input and output are connected to.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tranship_proto::v1::TerminalSize;

use super::super::error::ExecError;
use super::super::find::{self, Found};
use super::super::paths::ContainerPaths;
use super::super::runc::Runtime;
use super::super::spec::{ExecProcess, exec_process};
use super::super::sys;
use super::session::{self, Pty};
use super::{ExecRequest, ExecSession};

/// A `runc exec` that runs, and the directory with its files.
pub(super) struct Running {
    pub(super) child: Child,
    pub(super) files: TempDir,
}

impl Running {
    /// Where runc writes the pid of the process, once there is one.
    pub(super) fn pid_file(&self) -> PathBuf {
        pid_file(self.files.path())
    }
}

impl Runtime {
    /// Runs a command inside a running container.
    ///
    /// # Errors
    /// Nothing was run. That the program is not there is no error here but an exit code.
    pub async fn exec(
        &self,
        paths: &ContainerPaths,
        request: &ExecRequest,
    ) -> Result<ExecSession, ExecError> {
        if request.command.is_empty() {
            return Err(ExecError::NoCommand);
        }
        if !matches!(find::find(paths).await, Ok(Found::Running(_))) {
            return Err(ExecError::NotRunning { id: paths.id.clone() });
        }
        let files = tempfile::Builder::new()
            .prefix("exec-")
            .tempdir_in(&paths.run)
            .map_err(plumbing("make a directory"))?;
        let process_file = files.path().join("process.json");
        fs::write(&process_file, process(paths, request)?).map_err(plumbing("write its description"))?;
        let mut runc = self.command("exec", paths);
        runc.arg("--process")
            .arg(&process_file)
            .arg("--pid-file")
            .arg(pid_file(files.path()))
            .arg(paths.id.as_str());
        runc.kill_on_drop(true);
        if request.tty {
            let pty = open_pty(request.size)?;
            attach_pty(&mut runc, &pty)?;
            let running = Running {
                child: self.spawn(&mut runc)?,
                files,
            };
            // The command holds copies of the terminal: without them the end of the last user is seen.
            drop(runc);
            Ok(session::with_pty(running, pty.ours))
        } else {
            let stdin = if request.interactive {
                Stdio::piped()
            } else {
                Stdio::null()
            };
            runc.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
            let running = Running {
                child: self.spawn(&mut runc)?,
                files,
            };
            Ok(session::with_pipes(running))
        }
    }

    fn spawn(&self, runc: &mut Command) -> Result<Child, ExecError> {
        runc.spawn().map_err(|source| ExecError::Spawn {
            program: self.runc.clone(),
            source,
        })
    }
}

fn process(paths: &ContainerPaths, request: &ExecRequest) -> Result<String, ExecError> {
    let path = paths.config();
    let failed = |source| ExecError::Config {
        id: paths.id.clone(),
        path: path.clone(),
        source,
    };
    let config = fs::read_to_string(&path).map_err(failed)?;
    let asked = ExecProcess {
        command: &request.command,
        env: &request.env,
        user: &request.user,
        workdir: &request.workdir,
        tty: request.tty,
        size: request.size.filter(|_| request.tty),
    };
    let process = exec_process(&config, &paths.rootfs(), &asked).map_err(|error| failed(error.into()))??;
    Ok(process.to_string())
}

struct OpenedPty {
    ours: Pty,
    theirs: OwnedFd,
}

fn open_pty(size: Option<TerminalSize>) -> Result<OpenedPty, ExecError> {
    let open = || -> io::Result<OpenedPty> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        // By descriptor, because /dev/pts may be another one's by the time a path is opened.
        let theirs = ioctl_tiocgptpeer(
            &ours,
            OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
        )?;
        make_raw(&theirs)?;
        if let Some(size) = size {
            tcsetwinsize(&ours, winsize(size))?;
        }
        Ok(OpenedPty {
            ours: Pty::new(ours)?,
            theirs,
        })
    };
    open().map_err(plumbing("open a terminal"))
}

/// Passes on what is typed as it is, from the first byte: lines, echo and signals are made by the terminal inside of the
/// container. runc sets the same, later. Line ends of the output get their carriage return here, since runc takes it away
/// inside.
fn make_raw(terminal: &OwnedFd) -> io::Result<()> {
    let mut modes = tcgetattr(terminal)?;
    modes.make_raw();
    modes.output_modes |= OutputModes::OPOST | OutputModes::ONLCR;
    Ok(tcsetattr(terminal, OptionalActions::Now, &modes)?)
}

fn attach_pty(runc: &mut Command, pty: &OpenedPty) -> Result<(), ExecError> {
    let copy = || {
        pty.theirs
            .as_fd()
            .try_clone_to_owned()
            .map_err(plumbing("copy a terminal"))
    };
    runc.stdin(File::from(copy()?))
        .stdout(File::from(copy()?))
        .stderr(File::from(copy()?));
    sys::with_controlling_terminal(runc, copy()?);
    Ok(())
}

/// A size as the kernel has it; larger ones than it can hold are its largest.
pub(super) fn winsize(size: TerminalSize) -> Winsize {
    let bounded = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX);
    Winsize {
        ws_row: bounded(size.rows),
        ws_col: bounded(size.columns),
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn pid_file(files: &Path) -> PathBuf {
    files.join("pid")
}

fn plumbing(what: &'static str) -> impl Fn(io::Error) -> ExecError {
    move |source| ExecError::Plumbing { what, source }
}
