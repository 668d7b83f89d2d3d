//! Tranship as a mover: the container, the volume and the command that a user would type.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};

use super::load::{self, Load};
use super::memory;
use super::subject::{Moved, Stretch, Subject};
use crate::images;
use crate::testbed::{Host, Testbed};
use crate::tranship::Migration;

const CONTAINER: &str = "load";

/// A container of the daemons and where it is.
#[derive(Debug)]
pub struct Tranship {
    /// Where it is, and where it is not.
    hosts: [Host; 2],
    address: SocketAddr,
    /// How many bytes the last move has sent, for whoever wants to send as many.
    sent: Arc<AtomicU64>,
}

impl Tranship {
    /// Starts the container on the first host. Both have its image, as the baseline's hosts have.
    ///
    /// # Errors
    /// The image has not been built, or the daemon refuses something.
    pub fn start(bed: &Testbed, load: &Load, sent: Arc<AtomicU64>) -> Result<Self> {
        let [here, there, ..] = bed.hosts() else {
            bail!("moving needs two hosts");
        };
        for host in [here, there] {
            images::import(host, load.image())?;
        }
        let volume = format!("data:{}", load::DATA_DIR);
        let options = [
            "run",
            "-d",
            "--name",
            CONTAINER,
            "--network",
            "l2",
            "-v",
            &volume,
            load.image(),
        ];
        let command = load.command();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        here.tranship(&[&options[..], &command].concat())?;
        Ok(Self {
            hosts: [here.clone(), there.clone()],
            address: here.address_of(CONTAINER, load.port())?,
            sent,
        })
    }
}

impl Subject for Tranship {
    fn name(&self) -> &'static str {
        "tranship"
    }

    fn address(&self) -> Option<SocketAddr> {
        Some(self.address)
    }

    fn move_over(&mut self) -> Result<Moved> {
        let [from, to] = &self.hosts;
        for host in [from, to] {
            memory::reset_peak(host)?;
        }
        let migration = from.migrate(CONTAINER, to.name())?;
        if migration.outcome != "done" {
            bail!("the migration is {}: {}", migration.outcome, migration.error);
        }
        let spans = migration.spans.iter().map(|span| Stretch {
            name: format!("{} {}: {}", span.phase, span.role, span.name),
            duration_us: span.duration_us,
        });
        let moved = Moved {
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            blackout_us: Some(migration.blackout_us),
            total_us: migration.total_us,
            before_freeze_us: before_freeze_us(&migration),
            bytes: migration.bytes_sent,
            daemons_peak_bytes: vec![memory::peak(from)?, memory::peak(to)?],
            spans: spans.collect(),
        };
        self.sent.store(moved.bytes, Ordering::Relaxed);
        self.hosts.reverse();
        Ok(moved)
    }
}

/// When the source entered the phase in which the container stands still.
fn before_freeze_us(migration: &Migration) -> u64 {
    let spans = migration.spans.iter();
    let freeze = spans.filter(|span| span.phase == "freeze" && span.role == "source");
    freeze.map(|span| span.start_us).min().unwrap_or(0)
}
