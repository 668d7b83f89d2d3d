//! What a container may not do: capabilities it keeps, parts of /proc and /sys it does not see or cannot write. The same as
//! Docker's users get, and the same on every host, so that a container is not less confined where it arrives.

use std::collections::BTreeSet;

use super::error::SpecError;

/// What root in a container keeps.
const DEFAULT_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All others.
const OTHER_CAPABILITIES: &[&str] = &[
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_READ",
    "CAP_BLOCK_SUSPEND",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_NET_ADMIN",
    "CAP_NET_BROADCAST",
    "CAP_PERFMON",
    "CAP_SYSLOG",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_MODULE",
    "CAP_SYS_NICE",
    "CAP_SYS_PACCT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_WAKE_ALARM",
];

/// Hidden: they show the whole machine, or let a guess at its secrets be made.
pub(super) const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Visible, and not to be written.
pub(super) const READ_ONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The capabilities of a container that asked for some more and some less. `ALL` means every one; dropping wins over
/// adding one by name, and adding `ALL` leaves what is dropped by name.
pub(super) fn capabilities(add: &[String], drop: &[String]) -> Result<BTreeSet<&'static str>, SpecError> {
    let added = Selection::parse(add)?;
    let dropped = Selection::parse(drop)?;
    let mut kept: BTreeSet<&'static str> = DEFAULT_CAPABILITIES.iter().copied().collect();
    if dropped.all {
        kept.clear();
    }
    if added.all {
        kept.extend(DEFAULT_CAPABILITIES.iter().chain(OTHER_CAPABILITIES));
    }
    kept.extend(&added.named);
    kept.retain(|name| !dropped.named.contains(name));
    Ok(kept)
}

struct Selection {
    all: bool,
    named: BTreeSet<&'static str>,
}

impl Selection {
    fn parse(words: &[String]) -> Result<Self, SpecError> {
        let mut selection = Self {
            all: false,
            named: BTreeSet::new(),
        };
        for word in words {
            if word.eq_ignore_ascii_case("ALL") {
                selection.all = true;
            } else {
                selection.named.insert(known(word)?);
            }
        }
        Ok(selection)
    }
}

fn known(word: &str) -> Result<&'static str, SpecError> {
    let upper = word.to_ascii_uppercase();
    let wanted = upper.strip_prefix("CAP_").unwrap_or(&upper);
    DEFAULT_CAPABILITIES
        .iter()
        .chain(OTHER_CAPABILITIES)
        .find(|name| name.strip_prefix("CAP_") == Some(wanted))
        .copied()
        .ok_or_else(|| SpecError::UnknownCapability(word.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn the_default_is_fourteen_and_never_administration() {
        let kept = capabilities(&[], &[]).unwrap();
        assert_eq!(kept.len(), 14);
        assert!(!kept.contains("CAP_SYS_ADMIN") && !kept.contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn names_are_taken_with_and_without_prefix_in_any_case() {
        let kept = capabilities(&words(&["net_admin", "CAP_SYS_TIME"]), &words(&["Mknod"])).unwrap();
        assert!(
            kept.contains("CAP_NET_ADMIN") && kept.contains("CAP_SYS_TIME") && !kept.contains("CAP_MKNOD")
        );
        assert!(matches!(
            capabilities(&words(&["flying"]), &[]),
            Err(SpecError::UnknownCapability(_))
        ));
    }

    #[test]
    fn all_can_be_dropped_and_some_kept() {
        let kept = capabilities(&words(&["CHOWN"]), &words(&["all"])).unwrap();
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), ["CAP_CHOWN"]);
        let nearly_all = capabilities(&words(&["ALL"]), &words(&["SYS_ADMIN"])).unwrap();
        assert_eq!(nearly_all.len(), 40);
    }
}
