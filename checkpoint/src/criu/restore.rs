//! Restoring a container through `runc restore`.
//!
//! Its parent must outlive it (the monitor, a subreaper), so nothing is started here: the caller runs runc with
//! [`super::Relay::environment`] and [`super::dump::search_path`], and holds the restore with the relay.

use std::path::Path;

use super::dump::last_stage;
use super::log;
use super::wire::Finished;

/// Name of CRIU's log of a restore; runc chooses it.
const LOG_NAME: &str = "restore.log";

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
    use super::RestoreError;
    use crate::criu::wire::{Finished, StageTime};

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
