//! What a container has of this host's CPUs while it is moved.

use std::time::{Duration, Instant};

use tranship_checkpoint::cgroup::CgroupError;
use tranship_checkpoint::throttle::{cpu_time, limit_cpus};
use tranship_migrate::error::HostError;

/// A container whose CPU time is measured, so that it can be held to a part of it.
///
/// A part of what it may use would mean nothing: one busy thread on 64 CPUs would never feel it.
#[derive(Debug)]
pub struct CpuShare {
    cgroup: String,
    since: Instant,
    used: Duration,
    /// CPUs that it used before it was slowed down for the first time.
    before: Option<f64>,
}

impl CpuShare {
    /// Measures from now on.
    ///
    /// # Errors
    /// The container's cgroup says so.
    pub fn measure(cgroup: &str) -> Result<Self, HostError> {
        let used =
            cpu_time(cgroup).map_err(|error| HostError::new("read the container's CPU time", error))?;
        Ok(Self {
            cgroup: cgroup.to_owned(),
            since: Instant::now(),
            used,
            before: None,
        })
    }

    /// Whether it was ever slowed down.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.before.is_some()
    }

    /// Holds the container to so many percent of what it has used until it was slowed down first.
    ///
    /// # Errors
    /// Its cgroup says so.
    pub fn hold_to(&mut self, percent: u8) -> Result<(), HostError> {
        let failed = |error: CgroupError| HostError::new("limit the container's CPU time", error);
        let before = match self.before {
            Some(before) => before,
            None => {
                let used = cpu_time(&self.cgroup).map_err(failed)?.saturating_sub(self.used);
                used.as_secs_f64() / self.since.elapsed().as_secs_f64().max(f64::EPSILON)
            }
        };
        self.before = Some(before);
        limit_cpus(&self.cgroup, Some(before * f64::from(percent) / 100.0)).map_err(failed)
    }
}

/// Gives a container back what it may use: what it was run with, or everything. One that has ended needs nothing.
///
/// # Errors
/// Its cgroup says so.
pub fn full_speed(cgroup: &str, nano_cpus: u64) -> Result<(), HostError> {
    let own = (nano_cpus > 0).then(|| nano_cpus as f64 / 1e9);
    match limit_cpus(cgroup, own) {
        Err(CgroupError::Missing { .. }) | Ok(()) => Ok(()),
        Err(error) => Err(HostError::new("give the container its CPU time back", error)),
    }
}
