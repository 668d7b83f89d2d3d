//! The frame of an end-to-end test: a testbed of its own, and at the end nothing left behind.

use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use crate::images;
use crate::oracles::Inventory;
use crate::testbed::{Host, Options, Testbed};

/// Lines of each daemon's log that a failed test shows.
const LOG_LINES: usize = 60;

/// Tests of one program take turns: there is one testbed.
static TURN: Mutex<()> = Mutex::new(());

/// A running end-to-end test.
#[derive(Debug)]
pub struct Scenario {
    bed: Option<Testbed>,
    empty: Inventory,
    _turn: MutexGuard<'static, ()>,
}

impl Scenario {
    /// Two hosts, and these images on host a.
    ///
    /// # Errors
    /// The testbed does not come up, or an image has not been built.
    pub fn begin(image_names: &[&str]) -> Result<Self> {
        Self::begin_with(&Options::default(), image_names)
    }

    /// A testbed to order, and these images on host a.
    ///
    /// # Errors
    /// As [`Scenario::begin`].
    pub fn begin_with(options: &Options, image_names: &[&str]) -> Result<Self> {
        // A test that failed while it had its turn has been cleaned up after like any other.
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let bed = Testbed::up(&Options {
            force: true,
            ..options.clone()
        })?;
        let empty = Inventory::take(&bed)?;
        let scenario = Self {
            bed: Some(bed),
            empty,
            _turn: turn,
        };
        for name in image_names {
            images::import(scenario.host("a")?, name)?;
        }
        Ok(scenario)
    }

    /// The testbed.
    ///
    /// # Errors
    /// The scenario has ended.
    pub fn bed(&self) -> Result<&Testbed> {
        self.bed.as_ref().context("the scenario has ended")
    }

    /// A host by its name, or `client`.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.bed()?.host(name)
    }

    /// Removes what users can remove, and checks that then nothing is left.
    ///
    /// # Errors
    /// Something cannot be removed, or is left behind.
    pub fn end(mut self) -> Result<()> {
        let bed = self.bed()?;
        remove_everything(bed)?;
        self.empty.expect_unchanged(bed)?;
        self.bed.take().map_or(Ok(()), Testbed::down)
    }
}

impl Drop for Scenario {
    fn drop(&mut self) {
        let Some(bed) = self.bed.take() else { return };
        for host in bed.hosts() {
            let path = host.layout.log(host.name());
            let log = std::fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let end = &lines[lines.len().saturating_sub(LOG_LINES)..];
            eprintln!(
                "--- the end of host {}'s log ---\n{}",
                host.name(),
                end.join("\n")
            );
        }
        // For a look at what went wrong: `testbed exec a -- sh`, then `testbed down`.
        if std::env::var_os("TB_KEEP").is_some() {
            bed.keep();
        }
    }
}

/// Removes all containers, tombstones, volumes and images of all hosts, by the commands that a user has.
///
/// # Errors
/// A daemon refuses.
pub fn remove_everything(bed: &Testbed) -> Result<()> {
    for host in bed.hosts() {
        for id in host.tranship(&["-q", "ps", "-a"])?.lines() {
            host.tranship(&["rm", "-f", id])?;
        }
        for name in host.tranship(&["-q", "volume", "ls"])?.lines() {
            host.tranship(&["volume", "rm", name])?;
        }
        for id in host.tranship(&["-q", "image", "ls"])?.lines() {
            host.tranship(&["image", "rm", id])?;
        }
    }
    Ok(())
}
