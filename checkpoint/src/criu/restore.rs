//! Restoring a container through `runc restore`.
//!
//! Its parent must outlive it (the monitor, a subreaper), so nothing is started here: the caller gets the arguments,
//! runs runc with [`super::Relay::environment`] and [`super::dump::search_path`], and holds the restore with the relay.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use tranship_proto::ids::ContainerId;

use super::dump::last_stage;
use super::log;
use super::wire::Finished;

/// Name of CRIU's log of a restore; runc chooses it.
const LOG_NAME: &str = "restore.log";

/// What to restore, and from where.
#[derive(Clone, Debug)]
pub struct RestoreArguments {
    /// runc's `--root`.
    pub runc_root: PathBuf,
    /// The container's name in runc.
    pub container: ContainerId,
    /// The bundle, made for this host.
    pub bundle: PathBuf,
    /// The images.
    pub images_dir: PathBuf,
    /// An existing directory for CRIU's log.
    pub work_dir: PathBuf,
    /// Where runc writes the root task's pid.
    pub pid_file: PathBuf,
    /// Unix sockets whose other end is outside the container are allowed, as at the dump.
    pub external_unix_sockets: bool,
    /// The container's terminal comes from outside, as at the dump.
    pub shell_job: bool,
}

/// The arguments after `runc`.
pub fn restore_arguments(request: &RestoreArguments) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = vec!["--root".into(), request.runc_root.clone().into()];
    arguments.extend(["restore", "--detach", "--tcp-established", "--file-locks"].map(OsString::from));
    let paths = [
        ("--image-path", &request.images_dir),
        ("--work-path", &request.work_dir),
        ("--bundle", &request.bundle),
        ("--pid-file", &request.pid_file),
    ];
    for (flag, path) in paths {
        arguments.extend([flag.into(), path.clone().into()]);
    }
    if request.external_unix_sockets {
        arguments.push("--ext-unix-sk".into());
    }
    if request.shell_job {
        arguments.push("--shell-job".into());
    }
    arguments.push(request.container.as_str().into());
    arguments
}

/// Why a container was not restored. Nothing of it runs; `runc delete --force` and an empty cgroup make that certain.
#[derive(Debug, thiserror::Error)]
#[error("criu could not restore the container (after stage `{stage}`, {exit}): {}", lines.join("; "))]
pub struct RestoreError {
    /// The last stage that CRIU reached.
    pub stage: String,
    /// How its process ended.
    pub exit: String,
    /// Its errno, if it gave one.
    pub errno: Option<i32>,
    /// The first errors in its log.
    pub lines: Vec<String>,
}

impl RestoreError {
    /// The reason why a restore ended as it did; `finished` as the relay has told it, if it could.
    pub fn explain(work_dir: &Path, finished: Option<&Finished>) -> Self {
        Self {
            stage: finished.map_or_else(|| "unknown".to_owned(), |finished| last_stage(&finished.stages)),
            exit: finished.map_or_else(
                || "no word from the relay".to_owned(),
                |finished| finished.exit.clone(),
            ),
            errno: finished.and_then(|finished| finished.errno),
            lines: log::explain(&work_dir.join(LOG_NAME)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RestoreArguments, RestoreError, restore_arguments};
    use crate::criu::wire::{Finished, StageTime};

    #[test]
    fn the_container_comes_last_and_the_restore_is_detached() {
        let request = RestoreArguments {
            runc_root: "/run/t/runc".into(),
            container: "ab".repeat(32).parse().unwrap(),
            bundle: "/b".into(),
            images_dir: "/i".into(),
            work_dir: "/w".into(),
            pid_file: "/p".into(),
            external_unix_sockets: false,
            shell_job: true,
        };
        let words: Vec<_> = restore_arguments(&request)
            .into_iter()
            .map(|word| word.into_string().unwrap())
            .collect();
        assert_eq!(words[..3], ["--root", "/run/t/runc", "restore"]);
        assert!(words.contains(&"--detach".to_owned()) && words.contains(&"--shell-job".to_owned()));
        assert_eq!(words.last().unwrap(), &"ab".repeat(32));
    }

    #[test]
    fn a_failure_says_stage_and_exit() {
        let stages = ["pre-restore", "ended"].map(|stage| StageTime {
            stage: stage.into(),
            at_us: 1,
        });
        let finished = Finished {
            success: false,
            errno: Some(17),
            message: None,
            exit: "exit status 1".into(),
            stages: stages.to_vec(),
        };
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(
            directory.path().join("restore.log"),
            "(0.1) Error (a.c:1): no room\n",
        )
        .unwrap();
        let error = RestoreError::explain(directory.path(), Some(&finished));
        assert_eq!(
            error.to_string(),
            "criu could not restore the container (after stage `pre-restore`, exit status 1): Error (a.c:1): no room"
        );
    }
}
