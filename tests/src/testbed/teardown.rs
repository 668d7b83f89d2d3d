//! Removes a testbed, or whatever is left of one.
//!
//! Order matters: a process in a frozen cgroup does not die of SIGKILL, so cgroups are thawed first; a cgroup, a mount or a
//! loop device can only go when no process of a host is left. Each step goes on after a failure; what could not be removed
//! is the answer.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use super::holder::Holder;
use super::layout::Layout;
use super::pool;
use crate::command;

const CGROUPS: &str = "/sys/fs/cgroup";

/// For each thing that the kernel frees some time after its last user.
const PATIENCE: Duration = Duration::from_secs(10);

/// What there is of a testbed, in words.
///
/// # Errors
/// `/proc` cannot be read.
pub fn traces(layout: &Layout) -> Result<Vec<String>> {
    let mut traces = Vec::new();
    let holders = Holder::find(layout)?;
    if !holders.is_empty() {
        let names: Vec<_> = holders.iter().map(|holder| holder.name.as_str()).collect();
        traces.push(format!("hosts {} are up", names.join(" ")));
    }
    let paths = [layout.record(), layout.disks()];
    traces.extend(
        paths
            .iter()
            .filter(|path| path.exists())
            .map(|path| format!("{} exists", path.display())),
    );
    traces.extend(
        cgroup_roots(layout)
            .iter()
            .map(|path| format!("{} exists", path.display())),
    );
    Ok(traces)
}

/// Removes everything, and answers what could not be removed.
#[must_use]
pub fn remove_all(layout: &Layout) -> Vec<String> {
    let mut left = Vec::new();
    let roots = cgroup_roots(layout);
    for root in &roots {
        thaw(root);
    }
    match Holder::find(layout) {
        Ok(holders) => {
            let failed = holders.iter().filter_map(|holder| holder.kill(PATIENCE).err());
            left.extend(failed.map(|error| format!("{error:#}")));
        }
        Err(error) => left.push(format!("the hosts: {error:#}")),
    }
    for root in &roots {
        left.extend(until_gone(|| remove_cgroup(root)).err());
    }
    left.extend(until_gone(|| no_loop_devices(layout)).err());
    // Files in use are still removed, so anything that failed above must be said, not retried.
    left.extend(remove_folder(&layout.disks()).err());
    left.extend(remove_own_files(layout).err());
    left
}

/// The testbed's cgroup in each hierarchy that has it.
fn cgroup_roots(layout: &Layout) -> Vec<PathBuf> {
    let mut parents = vec![PathBuf::from(CGROUPS)];
    let entries = fs::read_dir(CGROUPS).into_iter().flatten().flatten();
    // Hierarchies of v1 are folders, or links to the folder that holds two of them.
    parents.extend(
        entries
            .filter(|entry| !entry.file_type().is_ok_and(|kind| kind.is_symlink()))
            .map(|e| e.path()),
    );
    parents
        .into_iter()
        .map(|parent| parent.join(layout.cgroup()))
        .filter(|path| path.is_dir())
        .collect()
}

fn thaw(cgroup: &Path) {
    for (file, word) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
        let path = cgroup.join(file);
        if path.exists() {
            // The root of the v1 hierarchy and a cgroup that has just gone refuse; nothing is frozen there.
            let _ = fs::write(path, word);
        }
    }
    for child in folders(cgroup) {
        thaw(&child);
    }
}

fn remove_cgroup(cgroup: &Path) -> Result<(), String> {
    for child in folders(cgroup) {
        remove_cgroup(&child)?;
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let pids = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
            let pids = pids.split_whitespace().collect::<Vec<_>>().join(" ");
            Err(format!("{}: {error} (processes in it: {pids})", cgroup.display()))
        }
        _ => Ok(()),
    }
}

fn no_loop_devices(layout: &Layout) -> Result<(), String> {
    for disk in folders(&layout.disks()) {
        let image = pool::image(&disk.join("pool"));
        if !image.exists() {
            continue;
        }
        let mut losetup = command::command("losetup", ["--noheadings", "--output", "NAME", "--associated"]);
        let devices =
            command::succeed(losetup.arg(&image), command::SHORT).map_err(|error| format!("{error:#}"))?;
        if let Some(device) = devices.text().lines().next() {
            return Err(format!("{}: still holds {}", device.trim(), image.display()));
        }
    }
    Ok(())
}

/// Removes what the testbed put into its directory, and the directory when nothing else is in it.
fn remove_own_files(layout: &Layout) -> Result<(), String> {
    let dir = layout.dir();
    let Ok(entries) = fs::read_dir(dir) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_host = |name: &str| super::layout::address(name).is_some();
        let Some(name) = name.to_str() else { continue };
        if path == layout.record() || name.strip_suffix(".sock").is_some_and(is_host) {
            gone(fs::remove_file(&path), &path)?;
        } else if is_host(name) {
            remove_folder(&path)?;
        }
    }
    gone(fs::remove_dir(dir), dir)
}

fn remove_folder(path: &Path) -> Result<(), String> {
    gone(fs::remove_dir_all(path), path)
}

/// A testbed may be taken down twice at once: by a signal and by the failure that it caused. What the other has removed is
/// gone too.
fn gone(removed: std::io::Result<()>, path: &Path) -> Result<(), String> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(format!("{}: {error}", path.display())),
        _ => Ok(()),
    }
}

fn folders(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Tries again for a while; the last reason is the answer.
fn until_gone(attempt: impl Fn() -> Result<(), String>) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    loop {
        let outcome = attempt();
        if outcome.is_ok() || Instant::now() >= end {
            return outcome;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
