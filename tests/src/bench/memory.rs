//! The most memory that a daemon has had since it was last asked to forget.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::testbed::{Host, daemon};

/// What proc(5) takes for "begin the peak of the resident set anew".
const RESET_PEAK: &str = "5";

/// Lets the daemon of a host forget its peak.
///
/// # Errors
/// It does not run.
pub fn reset_peak(host: &Host) -> Result<()> {
    let path = of_daemon(host, "clear_refs")?;
    fs::write(&path, RESET_PEAK).with_context(|| format!("cannot write {}", path.display()))
}

/// The peak of the resident set of a host's daemon since then, in bytes.
///
/// # Errors
/// It does not run.
pub fn peak(host: &Host) -> Result<u64> {
    let path = of_daemon(host, "status")?;
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    kib_of(&status, "VmHWM")
        .map(|kib| kib << 10)
        .with_context(|| format!("no VmHWM in {}", path.display()))
}

fn of_daemon(host: &Host, file: &str) -> Result<PathBuf> {
    let pid = daemon::pid(host).with_context(|| format!("transhipd does not run on host {}", host.name()))?;
    Ok(host.path(format!("/proc/{pid}/{file}")))
}

fn kib_of(status: &str, name: &str) -> Option<u64> {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(key, _)| *key == name)?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_read_in_kib() {
        let status = "Name:\ttranshipd\nVmPeak:\t  9 kB\nVmHWM:\t   51234 kB\n";
        assert_eq!(kib_of(status, "VmHWM"), Some(51234));
        assert_eq!(kib_of(status, "VmSwap"), None);
    }
}
