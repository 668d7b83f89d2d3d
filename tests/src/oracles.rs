//! Judges that know nothing of how the work was done: is anything left behind, are two trees the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::command;
use crate::testbed::{Host, Testbed};

/// How deep a host's disk is looked into: below are the contents of layers and volumes.
const DISK_DEPTH: usize = 4;

/// How deep a host's `/run` is looked into: below may be a container's root.
const RUN_DEPTH: usize = 5;

/// Things that come and go without anybody's fault: caches of the tools, the database's own files.
const IGNORED: [&str; 6] = [
    "/run/criu.kdat",
    "/run/xtables.lock",
    "/run/lock",
    "/run/blkid",
    "/run/mount",
    "registry.db",
];

/// What there is on the hosts of a testbed, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    lines: BTreeSet<String>,
}

impl Inventory {
    /// Counts everything that a container or a migration could leave behind: mounts, links, nftables rules, cgroups and
    /// their limits of CPU time, processes, network namespaces, files in run directories and on disks, loop devices.
    ///
    /// # Errors
    /// A host cannot be looked into.
    pub fn take(bed: &Testbed) -> Result<Self> {
        let mut lines = BTreeSet::new();
        for host in bed.hosts() {
            let name = host.name();
            let found = look_into(host).with_context(|| format!("cannot take stock of host {name}"))?;
            lines.extend(found.into_iter().map(|line| format!("{name}: {line}")));
        }
        let devices = command::succeed(
            &mut command::command("losetup", ["-n", "-O", "NAME,BACK-FILE"]),
            command::SHORT,
        )?;
        let disks = bed.layout().disks();
        let ours = |line: &&str| line.contains(&*disks.to_string_lossy());
        lines.extend(
            devices
                .text()
                .lines()
                .filter(ours)
                .map(|line| format!("loop device {line}")),
        );
        Ok(Self { lines })
    }

    /// What is there now and was not, and the other way round.
    #[must_use]
    pub fn changes(&self, later: &Self) -> Vec<String> {
        let left = later
            .lines
            .difference(&self.lines)
            .map(|line| format!("left behind: {line}"));
        let lost = self
            .lines
            .difference(&later.lines)
            .map(|line| format!("gone: {line}"));
        left.chain(lost).collect()
    }

    /// Checks that everything is as it was when this inventory was taken; what is undone in the background gets 10 s.
    ///
    /// # Errors
    /// It is not; the message lists the differences.
    pub fn expect_unchanged(&self, bed: &Testbed) -> Result<()> {
        self.expect_unchanged_but(bed, |_| false)
    }

    /// As [`Inventory::expect_unchanged`], but for lines that may have changed.
    ///
    /// # Errors
    /// As [`Inventory::expect_unchanged`].
    pub fn expect_unchanged_but(&self, bed: &Testbed, may_change: impl Fn(&str) -> bool) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let mut changes = self.changes(&Self::take(bed)?);
            changes.retain(|line| !may_change(line));
            if changes.is_empty() {
                return Ok(());
            }
            if Instant::now() >= end {
                let differences = changes.join("\n  ");
                bail!(
                    "the hosts are not as they were:\n  {differences}\n{}",
                    processes_now(bed)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// What a message about processes that stayed needs: whose children they are, and whether they live.
fn processes_now(bed: &Testbed) -> String {
    let table = |host: &Host| {
        let columns = ["-e", "-o", "pid,ppid,state,wchan:20,etimes,args"];
        let shown = host
            .run("ps", columns)
            .map_or_else(|error| format!("{error:#}"), |output| output.text());
        format!("processes of host {}:\n{shown}", host.name())
    };
    bed.hosts().iter().map(table).collect::<Vec<_>>().join("\n")
}

fn look_into(host: &Host) -> Result<Vec<String>> {
    let mut lines = mounts(host)?;
    lines.extend(links(host)?);
    let rules = host.run("nft", ["list", "ruleset"])?.text();
    lines.extend(counted(
        rules.lines().map(|line| format!("nftables {}", line.trim())),
    ));
    let cgroups = cgroups(host);
    lines.extend(cgroups.iter().map(|path| format!("cgroup {}", path.display())));
    lines.extend(cgroups.iter().filter_map(|path| {
        let quota = cpu_quota(path)?;
        Some(format!("limit of {} to {quota} us of CPU time", path.display()))
    }));
    lines.extend(processes(host)?);
    let mut files = Vec::new();
    list(&host.path("/run"), Path::new("/run"), RUN_DEPTH, &mut files);
    // As the host sees it, which may have a disk of its own there.
    let disk = host.layout.disk(host.name());
    list(&host.path(&disk), &disk, DISK_DEPTH, &mut files);
    lines.extend(files);
    Ok(lines)
}

fn mounts(host: &Host) -> Result<Vec<String>> {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", host.holder.pid))?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(counted(points.map(|point| format!("mount {point}"))))
}

fn links(host: &Host) -> Result<Vec<String>> {
    let links = host.run("ip", ["-o", "link"])?.text();
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    Ok(names
        .map(|name| format!("link {}", name.split('@').next().unwrap_or(name)))
        .collect())
}

/// The host's cgroups, in every hierarchy.
pub(crate) fn cgroups(host: &Host) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut roots = vec![PathBuf::from("/sys/fs/cgroup")];
    roots.extend(
        fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path()),
    );
    for root in roots {
        let own = root.join(host.layout.cgroup()).join(host.name());
        found.extend(folders_below(&own));
    }
    found
}

/// The CPU time that a container of this host may use in each period, in microseconds; nothing if that is not limited.
///
/// # Errors
/// The container has no cgroup here.
pub fn cpu_limit(host: &Host, container_id: &str) -> Result<Option<u64>> {
    let own = cgroups_of(host, container_id)?;
    Ok(own.iter().find_map(|path| cpu_quota(path)))
}

/// Whether the tasks of a container of this host stand still.
///
/// # Errors
/// The container has no cgroup here.
pub fn is_frozen(host: &Host, container_id: &str) -> Result<bool> {
    let own = cgroups_of(host, container_id)?;
    Ok(own.iter().any(|path| {
        let says = |file, word| fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim() == word);
        says("freezer.state", "FROZEN") || says("cgroup.freeze", "1")
    }))
}

fn cgroups_of(host: &Host, container_id: &str) -> Result<Vec<PathBuf>> {
    let mut own = cgroups(host);
    own.retain(|path| path.file_name().is_some_and(|name| name == container_id));
    ensure!(
        !own.is_empty(),
        "container {container_id} has no cgroup on {}",
        host.name()
    );
    Ok(own)
}

/// What a cgroup limits CPU time to. A file that is not there, or says -1 or `max`, is no limit.
fn cpu_quota(cgroup: &Path) -> Option<u64> {
    let v1 = fs::read_to_string(cgroup.join("cpu.cfs_quota_us"));
    let text = v1.or_else(|_| fs::read_to_string(cgroup.join("cpu.max"))).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn folders_below(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let folders = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path());
    folders
        .flat_map(|folder| {
            let mut below = folders_below(&folder);
            below.push(folder);
            below
        })
        .collect()
}

/// The host's processes by name, and the network namespaces they are in.
fn processes(host: &Host) -> Result<Vec<String>> {
    let proc = host.path("/proc");
    let mut names = Vec::new();
    let mut namespaces = BTreeSet::new();
    for entry in fs::read_dir(&proc)? {
        let entry = entry?.path();
        let is_process = entry
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.parse::<u32>().is_ok());
        // One that ends while we look is none of the things that stay.
        let Ok(name) = fs::read_to_string(entry.join("comm")) else {
            continue;
        };
        if is_process {
            names.push(format!("process {}", name.trim()));
            namespaces.extend(fs::read_link(entry.join("ns/net")).ok());
        }
    }
    names.push(format!("{} network namespaces with processes", namespaces.len()));
    Ok(counted(names.into_iter()))
}

fn list(path: &Path, shown: &Path, depth: usize, found: &mut Vec<String>) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let name = shown.join(entry.file_name());
        let text = name.to_string_lossy();
        if IGNORED.iter().any(|ignored| text.contains(ignored)) {
            continue;
        }
        found.push(format!("file {text}"));
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), &name, depth - 1, found);
        }
    }
}

/// Equal lines told apart by their number, so that a second one shows.
fn counted(lines: impl Iterator<Item = String>) -> Vec<String> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort();
    let mut number = 0;
    let mut last = String::new();
    lines
        .into_iter()
        .map(|line| {
            number = if line == last { number + 1 } else { 1 };
            last.clone_from(&line);
            if number == 1 {
                line
            } else {
                format!("{line} ({number})")
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inventory(lines: &[&str]) -> Inventory {
        Inventory {
            lines: counted(lines.iter().map(|line| (*line).to_owned()))
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn a_second_mount_of_the_same_place_shows() {
        let changes = inventory(&["mount /run"]).changes(&inventory(&["mount /run", "mount /run"]));
        assert_eq!(changes, ["left behind: mount /run (2)"]);
    }

    #[test]
    fn what_went_away_shows_too() {
        assert_eq!(
            inventory(&["process transhipd"]).changes(&inventory(&[])),
            ["gone: process transhipd"]
        );
    }
}
