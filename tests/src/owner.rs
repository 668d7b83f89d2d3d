//! Which host has a container: when a migration may have ended either way, and at every moment of many.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::testbed::Host;
use crate::tranship::wait_for;

/// Between two samples of who has a container.
const SAMPLE: Duration = Duration::from_millis(5);

/// Both hosts decide what is in doubt within this time once both are back.
const DECIDED: Duration = Duration::from_secs(30);

/// The host on which the container runs, of two.
///
/// # Errors
/// As [`the_one_of`].
pub fn the_one_that_runs<'a>(container: &str, a: &'a Host, b: &'a Host) -> Result<&'a Host> {
    the_one_of(container, &[a, b])
}

/// The host on which the container runs. As soon as the daemons have talked the others know that they do not.
///
/// # Errors
/// They do not agree within 30 s, or two ran it for a while.
pub fn the_one_of<'a>(container: &str, hosts: &[&'a Host]) -> Result<&'a Host> {
    let mut states = Vec::new();
    let mut several = false;
    let mut owner = None;
    wait_for(
        "one host to run the container and the others to know it",
        DECIDED,
        || {
            states = hosts
                .iter()
                .map(|host| state(host, container))
                .collect::<Result<_>>()?;
            let running: Vec<usize> = (0..hosts.len()).filter(|index| runs(&states[*index])).collect();
            if running.len() > 1 {
                // The first may have handed over while the second was asked; one that still runs has not.
                let again = running.iter().map(|index| state(hosts[*index], container));
                let again: Vec<_> = again.collect::<Result<_>>()?;
                several |= again.iter().filter(|state| runs(state)).count() > 1;
            }
            owner = running.first().copied();
            let gave_up = states.iter().filter(|state| gave_up(state)).count();
            Ok(running.len() == 1 && gave_up == hosts.len() - 1)
        },
    )
    .with_context(|| {
        let told = hosts.iter().zip(&states);
        let told = told.map(|(host, state)| {
            format!(
                "on {} it is {}",
                host.name(),
                state.as_deref().unwrap_or("not there")
            )
        });
        told.collect::<Vec<_>>().join(", ")
    })?;
    ensure!(!several, "for a while two hosts ran the container");
    owner.map(|index| hosts[index]).context("somebody runs it")
}

/// The container's state on a host, if it is there.
fn state(host: &Host, container: &str) -> Result<Option<String>> {
    let found = host.try_tranship(&["inspect", container])?;
    if !found.status.success() {
        return Ok(None);
    }
    let records: Value = serde_json::from_str(&found.text())?;
    Ok(records[0]["state"].as_str().map(str::to_owned))
}

fn runs(state: &Option<String>) -> bool {
    state.as_deref() == Some("running")
}

fn gave_up(state: &Option<String>) -> bool {
    matches!(state.as_deref(), None | Some("moved"))
}

/// Who had a container on its network, sample by sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    /// Samples.
    pub samples: u64,
    /// In which nobody had it.
    pub nobody: u64,
    /// The longest time between two samples, in microseconds.
    pub longest_gap_us: u64,
}

/// Looks every 5 ms on which hosts a container is on the network: off it, nobody hears or sees anything of what it does.
#[derive(Debug)]
pub struct Sampling {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<Owners>>>,
}

impl Sampling {
    /// Begins to look. The container runs on the first of the hosts.
    ///
    /// # Errors
    /// It is not on the network there.
    pub fn start(container: &str, hosts: &[&Host]) -> Result<Self> {
        let first = hosts.first().context("there are hosts")?;
        let record = first.container(container)?;
        let id = record["id"].as_str().context("a container has an id")?;
        // The outer end of its cable, while that is the port of a bridge.
        let port = |host: &&Host| host.path(format!("/sys/class/net/tr-{}/brport", &id[..12]));
        let ports: Vec<PathBuf> = hosts.iter().map(port).collect();
        ensure!(
            ports[0].exists(),
            "{} is not there: the container is on no network",
            ports[0].display()
        );
        let end = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&end);
        let thread = std::thread::spawn(move || sample(&ports, &theirs));
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// At one moment more than one host had the container.
    pub fn finish(mut self) -> Result<Owners> {
        self.end.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was started")?;
        thread.join().ok().context("the samples panicked")?
    }
}

impl Drop for Sampling {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

fn sample(ports: &[PathBuf], end: &AtomicBool) -> Result<Owners> {
    let (mut owners, mut last) = (Owners::default(), Instant::now());
    while !end.load(Ordering::Relaxed) {
        let count = ports.iter().filter(|port| port.exists()).count();
        if count > 1 {
            bail!("{count} hosts had the container on the network at once");
        }
        let gap_us = u64::try_from(last.elapsed().as_micros()).unwrap_or(u64::MAX);
        last = Instant::now();
        owners.samples += 1;
        owners.nobody += u64::from(count == 0);
        owners.longest_gap_us = owners.longest_gap_us.max(gap_us);
        std::thread::sleep(SAMPLE);
    }
    Ok(owners)
}
