//! What happens when a container ends by itself: one task each waits for it, records how it ended and takes it off its
//! network. Its root file system stays until `rm`.
//!
//! ```text
//!   running, paused, migrating --ends--> exited      created, receiving, in doubt, exited: not touched here
//! ```

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tranship_proto::ids::ContainerId;
use tranship_proto::v1::ContainerState;

use super::engine::{Containers, Shared};
use super::error::{ContainerError, chain};
use crate::clock::now_ms;
use crate::registry::ContainerRecord;
use crate::runtime::{self, ExitStatus, WaitError};

/// The exit code of a container whose end nobody saw, as Docker has it.
pub const UNSEEN_EXIT_CODE: i32 = 255;

/// The tasks that wait for containers, and word for whoever waits for a change of state.
pub struct Watches {
    tasks: Mutex<HashMap<ContainerId, AbortHandle>>,
    changed: watch::Sender<()>,
}

impl Default for Watches {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            changed: watch::Sender::new(()),
        }
    }
}

impl Watches {
    /// Nobody waits for this container any more.
    pub fn forget(&self, id: &ContainerId) {
        if let Some(task) = self.tasks().remove(id) {
            task.abort();
        }
    }

    /// Wakes up at each change of any container's state.
    pub fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Some container's state has changed.
    pub fn announce(&self) {
        self.changed.send_replace(());
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<ContainerId, AbortHandle>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watches {
    fn drop(&mut self) {
        for task in self.tasks().values() {
            task.abort();
        }
    }
}

impl Containers {
    /// Waits in the background for the container to end. Once for each container, however often it is called.
    pub(super) fn watch(&self, id: &ContainerId) {
        self.shared.watches.forget(id);
        let paths = self.paths(id);
        // The daemon's end must not wait for the container's: the task has no claim on what it reports to.
        let shared = Arc::downgrade(&self.shared);
        let task = tokio::spawn(async move {
            let ended = runtime::wait(&paths).await;
            report(&shared, &paths.id, ended).await;
        });
        self.shared
            .watches
            .tasks()
            .insert(id.clone(), task.abort_handle());
    }

    /// Records that a container has ended and takes it off its network.
    ///
    /// # Errors
    /// The registry cannot be written, or the network cannot be left.
    pub(super) async fn ended(&self, id: &ContainerId, status: &ExitStatus) -> Result<(), ContainerError> {
        let status = *status;
        let record = self.change(id, move |record| end(record, &status)).await?;
        if record.state != ContainerState::Exited {
            return Ok(());
        }
        tracing::info!(container = %record.name, exit_code = record.exit_code, "the container has ended");
        let left = self.leave_network(id).await;
        left.map_err(|source| record_step(&record, "release the network", source))
    }
}

async fn report(shared: &Weak<Shared>, id: &ContainerId, ended: Result<ExitStatus, WaitError>) {
    let Some(shared) = shared.upgrade() else { return };
    let containers = Containers { shared };
    let status = ended.unwrap_or_else(|error| {
        tracing::error!(container = %id, error = %chain(&error), "how the container ended is not known");
        ExitStatus {
            exit_code: None,
            finished_ms: now_ms(),
            oom_killed: false,
            memory_lost: false,
        }
    });
    if let Err(error) = containers.ended(id, &status).await {
        tracing::error!(container = %id, error = %chain(&error), "the end of the container could not be handled");
    }
    containers.shared.watches.tasks().remove(id);
}

fn end(record: &mut ContainerRecord, status: &ExitStatus) {
    let by_itself = [
        ContainerState::Running,
        ContainerState::Paused,
        ContainerState::Migrating,
    ];
    if !by_itself.contains(&record.state) {
        return;
    }
    record.state = ContainerState::Exited;
    record.pid = 0;
    record.exit_code = status.exit_code.unwrap_or(UNSEEN_EXIT_CODE);
    record.oom_killed = status.oom_killed;
    record.memory_lost = status.memory_lost;
    // Nobody saw the end: it was before now.
    record.finished_ms = if status.finished_ms == 0 {
        now_ms()
    } else {
        status.finished_ms
    };
}

/// A step of a container's that failed.
pub(super) fn record_step(
    record: &ContainerRecord,
    step: &'static str,
    source: impl Into<super::error::PartError>,
) -> ContainerError {
    ContainerError::Step {
        name: record.name.to_string(),
        step,
        source: Box::new(source.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::test_record;

    #[test]
    fn an_unseen_end_is_an_end_and_a_container_in_doubt_is_left_alone() {
        let status = ExitStatus {
            exit_code: None,
            finished_ms: 9,
            oom_killed: false,
            memory_lost: false,
        };
        let mut record = test_record(1, "web");
        end(&mut record, &status);
        assert_eq!(
            (record.state, record.exit_code, record.pid),
            (ContainerState::Exited, 255, 0)
        );
        let mut record = ContainerRecord {
            state: ContainerState::InDoubt,
            ..test_record(1, "web")
        };
        end(&mut record, &status);
        assert_eq!((record.state, record.pid), (ContainerState::InDoubt, 42));
    }
}
