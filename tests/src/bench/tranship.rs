//! Tranship as a mover: the container, the volume and the command that a user would type.

use std::net::SocketAddr;

use anyhow::{Result, bail};

use super::scenario;
use super::subject::{Moved, Stretch, Subject};
use crate::images::{self, REDIS_PORT};
use crate::testbed::{Host, Testbed};

const CONTAINER: &str = "redis";

/// A container of the daemons and where it is.
#[derive(Debug)]
pub struct Tranship {
    /// Where it is, and where it is not.
    hosts: [Host; 2],
    address: SocketAddr,
}

impl Tranship {
    /// Starts the container on the first host. Both have its image, as the baseline's hosts have.
    ///
    /// # Errors
    /// The image has not been built, or the daemon refuses something.
    pub fn start(bed: &Testbed) -> Result<Self> {
        let [here, there, ..] = bed.hosts() else {
            bail!("moving needs two hosts");
        };
        for host in [here, there] {
            images::import(host, "redis")?;
        }
        let volume = format!("data:{}", scenario::DATA_DIR);
        let options = [
            "run",
            "-d",
            "--name",
            CONTAINER,
            "--network",
            "l2",
            "-v",
            &volume,
            "redis",
        ];
        here.tranship(&[&options[..], scenario::COMMAND].concat())?;
        Ok(Self {
            hosts: [here.clone(), there.clone()],
            address: here.address_of(CONTAINER, REDIS_PORT)?,
        })
    }
}

impl Subject for Tranship {
    fn name(&self) -> &'static str {
        "tranship"
    }

    fn address(&self) -> SocketAddr {
        self.address
    }

    fn move_over(&mut self) -> Result<Moved> {
        let [from, to] = &self.hosts;
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
            blackout_us: migration.blackout_us,
            total_us: migration.total_us,
            bytes: migration.bytes_sent,
            spans: spans.collect(),
        };
        self.hosts.reverse();
        Ok(moved)
    }
}
