//! Lets the scripts run where they belong, and keeps the book.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::config::{Places, config};
use super::steps;
use crate::bench::load::Load;
use crate::bench::subject::{Moved, Subject};
use crate::bench::{machine, timed};
use crate::images;
use crate::testbed::layout;
use crate::testbed::{Host, Testbed};

/// Outside of the ranges that the hosts hand out.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 20);
const MAC: &str = "02:62:65:00:00:20";
/// On every host a tmpfs of its own.
const RUN: &str = "/run/be-baseline";

/// A runc container and where it is.
#[derive(Debug)]
pub struct Baseline {
    /// Where it is, and where it is not.
    hosts: [Host; 2],
    load: Load,
}

impl Baseline {
    /// Starts the container on the first host.
    ///
    /// # Errors
    /// The image has not been built, or a step fails.
    pub fn start(bed: &Testbed, load: &Load) -> Result<Self> {
        let [here, there, ..] = bed.hosts() else {
            anyhow::bail!("the baseline needs two hosts");
        };
        let baseline = Self {
            hosts: [here.clone(), there.clone()],
            load: *load,
        };
        let seccomp = filter_of_tranship(here)?;
        for (host, peer) in [(here, there), (there, here)] {
            baseline.run(host, peer, steps::SETUP)?;
            write_config(load, host, seccomp.clone())?;
            baseline.run(host, peer, steps::READY)?;
        }
        baseline.run(here, there, steps::START)?;
        Ok(baseline)
    }
}

impl Baseline {
    fn run(&self, host: &Host, peer: &Host, script: &str) -> Result<String> {
        let address = |host: &Host| {
            let address = layout::address(host.name()).context("a host has an address")?;
            Ok::<_, anyhow::Error>(address.to_string())
        };
        let mut bash = host.command("bash", ["-c"]);
        bash.arg(format!("{}{script}", steps::COMMON))
            .env("PATH", machine::path_with_criu())
            .env("RUN", RUN)
            .env("DISK", disk(host))
            .env("OWN", address(host)?)
            .env("PEER", address(peer)?)
            .env("ADDRESS", ADDRESS.to_string())
            .env("MAC", MAC)
            .env("IMAGE", images::archive(self.load.image())?);
        timed::run(&mut bash, steps::DEADLINE)
            .with_context(|| format!("the baseline on host {}", host.name()))
    }
}

impl Subject for Baseline {
    fn name(&self) -> &'static str {
        "runc+rsync"
    }

    fn address(&self) -> Option<SocketAddr> {
        Some((ADDRESS, self.load.port()).into())
    }

    fn move_over(&mut self) -> Result<Moved> {
        let [from, to] = &self.hosts;
        let left = steps::read(&self.run(from, to, steps::LEAVE)?)?;
        let mut arrived = steps::read(&self.run(to, from, steps::ARRIVE)?)?;
        self.run(from, to, steps::READY)?;
        let whole = arrived.end_us.saturating_sub(left.begin_us);
        let moved = Moved {
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            // It stands still from its first step to its last: nothing is done while the container runs.
            blackout_us: Some(whole),
            total_us: whole,
            before_freeze_us: 0,
            bytes: left.bytes,
            daemons_peak_bytes: Vec::new(),
            spans: {
                let mut spans = left.spans;
                spans.append(&mut arrived.spans);
                spans
            },
        };
        self.hosts.reverse();
        Ok(moved)
    }
}

fn disk(host: &Host) -> PathBuf {
    host.layout.disk(host.name()).join("baseline")
}

/// The system-call filter of the container that Tranship runs on this host, if it runs one.
fn filter_of_tranship(host: &Host) -> Result<Option<Value>> {
    let containers = host.layout.state_dir(host.name()).join("containers");
    let first = fs::read_dir(&containers).into_iter().flatten().flatten().next();
    let Some(container) = first else {
        return Ok(None);
    };
    let path = container.path().join("config.json");
    let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut config: Value = serde_json::from_slice(&text)?;
    Ok(Some(config["linux"]["seccomp"].take()))
}

fn write_config(load: &Load, host: &Host, seccomp: Option<Value>) -> Result<()> {
    let volume = disk(host).join("volume");
    let places = Places {
        rootfs: &format!("{RUN}/rootfs"),
        volume: &volume.to_string_lossy(),
        netns: "/run/netns/be-redis",
        // Beside those of the host's daemon, which does not know it; the testbed takes it down.
        cgroup: &format!("/{}/be-{}/redis", host.layout.cgroup(), host.name()),
    };
    let path = host.path(RUN).join("bundle/config.json");
    let text = serde_json::to_vec_pretty(&config(load, places, seccomp))?;
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::command;

    #[test]
    fn the_scripts_are_shell() {
        for script in [
            steps::SETUP,
            steps::READY,
            steps::START,
            steps::LEAVE,
            steps::ARRIVE,
        ] {
            let mut bash = command("bash", ["-n", "-c"]);
            let whole = format!("{}{script}", steps::COMMON);
            assert!(bash.arg(whole).status().unwrap().success());
        }
    }
}
