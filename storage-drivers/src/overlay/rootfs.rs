//! Root file systems: what they stand on, and how they are mounted.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use serde::{Deserialize, Serialize};
use tranship_proto::ids::{ContainerId, Digest};

use super::mount::OverlayMount;
use super::mountinfo::{MountEntry, mounts, topmost};
use super::pool::{Pool, make_directory};
use super::remove::remove_tree;
use crate::driver::{DriverError, Outcome};
use crate::tree;

pub(super) const UPPER: &str = "upper";
const WORK: &str = "work";
const RECORD: &str = "rootfs.json";

/// What is written down about a root file system.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    /// The lowest first, as they were given.
    pub(super) layers: Vec<Digest>,
}

impl Record {
    pub(super) fn read(pool: &Pool, id: &ContainerId) -> Result<Self, DriverError> {
        let path = pool.rootfs(id).join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(DriverError::NoRootfs(id.clone()));
            }
            Err(error) => return Err(DriverError::io("read", &path, error)),
        };
        serde_json::from_slice(&text).map_err(|source| DriverError::Record { path, source })
    }

    fn write(&self, directory: &Path) -> Result<(), DriverError> {
        let path = directory.join(RECORD);
        let text = serde_json::to_vec(self).map_err(|source| DriverError::Record {
            path: path.clone(),
            source,
        })?;
        File::create_new(&path)
            .and_then(|mut file| file.write_all(&text))
            .map_err(|e| DriverError::io("write", &path, e))
    }
}

pub(super) fn all(pool: &Pool) -> Result<Vec<ContainerId>, DriverError> {
    pool.rootfs_ids()
}

pub(super) fn create(pool: &Pool, id: &ContainerId, layers: &[Digest]) -> Result<Outcome, DriverError> {
    match Record::read(pool, id) {
        Ok(record) if record.layers == layers => return Ok(Outcome::Unchanged),
        Ok(_) => return Err(DriverError::OtherLayers(id.clone())),
        Err(DriverError::NoRootfs(_)) => {}
        Err(error) => return Err(error),
    }
    for layer in layers {
        if !pool.is_there(&pool.layer(layer))? {
            return Err(DriverError::NoLayer(layer.clone()));
        }
    }
    let staged = pool.stage(pool.rootfs(id))?;
    let upper = staged.path().join(UPPER);
    make_directory(&upper, 0o755)?;
    if let Some(top) = layers.last() {
        // The root directory that the container sees is the upper one: owner and mode come from the image.
        let top = pool.layer(top);
        tree::copy_attributes(&top, &upper)
            .map_err(|e| DriverError::io("copy the owner and mode of", &top, e))?;
    }
    Record {
        layers: layers.to_vec(),
    }
    .write(staged.path())?;
    staged.commit()
}

pub(super) fn mount(pool: &Pool, id: &ContainerId, target: &Path) -> Result<Outcome, DriverError> {
    let record = Record::read(pool, id)?;
    let target = target
        .canonicalize()
        .map_err(|e| DriverError::io("mount on", target, e))?;
    let upper = pool.rootfs(id).join(UPPER);
    let mounts = mount_table()?;
    if let Some(there) = topmost(&mounts, &target) {
        return if is_of(there, &upper) {
            Ok(Outcome::Unchanged)
        } else {
            Err(taken(there))
        };
    }
    if let Some(elsewhere) = mounts.iter().find(|mount| is_of(mount, &upper)) {
        return Err(DriverError::Mounted {
            container: id.clone(),
            target: elsewhere.target.clone(),
        });
    }
    let work = pool.rootfs(id).join(WORK);
    if pool.is_there(&work)? {
        remove_tree(&work).map_err(|e| DriverError::io("remove", &work, e))?;
    }
    make_directory(&work, 0o700)?;
    let lower = lower_directories(pool, &record.layers)?;
    OverlayMount {
        lower: &lower,
        upper: &upper,
        work: &work,
    }
    .attach(&target)
    .map_err(|e| DriverError::Mount {
        target,
        explanation: e.explanation,
        source: e.source,
    })?;
    Ok(Outcome::Changed)
}

pub(super) fn unmount(pool: &Pool, id: &ContainerId, target: &Path) -> Result<Outcome, DriverError> {
    let target = match target.canonicalize() {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Unchanged),
        Err(error) => return Err(DriverError::io("unmount", target, error)),
    };
    let mounts = mount_table()?;
    let Some(there) = topmost(&mounts, &target) else {
        return Ok(Outcome::Unchanged);
    };
    if !is_of(there, &pool.rootfs(id).join(UPPER)) {
        return Err(taken(there));
    }
    // Detached: whoever still has a file of it open keeps that file, and nobody else can reach it.
    rustix::mount::unmount(&target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
        .map_err(|e| DriverError::io("unmount", &target, e))?;
    Ok(Outcome::Changed)
}

pub(super) fn remove(pool: &Pool, id: &ContainerId) -> Result<Outcome, DriverError> {
    let upper = pool.rootfs(id).join(UPPER);
    if let Some(mount) = mount_table()?.into_iter().find(|mount| is_of(mount, &upper)) {
        return Err(DriverError::Mounted {
            container: id.clone(),
            target: mount.target,
        });
    }
    pool.remove(&pool.rootfs(id))
}

/// The topmost first. A layer that comes twice is taken once, where it is higher: all it says is said again there, and
/// the kernel refuses the same directory twice.
fn lower_directories(pool: &Pool, layers: &[Digest]) -> Result<Vec<PathBuf>, DriverError> {
    let mut lower: Vec<PathBuf> = Vec::with_capacity(layers.len());
    for layer in layers.iter().rev() {
        let path = pool.layer(layer);
        if !pool.is_there(&path)? {
            return Err(DriverError::NoLayer(layer.clone()));
        }
        if !lower.contains(&path) {
            lower.push(path);
        }
    }
    if lower.is_empty() {
        lower.push(pool.empty());
    }
    Ok(lower)
}

fn mount_table() -> Result<Vec<MountEntry>, DriverError> {
    mounts().map_err(|e| DriverError::io("read", Path::new("/proc/thread-self/mountinfo"), e))
}

fn is_of(mount: &MountEntry, upper: &Path) -> bool {
    mount.kind == "overlay" && mount.path_option("upperdir").is_some_and(|shown| shown == upper)
}

fn taken(mount: &MountEntry) -> DriverError {
    let what = format!("{} from {}", mount.kind, mount.source);
    DriverError::TargetTaken {
        target: mount.target.clone(),
        what,
    }
}
