//! The words between the daemon and a monitor: one [`Job`] in, one [`Report`] a line out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use tranship_proto::ids::ContainerId;

/// What a monitor is told, as one line of JSON on its standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Whose monitor it is.
    pub id: ContainerId,
    /// How the container comes to life.
    pub action: Action,
    /// The OCI runtime.
    pub runc: PathBuf,
    /// Its `--root`.
    pub runc_root: PathBuf,
    /// The bundle directory; log, exit status and records go there.
    pub bundle: PathBuf,
    /// Directory for what need not survive a reboot.
    pub run: PathBuf,
    /// The container's cgroup.
    pub cgroup: String,
    /// The monitor's own.
    pub monitor_cgroup: String,
    /// Milliseconds until the container must run, or it is given up.
    pub deadline_ms: u64,
}

/// How a container comes to life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// `runc create`, and `runc start` when the daemon says so.
    Create,
    /// `runc restore`, with these arguments between the fixed ones and the id.
    Restore {
        /// Such as `--image-path DIR`.
        arguments: Vec<String>,
        /// The working directory of the filler that will bring the container's memory, if one will.
        #[serde(default)]
        filler: Option<PathBuf>,
    },
}

/// What a monitor says, one JSON object a line on its standard output, until the container runs or does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum Report {
    /// runc has been started; nothing is known of the container yet.
    RuncStarted,
    /// The container's first process exists and waits; its namespaces are there.
    Created {
        /// As the host numbers it.
        pid: i32,
    },
    /// The container runs: its first process, as the host numbers it.
    Running {
        /// Pid.
        pid: i32,
    },
    /// It does not, and what runc had made of it is gone again.
    Failed {
        /// `create`, `start`, `restore` or `monitor`.
        stage: String,
        /// What was said about it.
        detail: String,
    },
}

/// What the daemon says on the monitor's standard input when a created container shall run.
pub(crate) const START: &[u8] = b"start\n";

/// Longest report line a daemon reads: an error text is cut well below it.
pub(crate) const MAX_REPORT_BYTES: u64 = 64 << 10;

/// Longest error text in a report.
pub(crate) const MAX_DETAIL_BYTES: usize = 8 << 10;

/// Longest job a monitor reads.
pub(crate) const MAX_JOB_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_as_it_was_written() {
        let failed = Report::Failed {
            stage: "create".to_owned(),
            detail: "no such file\n".to_owned(),
        };
        for report in [
            Report::RuncStarted,
            Report::Created { pid: 7 },
            Report::Running { pid: 42 },
            failed,
        ] {
            let line = serde_json::to_string(&report).unwrap();
            assert!(!line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Report>(&line).unwrap(), report);
        }
        assert!(serde_json::from_str::<Report>(r#"{"event":"exploded"}"#).is_err());
    }
}
