//! Processors that stay awake while a container stands still.
//!
//! CRIU and the tasks that it dumps answer each other in turns, and a processor with nothing to do sleeps meanwhile. On a virtual machine
//! it takes long to wake: CRIU's dump of 128 processes took 498 ms there, and 390 ms with processors that stay awake. The
//! kernel is asked to let none sleep, through `/dev/cpu_dma_latency` (`Documentation/power/pm_qos_interface.rst`), which holds as long
//! as the file is open.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;

const DEVICE: &str = "/dev/cpu_dma_latency";

/// A blackout that is longer than this is not worth the power.
const LONGEST: Duration = Duration::from_secs(2);

/// One side of a migration.
#[derive(Debug, Default)]
pub struct Awake(Mutex<Option<AbortHandle>>);

impl Awake {
    /// Keeps this host's processors awake until [`Self::end`], for 2 s at most. Where that is not possible things take longer.
    pub fn begin(&self) {
        self.begin_for(LONGEST);
    }

    fn begin_for(&self, longest: Duration) {
        let holding =
            hold().inspect_err(|error| tracing::debug!(%error, "processors may sleep in the blackout"));
        if let Ok(held) = holding {
            let task = tokio::spawn(async move {
                tokio::time::sleep(longest).await;
                drop(held);
            });
            self.replace(Some(task.abort_handle()));
        }
    }

    /// Lets them sleep again.
    pub fn end(&self) {
        self.replace(None);
    }

    fn replace(&self, with: Option<AbortHandle>) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = std::mem::replace(&mut *held, with) {
            before.abort();
        }
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.end();
    }
}

fn hold() -> io::Result<File> {
    let mut device = File::options().write(true).open(DEVICE)?;
    device.write_all(&0_i32.to_ne_bytes())?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    /// How often this process has the device open.
    fn open() -> usize {
        let descriptors = fs::read_dir("/proc/self/fd").unwrap();
        let targets = descriptors
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok());
        targets.filter(|target| target == Path::new(DEVICE)).count()
    }

    #[tokio::test]
    async fn they_may_sleep_again_when_it_is_over_or_takes_too_long() {
        if !Path::new(DEVICE).exists() {
            return;
        }
        let settled = || tokio::time::sleep(Duration::from_millis(50));
        let awake = Awake::default();
        awake.begin();
        awake.begin();
        settled().await;
        assert_eq!(open(), 1);
        awake.end();
        settled().await;
        assert_eq!(open(), 0);
        awake.begin_for(Duration::from_millis(1));
        settled().await;
        assert_eq!(open(), 0);
        awake.begin();
        drop(awake);
        settled().await;
        assert_eq!(open(), 0);
    }
}
