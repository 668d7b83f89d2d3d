//! Taking a container apart: after a failed start, by `rm`, after a move, when a migration to here is dropped. Always the
//! same steps in the same order, each of which finds it good when there is nothing to do.

use std::future::Future;

use tranship_proto::ids::ContainerId;

use super::bundle;
use super::engine::Containers;
use super::error::{Leftovers, PartError, StepFailure};
use crate::registry::ContainerRecord;

impl Containers {
    /// Ends the container's processes, whatever state they are in, and removes all that belongs to it on this host but
    /// its record and its volumes. Later steps are not tried where an earlier one left something they would destroy.
    pub(super) async fn dismantle(&self, record: &ContainerRecord) -> Leftovers {
        let mut failed = Leftovers::default();
        self.shared.watches.forget(&record.id);
        if !failed
            .took("end its processes", self.end_processes(&record.id))
            .await
        {
            return failed;
        }
        failed
            .took("take it off its network", self.leave_network(&record.id))
            .await;
        if !failed
            .took("unmount its root file system", self.unmount_rootfs(record))
            .await
        {
            return failed;
        }
        failed
            .took("remove its root file system", self.remove_rootfs(record))
            .await;
        if failed.is_empty() {
            failed
                .took("remove its directories", self.remove_directories(&record.id))
                .await;
        }
        failed
    }

    pub(super) async fn end_processes(&self, id: &ContainerId) -> Result<(), PartError> {
        Ok(self.shared.parts.runtime.delete(&self.paths(id), true).await?)
    }

    pub(super) async fn leave_network(&self, id: &ContainerId) -> Result<(), PartError> {
        Ok(self.shared.parts.networks.detach(id).await?)
    }

    pub(super) async fn unmount_rootfs(&self, record: &ContainerRecord) -> Result<(), PartError> {
        let driver = self.shared.parts.storage.get(&record.spec.storage_driver)?;
        let (id, target) = (record.id.clone(), self.paths(&record.id).rootfs());
        let _outcome = crate::blocking::run(move || driver.unmount_rootfs(&id, &target)).await?;
        Ok(())
    }

    async fn remove_rootfs(&self, record: &ContainerRecord) -> Result<(), PartError> {
        let driver = self.shared.parts.storage.get(&record.spec.storage_driver)?;
        let id = record.id.clone();
        let _outcome = crate::blocking::run(move || driver.remove_rootfs(&id)).await?;
        Ok(())
    }

    async fn remove_directories(&self, id: &ContainerId) -> Result<(), PartError> {
        let paths = self.paths(id);
        let removed = crate::blocking::run(move || {
            bundle::remove_directory(&paths.run)?;
            bundle::remove_directory(&paths.bundle)
        });
        Ok(removed.await?)
    }
}

impl Leftovers {
    /// Notes the step if it fails; whether it did not.
    pub(super) async fn took(
        &mut self,
        step: &'static str,
        work: impl Future<Output = Result<(), PartError>>,
    ) -> bool {
        match work.await {
            Ok(()) => true,
            Err(source) => {
                self.0.push(StepFailure { step, source });
                false
            }
        }
    }
}
