//! A restore that was started before there was anything to restore.
//!
//! ```text
//! StandingBy::begin    monitor, runc, relay and CRIU are started; CRIU has been told nothing      the source still runs it
//! (images, writable layer and volumes arrive)                                                      frozen there
//! StandingBy::use_root the real root file system takes the place of the empty one
//! restore              the relay lets runc's request go to CRIU
//! ```
//! runc asks for little before its request: the bundle, the container's standard streams in `descriptors.json`, and a root
//! file system, in which it makes mount points and which it binds to a place of its own for CRIU. The writable layer does not
//! exist then, and an overlay must not be mounted while its layer is still written. So runc gets the empty directory that
//! the root file system is mounted on later: the mount points that it makes there are hidden by it, and removed with the
//! container. That the real one is in CRIU's place is seen to before the request is let go.

use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, mount_bind_recursive, unmount};
use tokio::time::Instant;
use tranship_checkpoint::criu::discard::CRIU_ROOT;
use tranship_checkpoint::criu::{Operation, Relay, RelayError, RestoreError};
use tranship_checkpoint::memory::fill::{FillRequest, Filler, FillerHandle};
use tranship_migrate::deadlines::{IMAGES, REPLY, SEED_IDLE};
use tranship_migrate::error::HostError;
use tranship_migrate::host::Stage;
use tranship_proto::ids::ContainerId;
use tranship_proto::limits::{MAX_DESCRIPTORS, MAX_PATH_BYTES};
use tranship_proto::v1::Standby;

use super::held::{LocalHeld, RuncEnd};
use crate::runtime::{ContainerPaths, RestoreRequest, Runtime, StartError, Started};

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Where runc notes a container's standard streams.
const DESCRIPTORS: &str = "descriptors.json";

/// What a restore is started with.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The container's places; its bundle is written.
    pub paths: ContainerPaths,
    /// Where the images are, or will be.
    pub images: PathBuf,
    /// Where CRIU works; closed to everybody else.
    pub work: PathBuf,
    /// The real CRIU.
    pub criu: PathBuf,
    /// Where the container's memory is, if it did not come inside the images.
    pub store: Option<PathBuf>,
}

/// runc and CRIU, started, and waiting to be told to restore.
pub struct StandingBy {
    /// Holds them.
    pub relay: Relay,
    /// runc's end, as the monitor will report it.
    pub runc: RuncEnd,
    filler: Option<FillerHandle>,
    rootfs: PathBuf,
    criu_root: PathBuf,
    descriptors: Option<Vec<String>>,
}

impl StandingBy {
    /// Starts it all. `standby` is what the source said beforehand; `None` where the images are here.
    ///
    /// # Errors
    /// Nothing was restored and nothing of it runs.
    pub async fn begin(
        runtime: &Runtime,
        begin: &Begin,
        standby: Option<&Standby>,
    ) -> Result<Self, HostError> {
        let prepare = |error: AnyError| HostError::new("prepare the restore", error);
        let noted = begin.images.join(DESCRIPTORS);
        let descriptors = standby.map(checked).transpose().map_err(prepare)?;
        if let Some(descriptors) = &descriptors {
            let text = serde_json::to_vec(descriptors).map_err(|error| prepare(error.into()))?;
            fs::write(&noted, text).map_err(|error| prepare(error.into()))?;
        }
        let relay = Relay::bind(&begin.work, &begin.criu, Operation::Restore);
        let mut relay = relay.map_err(|error| prepare(error.into()))?;
        let filler = start_filler(runtime, begin).await?;
        if filler.is_some() {
            relay.set_lazy_pages();
        }
        let request = RestoreRequest {
            filler: filler.as_ref().map(|_| begin.work.clone()),
            arguments: restore_options(&begin.images, &begin.work),
            environment: relay.environment(),
            deadline: SEED_IDLE + IMAGES,
        };
        let begun = runtime.restore(&begin.paths, request).await;
        let begun = begun.map_err(|error| HostError::new("start the restore", error))?;
        let mut runc: RuncEnd = Box::pin(begun.finished());
        let requested = tokio::select! {
            requested = relay.wait_request(Instant::now() + REPLY) => requested,
            ended = &mut runc => return Err(HostError::new("restore the container", runc_ended(&begin.work, ended))),
        };
        if let Err(error) = requested {
            drop(relay);
            // runc and the monitor clean up before anything is removed under them.
            let _ = tokio::time::timeout(REPLY, runc).await;
            return Err(restore_failed(&begin.work, error));
        }
        if descriptors.is_some() {
            // It comes again with the images, into a directory that must be empty.
            fs::remove_file(&noted).map_err(|error| prepare(error.into()))?;
        }
        Ok(Self {
            relay,
            runc,
            filler,
            rootfs: begin.paths.rootfs(),
            criu_root: runtime.runc_root.join(begin.paths.id.as_str()).join(CRIU_ROOT),
            descriptors,
        })
    }

    /// Itself, if it still waits and was started with what is true of the images that have arrived. Otherwise nothing of it
    /// is left.
    pub async fn if_of_use(mut self, images: &Path) -> Option<Self> {
        tokio::select! {
            biased;
            _ = &mut self.runc => return None,
            () = std::future::ready(()) => {}
        }
        let Some(told) = &self.descriptors else {
            return Some(self);
        };
        if read_descriptors(&images.join(DESCRIPTORS)).is_ok_and(|real| real == *told) {
            return Some(self);
        }
        self.give_up().await;
        None
    }

    /// CRIU has restored everything.
    #[must_use]
    pub fn held(self, stages: Vec<Stage>) -> LocalHeld {
        LocalHeld {
            relay: self.relay,
            runc: self.runc,
            filler: self.filler,
            stages,
            released_us: 0,
        }
    }

    /// Has the root file system mounted, and puts it where CRIU will look for it.
    ///
    /// # Errors
    /// It cannot be mounted, or the kernel refuses; give it up then.
    pub async fn use_root(
        &mut self,
        mount: impl Future<Output = Result<(), HostError>>,
    ) -> Result<(), HostError> {
        let failed = |errno: rustix::io::Errno| {
            HostError::new("give CRIU the container's root", io::Error::from(errno))
        };
        // First: where mounts propagate, the new one would appear in both places.
        unmount(&self.criu_root, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).map_err(failed)?;
        mount.await?;
        mount_bind_recursive(&self.rootfs, &self.criu_root).map_err(failed)
    }

    /// Ends it, and waits until runc and the monitor have cleaned up.
    pub async fn give_up(mut self) {
        // One that is not held any more has ended, or ends with its connection.
        let _ = self.relay.abort().await;
        drop(self.relay);
        if tokio::time::timeout(REPLY, self.runc).await.is_err() {
            tracing::warn!(rootfs = %self.rootfs.display(), "a restore that is not needed any more does not end");
        }
    }
}

/// What fills the container's memory in, where it does not come inside the images.
async fn start_filler(runtime: &Runtime, begin: &Begin) -> Result<Option<FillerHandle>, HostError> {
    let Some(store_dir) = begin.store.clone() else {
        return Ok(None);
    };
    let request = FillRequest {
        program: runtime.filler.clone(),
        store_dir,
        images_dir: begin.images.clone(),
        work_dir: begin.work.clone(),
        mark: begin.paths.filling(),
        cgroup: Some(begin.paths.monitor_cgroup()),
        patience: SEED_IDLE + IMAGES,
    };
    let filler = Filler::start(&request, Instant::now() + REPLY).await;
    filler
        .map(Some)
        .map_err(|error| HostError::new("start the filler of the container's memory", error))
}

/// CRIU's reason where it has one.
pub fn restore_failed(work: &Path, error: RelayError) -> HostError {
    match error {
        RelayError::Ended { finished, .. } => HostError::new(
            "restore the container",
            RestoreError::explain(work, Some(&finished)),
        ),
        other => HostError::new("restore the container", other),
    }
}

/// What runc is told beyond what every restore has.
fn restore_options(images: &Path, work: &Path) -> Vec<OsString> {
    let mut options: Vec<OsString> = ["--tcp-established", "--file-locks"].map(OsString::from).to_vec();
    options.extend([
        "--image-path".into(),
        images.into(),
        "--work-path".into(),
        work.into(),
    ]);
    options
}

/// Why runc ended before CRIU had restored anything. CRIU's log has the better reason where there is one.
pub fn runc_ended(work: &Path, ended: Result<Started, StartError>) -> AnyError {
    let explained = RestoreError::explain(work, None);
    match ended {
        _ if !explained.lines.is_empty() => explained.into(),
        Err(error) => error.into(),
        Ok(_) => "runc did not ask CRIU for it".into(),
    }
}

/// The standard streams as a peer names them.
fn checked(standby: &Standby) -> Result<Vec<String>, AnyError> {
    let named = &standby.descriptors;
    if named.len() > MAX_DESCRIPTORS || named.iter().any(|name| name.len() > MAX_PATH_BYTES) {
        return Err("the source names more standard streams than there are, or longer".into());
    }
    Ok(named.clone())
}

fn read_descriptors(path: &Path) -> io::Result<Vec<String>> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// A container's standard streams as runc will note them at its dump; runc keeps them with the container's state.
///
/// # Errors
/// runc's state cannot be read.
pub fn of_source(runtime: &Runtime, container: &ContainerId) -> io::Result<Standby> {
    #[derive(serde::Deserialize)]
    struct State {
        external_descriptors: Vec<String>,
    }
    let path = runtime.runc_root.join(container.as_str()).join("state.json");
    let state: State = serde_json::from_slice(&fs::read(path)?)?;
    Ok(Standby {
        descriptors: state.external_descriptors,
        memory_in_images: false,
    })
}

#[cfg(test)]
mod tests {
    use super::checked;
    use tranship_proto::v1::Standby;

    #[test]
    fn more_streams_than_there_are_or_longer_ones_are_refused() {
        let standby = |count: usize, length: usize| Standby {
            descriptors: vec!["x".repeat(length); count],
            memory_in_images: false,
        };
        assert_eq!(checked(&standby(3, 4096)).unwrap().len(), 3);
        assert!(checked(&standby(4, 1)).is_err());
        assert!(checked(&standby(1, 4097)).is_err());
    }
}
