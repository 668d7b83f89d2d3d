//! CRIU's pre-dump: a container's memory written to images while it runs, each time what was written since the time before. For
//! kernels that tell what was written only through soft-dirty.
//!
//! ```text
//! round-0            everything
//! round-1/parent  -> ../round-0      what was written since
//! images/parent   -> ../round-1      the dump: state, and what was written last
//! ```
//! `runc checkpoint --pre-dump` stops the tasks for as long as CRIU needs to take hold of their pages, and lets them go. The relay
//! only passes on: there is nothing to hold at.

use std::path::PathBuf;
use std::process::{Output, Stdio};

use tokio::process::Command;
use tokio::time::{Instant, timeout_at};
use tranship_proto::ids::ContainerId;

use super::dump::{DumpError, LOG_NAME, search_path};
use super::log;
use super::wire::environment;

/// What to write, with what, and where to.
#[derive(Clone, Debug)]
pub struct PreDumpRequest {
    /// The runc program.
    pub runc: PathBuf,
    /// runc's `--root`.
    pub runc_root: PathBuf,
    /// The container's name in runc.
    pub container: ContainerId,
    /// An empty directory for the images, best on a tmpfs.
    pub images_dir: PathBuf,
    /// The images of the round before, as a path from `images_dir`.
    pub parent: Option<String>,
    /// An existing directory for CRIU's log.
    pub work_dir: PathBuf,
    /// The directory in which the relay is called `criu`.
    pub criu_path_dir: PathBuf,
    /// The real CRIU.
    pub criu: PathBuf,
}

/// Writes one round. Not given up when nobody waits for it any more: CRIU's code is in the tasks meanwhile, and it lets them go by
/// itself.
///
/// # Errors
/// CRIU or runc could not do it. The tasks run.
pub async fn pre_dump(request: &PreDumpRequest, deadline: Instant) -> Result<(), DumpError> {
    let started = request.command().spawn().map_err(|source| DumpError::Start {
        runc: request.runc.clone(),
        source,
    })?;
    let ending = tokio::spawn(started.wait_with_output());
    let Ok(ended) = timeout_at(deadline, ending).await else {
        return Err(DumpError::PreDumpDeadline);
    };
    let ended = ended.map_err(std::io::Error::other).and_then(|output| output);
    let output = ended.map_err(|source| DumpError::Start {
        runc: request.runc.clone(),
        source,
    })?;
    if output.status.success() {
        Ok(())
    } else {
        Err(request.failed(&output))
    }
}

impl PreDumpRequest {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.runc);
        command.arg("--root").arg(&self.runc_root);
        command.args(["checkpoint", "--pre-dump"]);
        command.arg("--image-path").arg(&self.images_dir);
        command.arg("--work-path").arg(&self.work_dir);
        if let Some(parent) = &self.parent {
            command.arg("--parent-path").arg(parent);
        }
        command
            .arg(self.container.as_str())
            .env(environment::CRIU, &self.criu)
            .env("PATH", search_path(&self.criu_path_dir))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }

    fn failed(&self, output: &Output) -> DumpError {
        DumpError::PreDump {
            status: output.status.to_string(),
            lines: log::explain(&self.work_dir.join(LOG_NAME)),
            stderr: String::from_utf8_lossy(&output.stderr)
                .chars()
                .take(MAX_STDERR)
                .collect(),
        }
    }
}

/// As much of runc's own complaint as is kept.
const MAX_STDERR: usize = 2000;
