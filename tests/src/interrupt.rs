//! Ctrl-C takes the testbed down before the program ends.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::testbed::{Layout, Testbed};

/// From now on SIGINT and SIGTERM take down the testbed in this directory and end the program. To be called before other
/// threads are started: they inherit that the signals are not theirs. (Programs that are started do not.)
///
/// # Errors
/// The directory is not one for a testbed, or the signals cannot be blocked.
pub fn take_down_on_signal(dir: &Path) -> Result<()> {
    let layout = Layout::new(dir)?;
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("cannot block signals")?;
    std::thread::spawn(move || {
        let Ok(signal) = signals.wait() else { return };
        eprintln!("\ninterrupted: taking the testbed down");
        if let Err(error) = Testbed::take_down(&layout) {
            eprintln!("{error:#}");
        }
        std::process::exit(128 + signal as i32);
    });
    Ok(())
}
