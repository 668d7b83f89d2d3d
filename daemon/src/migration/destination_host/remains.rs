//! What a daemon before this one has left of a restore.

use std::path::PathBuf;

use tokio::time::Instant;
use tranship_checkpoint::criu::{Discard, discard, remove_ghosts, was_released};
use tranship_migrate::deadlines::REPLY;
use tranship_migrate::error::HostError;
use tranship_migrate::handoff::Inspection;
use tranship_proto::v1::ContainerState;

use super::{AnyError, LocalDestination};

impl LocalDestination {
    /// Removes what a restore has left that was killed together with the daemon before, so that the same images can be
    /// restored again.
    ///
    /// # Errors
    /// Something of it could not be removed; restoring again would find it in its way.
    pub async fn clear_killed_restore(&self) -> Result<(), HostError> {
        let failed = |error: AnyError| HostError::new("clear what a killed restore left", error);
        let (runtime, paths) = (
            self.shared.runtime(),
            self.shared.containers.paths(&self.container),
        );
        let request = Discard {
            runc: runtime.runc.clone(),
            runc_root: runtime.runc_root.clone(),
            container: self.container.clone(),
            cgroup: paths.cgroup.clone(),
            rootfs: paths.rootfs(),
        };
        discard(&request, Instant::now() + REPLY)
            .await
            .map_err(|error| failed(error.into()))?;
        let mut trees = vec![paths.rootfs()];
        let anatomy = self
            .shared
            .containers
            .anatomy(&self.container)
            .await
            .map_err(|error| failed(error.into()))?;
        trees.extend(anatomy.volumes.into_iter().map(|volume| volume.path));
        let images = self.images();
        let removed = crate::blocking::run(move || remove_ghosts(&images, &trees)).await;
        removed.map(drop).map_err(|error| failed(error.into()))
    }

    /// Whether the daemon before has registered the container as this host's own. It may have gone on since.
    async fn was_adopted(&self) -> Result<bool, HostError> {
        let failed = |error| HostError::new("find the container", error);
        let containers = self.shared.registry().containers();
        let here = containers.get(&self.container).await.map_err(failed)?;
        let own = here.filter(|record| record.state != ContainerState::Receiving);
        let gone = containers.tombstone(&self.container).await.map_err(failed)?;
        let epoch = self.reserve.next_epoch;
        Ok(own.is_some_and(|record| record.epoch >= epoch) || gone.is_some_and(|tomb| tomb.epoch >= epoch))
    }

    /// Whether the restored tasks have run, or may have. Only final when nothing of the restore is left.
    fn was_released(&self) -> bool {
        was_released(&self.work())
    }

    /// The container runs already, as this process; whether it is on its network yet is not known.
    async fn found_running(&self, pid: i32) -> Result<(), HostError> {
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let networks = self.shared.networks();
        let found = networks
            .find(&self.container, &self.network_request()?, &netns)
            .await;
        let found = found.map_err(|error| HostError::new("find the container's network", error))?;
        self.restored_as(pid, found);
        Ok(())
    }

    /// Whether tasks run, or have run, that a daemon before was about to release; nobody can release them any more then.
    pub(super) async fn look_for_tasks(&self) -> Result<Inspection, HostError> {
        if self.was_adopted().await? {
            return Ok(Inspection::WasAdopted);
        }
        let Some(pid) = self.shared.running(&self.container).await else {
            // Whoever could still let the tasks go ends by this.
            self.clear_killed_restore().await?;
            // The mark is in memory.
            let resuming = self.journal.rebooted_since("resuming").await;
            let mark_gone = resuming.map_err(|error| HostError::new("read the journal", error))?;
            return Ok(if mark_gone || self.was_released() {
                Inspection::MayHaveRun
            } else {
                Inspection::NeverReleased
            });
        };
        self.found_running(pid).await?;
        Ok(Inspection::Runs)
    }
}
