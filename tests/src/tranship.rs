//! The `tranship` program as tests use it: the way a user or his script does.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::command::{self, Finished};
use crate::testbed::{Host, daemon};

/// For one command; the longest are migrations of large containers.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// A migration as `--format json` prints it; the fields that tests look at.
#[derive(Clone, Debug, Deserialize)]
pub struct Migration {
    /// Its id.
    pub id: String,
    /// `done`, `rolled_back`...
    pub outcome: String,
    /// The phase it reached.
    pub phase: String,
    /// From freeze to the first instruction.
    pub blackout_us: u64,
    /// The whole.
    pub total_us: u64,
    /// Everything that travelled.
    pub bytes_sent: u64,
    /// What was measured.
    pub spans: Vec<Span>,
    /// What travelled.
    pub trees: Vec<Tree>,
    /// The error chain.
    pub error: String,
    /// What a person should know.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One measured stretch.
#[derive(Clone, Debug, Deserialize)]
pub struct Span {
    /// What was done.
    pub name: String,
    /// The phase it belongs to.
    pub phase: String,
    /// `source` or `destination`.
    pub role: String,
    /// Since the migration began there.
    pub start_us: u64,
    /// How long.
    pub duration_us: u64,
}

/// One tree that travelled.
#[derive(Clone, Debug, Deserialize)]
pub struct Tree {
    /// `images`, `volume:NAME`...
    pub tree: String,
    /// Files, folders and the like.
    pub entries: u64,
    /// Bytes of content.
    pub bytes: u64,
}

impl Host {
    /// Runs `tranship` against this host's daemon and answers whatever its exit code was.
    ///
    /// # Errors
    /// It cannot be started or does not end.
    pub fn try_tranship(&self, arguments: &[&str]) -> Result<Finished> {
        command::finish(&mut daemon::cli(self, arguments)?, PATIENCE)
    }

    /// Runs `tranship` against this host's daemon and answers what it printed.
    ///
    /// # Errors
    /// It fails; the message is its own.
    pub fn tranship(&self, arguments: &[&str]) -> Result<String> {
        let finished = command::succeed(&mut daemon::cli(self, arguments)?, PATIENCE);
        Ok(finished
            .with_context(|| format!("on host {}", self.name()))?
            .text())
    }

    /// Runs `tranship --format json` and answers the first object it printed.
    ///
    /// # Errors
    /// It fails, or prints something else.
    pub fn tranship_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.tranship(&[&["--format", "json"], arguments].concat())?;
        let value: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
        Ok(match value {
            Value::Array(mut items) if !items.is_empty() => items.swap_remove(0),
            other => other,
        })
    }

    /// What `tranship inspect` says of a container.
    ///
    /// # Errors
    /// There is no such container.
    pub fn container(&self, name: &str) -> Result<Value> {
        self.tranship_json(&["inspect", name])
    }

    /// Where a port of a container can be reached.
    ///
    /// # Errors
    /// There is no such container, or it has no address.
    pub fn address_of(&self, name: &str, port: u16) -> Result<SocketAddr> {
        let container = self.container(name)?;
        let ip = container["ip"].as_str().unwrap_or_default();
        Ok(SocketAddr::new(
            ip.parse()
                .with_context(|| format!("{name} has no address: {ip:?}"))?,
            port,
        ))
    }

    /// Runs a command in a container and answers what it printed.
    ///
    /// # Errors
    /// It cannot be run, or fails.
    pub fn exec(&self, container: &str, words: &[&str]) -> Result<String> {
        self.tranship(&[&["exec", container], words].concat())
    }

    /// Moves a container and answers the record; it must succeed.
    ///
    /// # Errors
    /// It does not; the message is the command's own.
    pub fn migrate(&self, container: &str, to: &str) -> Result<Migration> {
        let text = self.tranship(&["--format", "json", "migrate", container, to])?;
        serde_json::from_str(&text).with_context(|| format!("not a migration: {text}"))
    }
}

/// Asks again until the answer is yes.
///
/// # Errors
/// It is not within `deadline`; the message says what was waited for.
pub fn wait_for(what: &str, deadline: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + deadline;
    let mut last = None;
    loop {
        match is_so() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(error) => last = Some(error),
        }
        if Instant::now() >= end {
            match last {
                Some(error) => return Err(error.context(format!("waited {deadline:?} for {what}"))),
                None => bail!("waited {deadline:?} for {what}, in vain"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
