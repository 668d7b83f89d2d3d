//! The options that the relay sets, whatever runc has asked for, and why.

use super::cpu::CAPABILITY_BITS;
use super::rpc::{Setting, option};
use super::wire::Operation;

/// Deleted files up to this size travel inside the images. CRIU's own limit of 1 MiB refuses everyday databases, which
/// keep deleted temporary files open; 256 MiB still fits the tmpfs that holds the images, and more would have to be
/// copied while the tree is frozen.
pub const GHOST_LIMIT_BYTES: u64 = 256 << 20;

/// Warnings and errors. Each further level costs milliseconds of the blackout and megabytes of log on larger trees.
pub const LOG_LEVEL: u64 = 2;

/// `network_lock`: 3 leaves the packets alone. The daemon has cut the network already, and CRIU's own lock forks
/// iptables several times and leaves its rules behind when it fails.
const NETWORK_LOCK_SKIP: u64 = 3;

/// `manage_cgroups_mode`: 0 ignores cgroups. runc has made the container's cgroup and moved CRIU into it, so restored
/// tasks are born there; paths differ between source and destination, which every other mode trips over.
const MANAGE_CGROUPS_IGNORE: u64 = 0;

/// The settings for an operation; `log_level` overrides [`LOG_LEVEL`].
pub fn settings(operation: Operation, log_level: Option<u64>) -> Vec<Setting> {
    let set = |number, value| Setting { number, value };
    let mut settings = vec![
        set(option::NETWORK_LOCK, NETWORK_LOCK_SKIP),
        set(option::MANAGE_CGROUPS, 0),
        set(option::MANAGE_CGROUPS_MODE, MANAGE_CGROUPS_IGNORE),
        set(option::LOG_LEVEL, log_level.unwrap_or(LOG_LEVEL)),
        // Clients stay connected, and a workload that holds a lock holds it afterwards.
        set(option::TCP_ESTABLISHED, 1),
        set(option::FILE_LOCKS, 1),
        // A device node may be reachable under another path than the one it was opened by.
        set(option::EVASIVE_DEVICES, 1),
        set(option::GHOST_LIMIT, GHOST_LIMIT_BYTES),
    ];
    if operation == Operation::Dump {
        // An unlinked file that has another name left gets a temporary link in its own directory, which the restore
        // wants to find and removes. CRIU takes it away again when the dump is released: files that travel must be
        // copied while the dump is held at its barrier.
        settings.push(set(option::LINK_REMAP, 1));
        // A client in the middle of its handshake sends again; it must not veto the move of all others.
        settings.push(set(option::TCP_SKIP_IN_FLIGHT, 1));
        settings.push(compare_cpu());
    }
    settings
}

/// Describes the CPU in the images of a dump; has a restore of images with such a description refuse a CPU that can do less,
/// on which a task would be killed at its next instruction that is missing, or its registers could not be loaded.
pub fn compare_cpu() -> Setting {
    Setting {
        number: option::CPU_CAP,
        value: CAPABILITY_BITS,
    }
}

#[cfg(test)]
mod tests {
    use super::{GHOST_LIMIT_BYTES, settings};
    use crate::criu::rpc::option;
    use crate::criu::wire::Operation;

    fn value(operation: Operation, level: Option<u64>, number: u32) -> Option<u64> {
        settings(operation, level)
            .into_iter()
            .find(|setting| setting.number == number)
            .map(|found| found.value)
    }

    #[test]
    fn both_operations_skip_the_network_lock_and_ignore_cgroups() {
        for operation in [Operation::Dump, Operation::Restore] {
            assert_eq!(value(operation, None, option::NETWORK_LOCK), Some(3));
            assert_eq!(value(operation, None, option::MANAGE_CGROUPS_MODE), Some(0));
            assert_eq!(
                value(operation, None, option::GHOST_LIMIT),
                Some(GHOST_LIMIT_BYTES)
            );
        }
    }

    #[test]
    fn the_log_level_can_be_raised() {
        assert_eq!(value(Operation::Dump, None, option::LOG_LEVEL), Some(2));
        assert_eq!(value(Operation::Dump, Some(4), option::LOG_LEVEL), Some(4));
    }

    #[test]
    fn no_option_is_set_twice() {
        let mut numbers: Vec<u32> = settings(Operation::Dump, None)
            .iter()
            .map(|setting| setting.number)
            .collect();
        numbers.sort_unstable();
        let all = numbers.len();
        numbers.dedup();
        assert_eq!(numbers.len(), all);
    }
}
