//! The CPU time a container uses, and what it may use for as long as a migration has to slow it down.

use std::path::PathBuf;
use std::time::Duration;

use crate::cgroup::{self, CgroupError, CgroupVersion};

/// The period that quotas are given in, in microseconds: the kernel's default, and runc's.
const PERIOD_US: u64 = 100_000;

/// The least quota the kernel takes, in microseconds.
const MIN_QUOTA_US: u64 = 1_000;

/// Leaves a cgroup a tenth of what others get where they want the CPUs too: for work that nobody waits for.
pub fn yield_cpus(cgroup: &str) -> Result<(), CgroupError> {
    let directory = cgroup::directory(cgroup, "cpu")?;
    match CgroupVersion::detect() {
        CgroupVersion::V1 => cgroup::write(&directory.join("cpu.shares"), "102"),
        CgroupVersion::V2 => cgroup::write(&directory.join("cpu.weight"), "10"),
    }
}

/// Holds every task of a cgroup together to so many CPUs (0.5 is half of one); `None` takes the limit away. The cgroup's
/// own limit, if it has one, is the caller's to put back.
pub fn limit_cpus(cgroup: &str, cpus: Option<f64>) -> Result<(), CgroupError> {
    let directory = cgroup::directory(cgroup, "cpu")?;
    let quota_us = cpus.map(|cpus| ((cpus * PERIOD_US as f64) as u64).max(MIN_QUOTA_US));
    match CgroupVersion::detect() {
        CgroupVersion::V1 => {
            cgroup::write(&directory.join("cpu.cfs_period_us"), &PERIOD_US.to_string())?;
            let quota = quota_us.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
            cgroup::write(&directory.join("cpu.cfs_quota_us"), &quota)
        }
        CgroupVersion::V2 => {
            let quota = quota_us.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            cgroup::write(&directory.join("cpu.max"), &format!("{quota} {PERIOD_US}"))
        }
    }
}

/// The CPU time that all tasks of a cgroup together have used.
pub fn cpu_time(cgroup: &str) -> Result<Duration, CgroupError> {
    match CgroupVersion::detect() {
        CgroupVersion::V1 => {
            let path = cgroup::directory(cgroup, "cpuacct")?.join("cpuacct.usage");
            let text = cgroup::read(&path)?;
            parse(&text)
                .map(Duration::from_nanos)
                .ok_or_else(|| strange(path, &text))
        }
        CgroupVersion::V2 => {
            let path = cgroup::directory(cgroup, "cpu")?.join("cpu.stat");
            let text = cgroup::read(&path)?;
            usage_us(&text)
                .map(Duration::from_micros)
                .ok_or_else(|| strange(path, &text))
        }
    }
}

/// The line of a version 2 `cpu.stat` that is about all of it.
fn usage_us(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("usage_usec "))
        .and_then(parse)
}

fn parse(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

fn strange(path: PathBuf, text: &str) -> CgroupError {
    let text = text.lines().next().unwrap_or_default().to_owned();
    CgroupError::Content { path, text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_usage_is_found_among_the_others() {
        let stat = "nr_periods 3\nusage_usec 4200\nuser_usec 4000\nsystem_usec 200\n";
        assert_eq!(usage_us(stat), Some(4200));
        assert_eq!(usage_us("user_usec 4000\n"), None);
    }
}
