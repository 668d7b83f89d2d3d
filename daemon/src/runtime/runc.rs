//! Calling runc, within a deadline.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

use super::error::RuncError;
use super::paths::ContainerPaths;

/// How long a call of runc may take that does not wait for a container: a loaded machine starts programs slowly.
pub(super) const RUNC_DEADLINE: Duration = Duration::from_secs(30);

/// Longest text of runc's that becomes part of an error.
const MAX_DETAIL_BYTES: usize = 4096;

/// The programs that run containers, and where runc keeps its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The OCI runtime: a path, or a name to look up in PATH.
    pub runc: PathBuf,
    /// Its `--root`; must be on a file system that a reboot clears.
    pub runc_root: PathBuf,
    /// A directory that holds nothing but `criu`; first in runc's PATH.
    pub criu_path_dir: PathBuf,
    /// The program `tranship-monitor`.
    pub monitor: PathBuf,
    /// The program `tranship-filler`.
    pub filler: PathBuf,
    /// The program `tranship-injector`.
    pub injector: PathBuf,
}

/// What runc says of a container.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RuncState {
    /// Host pid of the first process; 0 when it has ended.
    pub pid: i32,
    /// What it does.
    pub status: RuncStatus,
}

/// What a container does, in runc's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuncStatus {
    /// Being made.
    Creating,
    /// Made, and waits for its start.
    Created,
    /// Runs.
    Running,
    /// Frozen.
    Paused,
    /// Has ended.
    Stopped,
}

impl Runtime {
    /// What runc knows of the container; none if nothing.
    ///
    /// # Errors
    /// runc cannot be run, or answers something unknown.
    pub async fn state(&self, paths: &ContainerPaths) -> Result<Option<RuncState>, RuncError> {
        if !self.is_known(paths) {
            return Ok(None);
        }
        match self.call("state", &[], paths).await {
            Ok(output) => serde_json::from_slice(&output.stdout)
                .map(Some)
                .map_err(|source| RuncError::Answer {
                    command: "state",
                    source,
                }),
            // Deleted between the question and the answer.
            Err(RuncError::Failed { .. }) if !self.is_known(paths) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether runc has state of the container.
    pub(super) fn is_known(&self, paths: &ContainerPaths) -> bool {
        self.runc_root.join(paths.id.as_str()).exists()
    }

    /// Runs `runc COMMAND ID ARGUMENTS...` to its end.
    pub(super) async fn call(
        &self,
        command: &'static str,
        arguments: &[&str],
        paths: &ContainerPaths,
    ) -> Result<Output, RuncError> {
        let mut runc = self.command(command, paths);
        if command == "delete" {
            runc.args(arguments).arg(paths.id.as_str());
        } else {
            runc.arg(paths.id.as_str()).args(arguments);
        }
        runc.stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let spawn = |source| RuncError::Spawn {
            program: self.runc.clone(),
            source,
        };
        let child = runc.spawn().map_err(spawn)?;
        let output = tokio::time::timeout(RUNC_DEADLINE, child.wait_with_output())
            .await
            .map_err(|_| RuncError::Deadline {
                command,
                deadline: RUNC_DEADLINE,
            })?
            .map_err(spawn)?;
        if output.status.success() {
            Ok(output)
        } else {
            Err(RuncError::Failed {
                command,
                detail: detail(&output.stderr),
            })
        }
    }

    /// `runc --root ROOT --log LOG COMMAND`, with nothing of the daemon's environment but where programs are. With a log of
    /// its own runc says on standard error only why it failed.
    pub(super) fn command(&self, command: &str, paths: &ContainerPaths) -> Command {
        let mut runc = Command::new(&self.runc);
        runc.env_clear()
            .env("PATH", self.search_path())
            .arg("--root")
            .arg(&self.runc_root)
            .arg("--log")
            .arg(paths.runc_log())
            .arg(command);
        runc
    }

    /// The directory of `criu` first, then the daemon's own PATH.
    pub(super) fn search_path(&self) -> OsString {
        let own = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let mut path = self.criu_path_dir.clone().into_os_string();
        path.push(OsStr::new(":"));
        path.push(own);
        path
    }
}

/// The end of what a program said, as one line.
fn detail(stderr: &[u8]) -> String {
    let from = stderr.len().saturating_sub(MAX_DETAIL_BYTES);
    let text = String::from_utf8_lossy(&stderr[from..]);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    if lines.is_empty() {
        "it gave no reason".to_owned()
    } else {
        lines.join("; ")
    }
}
