//! A host is switched off: nothing that ran or was in memory is left, what was on its disk is. Its kernel is the machine's, so what
//! a real one would have lost by itself is removed one by one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{self, SHORT, command};
use crate::oracles::cgroups;
use crate::testbed::{Host, Testbed, daemon, pool};
use crate::tranship::wait_for;

/// What a host has in memory, as it names it itself.
const IN_MEMORY: &str = "/run/tranship";

/// Until everything has ended.
const ENDING: Duration = Duration::from_secs(10);

/// Switches a host off. It is on again with the next start of its daemon.
///
/// # Errors
/// Something of it cannot be ended or removed.
pub fn switch_off(host: &Host) -> Result<()> {
    let networks = networks(host)?;
    // Everything but the host's first process and the shell that does it.
    host.run("sh", ["-c", "kill -KILL -1"])?;
    // A signal does not reach what is frozen.
    for cgroup in cgroups(host) {
        fs::write(cgroup.join("freezer.state"), "THAWED").ok();
        fs::write(cgroup.join("cgroup.freeze"), "0").ok();
    }
    wait_for("everything on the host to end", ENDING, || {
        Ok(daemon::pid(host).is_none() && cgroups(host).iter().all(|cgroup| is_empty(cgroup)))
    })?;
    for network in networks {
        forget_connections(&network)?;
    }
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", host.holder.pid))?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut points: Vec<_> = points.filter(|point| is_below(point, IN_MEMORY)).collect();
    points.reverse();
    for point in points {
        host.run("umount", ["-l", point])?;
    }
    let memory = host.path(IN_MEMORY);
    for entry in fs::read_dir(&memory).with_context(|| format!("cannot read {}", memory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    let mut left = cgroups(host);
    left.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    for cgroup in left {
        fs::remove_dir(&cgroup).with_context(|| format!("cannot remove {}", cgroup.display()))?;
    }
    Ok(())
}

/// Cuts the power of hosts, one after the other, whose disks are of the kind [`PoolKind::Cut`](crate::testbed::PoolKind::Cut): what was
/// not brought to the disk is gone as well. Nobody hears of what a host does between the copy of its disk and its end. They are on again
/// with the next start of their daemons.
///
/// # Errors
/// As [`switch_off`]; a disk is of another kind.
pub fn cut(bed: &Testbed, hosts: &[&Host]) -> Result<()> {
    for host in hosts {
        bed.set_link(host.name(), false)?;
        pool::copy_disk(host)?;
    }
    for host in hosts {
        switch_off(host)?;
        pool::use_copy(host)?;
        bed.set_link(host.name(), true)?;
    }
    Ok(())
}

/// The networks of a host and of the containers on it.
fn networks(host: &Host) -> Result<Vec<File>> {
    let lists = cgroups(host).into_iter().map(|cgroup| {
        // One that has gone meanwhile has nothing.
        fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default()
    });
    let pids = lists.collect::<String>();
    let own = host.holder.pid.to_string();
    let mut found = BTreeMap::new();
    for pid in pids.lines().chain([own.as_str()]) {
        if let Ok(network) = File::open(format!("/proc/{pid}/ns/net")) {
            found.insert(network.metadata()?.ino(), network);
        }
    }
    Ok(found.into_values().collect())
}

/// What a process has sent, and nobody has confirmed, the kernel goes on sending when the process has ended: also behind a link that was
/// down then and is up again.
fn forget_connections(network: &File) -> Result<()> {
    let path = format!("--net=/proc/{}/fd/{}", std::process::id(), network.as_raw_fd());
    command::succeed(
        &mut command("nsenter", [&path, "ss", "--kill", "--tcp", "--all"]),
        SHORT,
    )?;
    Ok(())
}

fn is_below(point: &str, directory: &str) -> bool {
    Path::new(point).starts_with(directory) && point != directory
}

fn is_empty(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.procs")).is_ok_and(|text| text.trim().is_empty())
}
