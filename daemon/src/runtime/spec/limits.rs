//! Limits of a container, as the OCI specification words them; runc translates for cgroup v1 and v2.

use serde_json::{Value, json};
use tranship_proto::v1::ContainerSpec;

use super::error::SpecError;

/// Tasks in one container. A fork bomb must leave the host enough pids to freeze, dump and kill what made it: this is an
/// eighth of the kernel's smallest default for `pid_max`, and many times what a database with its workers needs.
const MAX_TASKS: u64 = 4096;

/// The CPU quota's period, the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;

/// The kernel takes no quota below a millisecond.
const MIN_CPU_QUOTA_US: u64 = 1_000;

/// What runc itself needs in the cgroup to start a container, as in Docker.
const MIN_MEMORY_BYTES: u64 = 6 << 20;

/// Billionths of a CPU in one microsecond of quota.
const NANOS_PER_QUOTA_US: u64 = 1_000_000_000 / CPU_PERIOD_US;

/// The `linux.resources` of a container.
pub(super) fn resources(spec: &ContainerSpec) -> Result<Value, SpecError> {
    let mut resources = json!({
        // runc adds the devices every container has (null, zero, full, random, urandom, tty, ptmx and terminals).
        "devices": [{"allow": false, "access": "rwm"}],
        "pids": {"limit": MAX_TASKS},
    });
    if let Some(limit) = memory_limit(spec.memory_bytes)? {
        resources["memory"] = json!({"limit": limit});
    }
    if let Some(quota_us) = cpu_quota_us(spec.nano_cpus)? {
        resources["cpu"] = json!({"quota": quota_us, "period": CPU_PERIOD_US});
    }
    Ok(resources)
}

fn memory_limit(bytes: u64) -> Result<Option<i64>, SpecError> {
    match bytes {
        0 => Ok(None),
        given if given < MIN_MEMORY_BYTES => Err(SpecError::LimitTooLow {
            given,
            unit: "bytes of memory",
            least: MIN_MEMORY_BYTES,
        }),
        given => i64::try_from(given)
            .map(Some)
            .map_err(|_| SpecError::LimitTooHigh {
                given,
                unit: "bytes of memory",
                most: i64::MAX.unsigned_abs(),
            }),
    }
}

fn cpu_quota_us(nano_cpus: u64) -> Result<Option<i64>, SpecError> {
    let quota_us = nano_cpus / NANOS_PER_QUOTA_US;
    if nano_cpus == 0 {
        Ok(None)
    } else if quota_us < MIN_CPU_QUOTA_US {
        let least = MIN_CPU_QUOTA_US * NANOS_PER_QUOTA_US;
        Err(SpecError::LimitTooLow {
            given: nano_cpus,
            unit: "billionths of a CPU",
            least,
        })
    } else {
        let most = i64::MAX.unsigned_abs();
        i64::try_from(quota_us)
            .map(Some)
            .map_err(|_| SpecError::LimitTooHigh {
                given: nano_cpus,
                unit: "billionths of a CPU",
                most,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_cpu_is_half_a_period() {
        assert_eq!(cpu_quota_us(500_000_000).unwrap(), Some(50_000));
        assert_eq!(cpu_quota_us(0).unwrap(), None);
        assert!(cpu_quota_us(9_999_999).is_err());
        assert_eq!(cpu_quota_us(10_000_000).unwrap(), Some(1_000));
        assert!(cpu_quota_us(u64::MAX).is_ok(), "the quotient fits");
    }

    #[test]
    fn memory_limits_that_cannot_hold_runc_are_refused() {
        assert_eq!(memory_limit(0).unwrap(), None);
        assert!(memory_limit(1 << 20).is_err());
        assert_eq!(memory_limit(64 << 20).unwrap(), Some(64 << 20));
        assert!(memory_limit(u64::MAX).is_err());
    }

    #[test]
    fn without_limits_only_tasks_and_devices_are_bounded() {
        let resources = resources(&ContainerSpec::default()).unwrap();
        assert_eq!(resources["pids"]["limit"], 4096);
        assert_eq!(resources["devices"][0]["allow"], false);
        assert!(resources.get("memory").is_none() && resources.get("cpu").is_none());
    }
}
