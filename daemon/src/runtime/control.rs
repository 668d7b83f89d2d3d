//! What one does to a container that runs: signals, pause, and its end.

use std::time::Duration;

use tokio::time::Instant;

use super::cgroup::Cgroup;
use super::error::RuncError;
use super::find;
use super::paths::ContainerPaths;
use super::runc::Runtime;

/// How long processes may take to end after SIGKILL: the kernel may have to write out what they mapped.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// How long a monitor may take from the end of its container to its own: it drains pipes and calls `runc delete`.
const MONITOR_DEADLINE: Duration = Duration::from_secs(45);

/// Between two looks at a cgroup whose processes are ending; the kernel announces nothing on version 1.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Runtime {
    /// Sends a signal to the container's first process. A frozen one gets it when it is thawed; SIGKILL thaws it.
    ///
    /// # Errors
    /// runc refuses: the container does not run.
    pub async fn kill(&self, paths: &ContainerPaths, signal: i32) -> Result<(), RuncError> {
        self.call("kill", &[&signal.to_string()], paths).await.map(drop)
    }

    /// Freezes every process of the container.
    ///
    /// # Errors
    /// runc refuses: it does not run, or is frozen already.
    pub async fn pause(&self, paths: &ContainerPaths) -> Result<(), RuncError> {
        self.call("pause", &[], paths).await.map(drop)
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// runc refuses: it is not paused.
    pub async fn unpause(&self, paths: &ContainerPaths) -> Result<(), RuncError> {
        self.call("resume", &[], paths).await.map(drop)
    }

    /// Ends every process of the container, frozen or not, and returns when they are gone. None of them runs another
    /// instruction of its own: a frozen copy that was handed over can be ended by this.
    ///
    /// # Errors
    /// The cgroup cannot be used, or processes do not end (stuck in the kernel): then nothing else was changed.
    pub async fn kill_tree(&self, paths: &ContainerPaths) -> Result<(), RuncError> {
        let cgroup = Cgroup::at(&paths.cgroup);
        let deadline = Instant::now() + KILL_DEADLINE;
        loop {
            cgroup
                .kill_all()
                .map_err(|(path, source)| RuncError::Cgroup { path, source })?;
            let left = cgroup
                .processes()
                .map_err(|source| RuncError::Cgroup {
                    path: paths.cgroup.clone().into(),
                    source,
                })?
                .len();
            if left == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(RuncError::Undead {
                    cgroup: paths.cgroup.clone(),
                    left,
                    deadline: KILL_DEADLINE,
                });
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Removes what runc and the monitor keep of the container; with `force` also its processes. Returns when the monitor
    /// has ended, so that `exit` is final. The bundle stays. Nothing happens if nothing is there.
    ///
    /// # Errors
    /// Without `force`: the container runs. With it: its processes do not end.
    pub async fn delete(&self, paths: &ContainerPaths, force: bool) -> Result<(), RuncError> {
        if force {
            self.kill_tree(paths).await?;
            let ended = tokio::time::timeout(MONITOR_DEADLINE, find::monitor_ended(paths)).await;
            if !matches!(ended, Ok(Ok(()))) {
                tracing::warn!(container = %paths.id, "the monitor does not end; its container is removed without it");
            }
        }
        if self.is_known(paths) {
            let arguments: &[&str] = if force { &["--force"] } else { &[] };
            match self.call("delete", arguments, paths).await {
                // The monitor was faster.
                Err(RuncError::Failed { .. }) if !self.is_known(paths) => {}
                done => drop(done?),
            }
        }
        let monitor = Cgroup::at(&paths.monitor_cgroup());
        if let Err(error) = monitor.remove() {
            tracing::warn!(container = %paths.id, %error, "the monitor's cgroup is left");
        }
        Ok(())
    }
}
