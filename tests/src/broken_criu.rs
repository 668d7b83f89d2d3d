//! A program in CRIU's place that fails when it should work.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::testbed::{Host, daemon};

/// From the next start of the daemon on a host's CRIU answers questions about itself, and does what `script` says, lines of a shell, as
/// soon as it should work. There `$real` is CRIU.
///
/// # Errors
/// The host's disk cannot be written.
pub fn break_criu(host: &Host, script: &str) -> Result<()> {
    let (real, wrapper) = (real_criu(), wrapper(host));
    let text = format!(
        "#!/bin/sh\nreal={real}\ncase \"$1\" in\nswrk) {script} ;;\n*) exec \"$real\" \"$@\" ;;\nesac\n"
    );
    fs::write(&wrapper, text).with_context(|| format!("cannot write {}", wrapper.display()))?;
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755))?;
    daemon::set_lines(host, &format!("criu = \"{}\"", wrapper.display()))
}

/// From the next start of the daemon on CRIU is itself.
///
/// # Errors
/// It was not broken.
pub fn mend_criu(host: &Host) -> Result<()> {
    daemon::set_lines(host, "")?;
    let wrapper = wrapper(host);
    fs::remove_file(&wrapper).with_context(|| format!("cannot remove {}", wrapper.display()))
}

/// The CRIU that daemons have where nothing else is configured.
#[must_use]
pub fn real_criu() -> String {
    let prefix = std::env::var("TRANSHIP_PREFIX").unwrap_or_else(|_| "/opt/tranship".to_owned());
    format!("{prefix}/criu/sbin/criu")
}

fn wrapper(host: &Host) -> PathBuf {
    host.layout.disk(host.name()).join("criu-that-fails")
}
