//! A wall clock of its own for a host's daemon, which can be set while that runs. All other clocks of it, and all of its containers, are
//! the machine's.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::faults;
use crate::testbed::{Host, daemon};

/// Debian's libfaketime, for programs with threads.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Gives an armed daemon (see [`faults::arm`]) a clock of its own, which is right for now. It is started again for that.
///
/// # Errors
/// The library is not there, or the daemon does not start.
pub fn give(host: &Host) -> Result<()> {
    ensure!(fs::exists(LIBRARY)?, "{LIBRARY} is not there");
    set(host, 0)?;
    // The library leaves files there when its program is killed.
    host.run("mount", ["-t", "tmpfs", "tmpfs", "/dev/shm"])?;
    let file = file(host);
    faults::set_environment(
        host,
        &[
            ("LD_PRELOAD", LIBRARY),
            ("FAKETIME_TIMESTAMP_FILE", &file.to_string_lossy()),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ],
    )?;
    daemon::stop(host)?;
    faults::start(host)
}

/// The daemon has the machine's clock again. It is started again for that.
///
/// # Errors
/// It does not end, or does not start.
pub fn take_away(host: &Host) -> Result<()> {
    faults::set_environment(host, &[])?;
    daemon::stop(host)?;
    // Its guard, which has the library too, ends after it.
    host.run("umount", ["--lazy", "/dev/shm"])?;
    faults::start(host)
}

/// Sets the clock of a host's daemon so many seconds before or behind the right time.
///
/// # Errors
/// It cannot be written down.
pub fn set(host: &Host, seconds: i64) -> Result<()> {
    // Read at every look at the clock, so never to be seen half written.
    let staged = file(host).with_extension("new");
    fs::write(&staged, format!("{seconds:+}\n"))?;
    Ok(fs::rename(staged, file(host))?)
}

fn file(host: &Host) -> PathBuf {
    faults::directory(host).join("clock")
}
