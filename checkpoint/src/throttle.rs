//! The CPU time a container may use, for as long as a migration has to slow it down.

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
