//! Which start of the machine this is: nothing that ran or was in memory before another one is left.

use std::sync::OnceLock;

/// The kernel's name for this start; empty where it has none.
#[must_use]
pub fn id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| {
        let told = crate::migration::told_boot_id();
        let read = || std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        told.unwrap_or_else(read).trim().to_owned()
    })
}
