//! A container that stamps all of its memory over and over, a client that is connected to it all the time, and whoever asks whether
//! every page is right.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::crowd::Crowd;
use crate::images::{self, COUNT_PORT, QUESTION_PORT};
use crate::oracles::cpu_limit;
use crate::testbed::Host;

/// Its name.
pub const NAME: &str = "stamps";

/// For a look at every page on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The container, and those who watch it.
pub struct Stamps<'a> {
    /// Its one client, which asks every 5 ms.
    pub crowd: Crowd,
    client: &'a Host,
    address: SocketAddr,
    id: String,
}

impl<'a> Stamps<'a> {
    /// Runs it on `host` with these options of `tranship run`: `mib` of memory, of which it stamps `mib_per_s`. The client is on
    /// another host.
    ///
    /// # Errors
    /// The daemon refuses it, or it does not answer.
    pub fn run(host: &Host, client: &'a Host, options: &[&str], [mib, mib_per_s]: [&str; 2]) -> Result<Self> {
        let (port, count_port) = (QUESTION_PORT.to_string(), COUNT_PORT.to_string());
        let memory = ["generations", "--mib", mib, "--mib-per-s", mib_per_s];
        let ports = ["--port", &port, "--count-port", &count_port];
        images::run_workload_with(host, NAME, options, &[&memory[..], &ports[..]].concat())?;
        let id = host.container(NAME)?["id"].as_str().context("an id")?.to_owned();
        let counter = host.address_of(NAME, COUNT_PORT)?;
        Ok(Self {
            crowd: Crowd::start(client, counter, 1, Duration::from_millis(5))?,
            client,
            address: host.address_of(NAME, QUESTION_PORT)?,
            id,
        })
    }

    /// The pass it is at. Every page is looked at.
    ///
    /// # Errors
    /// One is wrong, or it does not answer.
    pub fn pass(&self) -> Result<u64> {
        let answer = images::ask_workload(self.client, self.address, PATIENCE)?;
        let (pass, _) = answer.split_once(' ').context("a pass and pages")?;
        Ok(pass.parse()?)
    }

    /// Passes per second, over one of them.
    ///
    /// # Errors
    /// As [`Stamps::pass`].
    pub fn speed(&self) -> Result<f64> {
        let (begun, first) = (Instant::now(), self.pass()?);
        sleep(Duration::from_secs(1));
        Ok((self.pass()? - first) as f64 / begun.elapsed().as_secs_f64())
    }

    /// Makes certain that it runs on this host and that every page is, and always was, right.
    ///
    /// # Errors
    /// It is not so.
    pub fn expect_right(&self, host: &Host) -> Result<()> {
        ensure!(host.container(NAME)?["state"] == "running", "it does not run");
        self.pass()?;
        let log = host.tranship(&["logs", NAME])?;
        ensure!(!log.contains("WRONG"), "{log}");
        Ok(())
    }

    /// The same, and that its client has been answered; answers the longest wait for that since [`Crowd::begin`].
    ///
    /// # Errors
    /// It is not so.
    pub fn check(&self, host: &Host) -> Result<Duration> {
        self.expect_right(host)?;
        Ok(Duration::from_micros(self.crowd.finish()?))
    }

    /// Its limit of CPU time, where it has one.
    ///
    /// # Errors
    /// Its cgroup cannot be read.
    pub fn limit(&self, host: &Host) -> Result<Option<u64>> {
        cpu_limit(host, &self.id)
    }
}
