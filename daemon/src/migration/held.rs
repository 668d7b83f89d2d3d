//! A restore that CRIU holds before any task runs, and what surrounds one.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::time::Instant;
use tranship_checkpoint::criu::{Relay, StageTime};
use tranship_checkpoint::memory::fill::FillerHandle;
use tranship_checkpoint::monotonic_us;
use tranship_migrate::deadlines::{FILLING, RESUME};
use tranship_migrate::error::{HostError, chain};
use tranship_migrate::host::{HeldRestore, Stage};

use crate::runtime::{StartError, Started};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// runc's end, as the container's monitor will report it.
pub type RuncEnd = Pin<Box<dyn Future<Output = Result<Started, StartError>> + Send>>;

/// File beside CRIU's images that names the neighbours the container knows.
pub const NEIGHBOURS: &str = "neighbours.json";

/// File beside CRIU's images that holds the frames which reached the source between its cut and the announcement.
pub const ARRIVALS: &str = "arrivals";

/// CRIU waits at `post-restore`; runc and the container's monitor wait for CRIU.
pub struct LocalHeld {
    /// The connection CRIU waits on.
    pub relay: Relay,
    /// runc's restore, as the monitor runs it.
    pub runc: RuncEnd,
    /// What fills the memory in, where it did not come inside the images.
    pub filler: Option<FillerHandle>,
    /// Where the time went until now.
    pub stages: Vec<Stage>,
    /// When the tasks were let go, by CRIU's clock; 0 before.
    pub released_us: u64,
}

#[async_trait]
impl HeldRestore for LocalHeld {
    fn stages(&self) -> &[Stage] {
        &self.stages
    }

    async fn release(&mut self) -> Result<(), HostError> {
        self.released_us = monotonic_us();
        let released = async {
            self.relay.release().await?;
            self.relay.wait_released(Instant::now() + RESUME).await
        };
        released
            .await
            .map_err(|error| HostError::new("let the restored container run", error))
    }

    async fn running(mut self: Box<Self>) -> Result<Vec<Stage>, HostError> {
        let failed = |error: AnyError| HostError::new("wait until the restored container runs", error);
        let finished = self.relay.wait_finished(Instant::now() + RESUME).await;
        let finished = finished.map_err(|error| failed(error.into()))?;
        if !finished.success {
            return Err(failed(finished.message.unwrap_or(finished.exit).into()));
        }
        let later = |stage: &&StageTime| stage.at_us >= self.released_us;
        let times: Vec<StageTime> = finished.stages.iter().filter(later).cloned().collect();
        // The tasks run. That runc has still to write its books does not keep them waiting.
        let runc = self.runc;
        tokio::spawn(async move {
            if let Err(error) = runc.await {
                tracing::error!(error = %chain(&error), "runc failed after a restore that went well");
            }
        });
        if let Some(filler) = self.filler {
            tokio::spawn(follow_filling(filler));
        }
        Ok(stages(&times))
    }

    async fn abandon(mut self: Box<Self>) -> Result<(), HostError> {
        let failed = |error| HostError::new("end the restored container", error);
        self.relay
            .abort()
            .await
            .map_err(|error| failed(AnyError::from(error)))?;
        let finished = self.relay.wait_finished(Instant::now() + RESUME).await;
        finished.map_err(|error| failed(error.into()))?;
        // The monitor cleans up behind runc and reports a failure, as it should.
        let ended = tokio::time::timeout(RESUME, self.runc).await;
        ended.map(drop).map_err(|error| failed(error.into()))
    }
}

/// Logs how the filling went. The filler and the container's monitor see to it by themselves.
async fn follow_filling(mut filler: FillerHandle) {
    match filler.wait_complete(Instant::now() + FILLING).await {
        Ok(figures) => tracing::info!(?figures, "the container's memory is complete"),
        Err(error) => tracing::error!(error = %chain(&error), "the container's memory is not complete"),
    }
}

/// CRIU's stages as stretches from one to the next.
#[must_use]
pub fn stages(times: &[StageTime]) -> Vec<Stage> {
    let now = std::time::Instant::now();
    let now_us = monotonic_us();
    let at = |us: u64| {
        now.checked_sub(Duration::from_micros(now_us.saturating_sub(us)))
            .unwrap_or(now)
    };
    times
        .iter()
        .zip(times.iter().skip(1))
        .map(|(from, to)| Stage {
            name: format!("criu {} to {}", from.stage, to.stage),
            start: at(from.at_us),
            duration: Duration::from_micros(to.at_us.saturating_sub(from.at_us)),
        })
        .collect()
}

/// Makes the place for a migration's images, pages, logs and sockets: memory, whatever /run is, and open only to root. What
/// it may hold is decided by whoever fills it.
///
/// # Errors
/// It cannot be made or mounted.
pub fn make_staging(path: &Path) -> io::Result<()> {
    make_private(path)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("tranship", path, "tmpfs", flags, c"size=100%,mode=0700")?;
    Ok(())
}

/// Removes what [`make_staging`] made, and everything in it. Files that somebody still has open go with him.
///
/// # Errors
/// Something could not be removed.
pub async fn remove_staging(path: PathBuf) -> Result<(), HostError> {
    let removed = crate::blocking::run(move || {
        match unmount(&path, UnmountFlags::DETACH) {
            // It was never mounted, or is gone.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        match std::fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    });
    removed
        .await
        .map_err(|error| HostError::new("remove the migration's staging", error))
}

/// A directory that only root may enter: images are memory.
///
/// # Errors
/// It cannot be made.
pub fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_goes_from_one_stage_to_the_next() {
        let now = monotonic_us();
        let time = |stage: &str, at_us| StageTime {
            stage: stage.to_owned(),
            at_us,
        };
        let stages = stages(&[
            time("started", now - 3_000),
            time("request", now - 2_000),
            time("ended", now),
        ]);
        let named: Vec<_> = stages
            .iter()
            .map(|stage| (stage.name.as_str(), stage.duration.as_micros()))
            .collect();
        assert_eq!(
            named,
            [
                ("criu started to request", 1_000),
                ("criu request to ended", 2_000)
            ]
        );
        assert!(stages[0].start < stages[1].start);
    }
}
