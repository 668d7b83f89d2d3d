//! What the journals of all hosts say together, read as an operator would with `sqlite3`, and judged by the code of the machines that
//! wrote them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rusqlite::Connection;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tranship_migrate::handoff::{DestinationStep, History, Owner, SourceStep};

use crate::testbed::Host;
use crate::tranship::wait_for;

/// A daemon that has answered may have its last step still to write.
const SOON: Duration = Duration::from_secs(10);

/// One handoff, as both hosts have it on record.
#[derive(Debug, Default)]
struct Handoff {
    container: String,
    from: String,
    to: String,
    source: Vec<SourceStep>,
    destination: Vec<DestinationStep>,
    /// Under which epochs the steps were written.
    epochs: BTreeSet<i64>,
}

/// Waits until every handoff among these hosts is at its end, as the machines by themselves bring it about, and demands that `owner` is
/// who has the container of the id `container` by them.
///
/// # Errors
/// The journals contradict each other, or stay undecided.
pub fn agree(container: &str, hosts: &[&Host], owner: &Host) -> Result<()> {
    wait_for("the journals to be at their ends", SOON, || {
        let handoffs = read(hosts)?;
        let mut highest = None;
        for (id, handoff) in &handoffs {
            let claim = handoff
                .claim()
                .with_context(|| format!("the journals of {id}: {handoff:?}"))?;
            if handoff.container == container {
                highest = highest.max(claim);
            }
        }
        if let Some((epoch, host)) = highest {
            ensure!(
                host == owner.name(),
                "by the journals {host} has it, under epoch {epoch}"
            );
        }
        Ok(true)
    })
}

impl Handoff {
    /// Under which epoch it has given the container to which host; none where it has stayed.
    fn claim(&self) -> Result<Option<(i64, String)>> {
        let history = History {
            source: &self.source,
            destination: &self.destination,
            arbiter: false,
            person: false,
        };
        history.check()?;
        ensure!(self.epochs.len() == 1, "it has several epochs");
        let epoch = self.epochs.iter().copied().max().unwrap_or(0);
        let owner = history.owner().context("it is not at its end")?;
        Ok(match owner {
            Owner::Destination => Some((epoch, self.to.clone())),
            // Taken back it has another one.
            Owner::Source if self.source.contains(&SourceStep::TakenBack) => {
                Some((epoch + 1, self.from.clone()))
            }
            Owner::Source => None,
        })
    }
}

/// Every handoff on record, by its id.
fn read(hosts: &[&Host]) -> Result<BTreeMap<String, Handoff>> {
    let mut handoffs = BTreeMap::new();
    for host in hosts {
        let copy = tempfile::tempdir()?;
        let registry = copy_of(host, copy.path())?;
        let steps = "SELECT migration_id, role, step, epoch, data FROM handoff_journal ORDER BY rowid";
        let mut steps = registry.prepare(steps)?;
        let mut rows = steps.query([])?;
        while let Some(row) = rows.next()? {
            let (id, role, step): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let data: Value = serde_json::from_str(&row.get::<_, String>(4)?)?;
            let handoff: &mut Handoff = handoffs.entry(id).or_default();
            handoff.epochs.insert(row.get(3)?);
            if let Some(container) = data["container"].as_str() {
                container.clone_into(&mut handoff.container);
            }
            if role == "destination" {
                host.name().clone_into(&mut handoff.to);
                handoff.destination.push(word(&step)?);
            } else {
                host.name().clone_into(&mut handoff.from);
                handoff.source.push(word(&step)?);
            }
        }
    }
    Ok(handoffs)
}

/// A copy of a host's registry: SQLite does not find its way into the host's own mounts. One that was written to meanwhile is no
/// database, or is one of before; whoever reads it tries again.
fn copy_of(host: &Host, directory: &Path) -> Result<Connection> {
    let state = host.path(host.layout.state_dir(host.name()));
    for name in ["registry.db", "registry.db-wal"] {
        let path = state.join(name);
        fs::copy(&path, directory.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    Ok(Connection::open(directory.join("registry.db"))?)
}

fn word<S: DeserializeOwned>(step: &str) -> Result<S> {
    Ok(serde_json::from_value(Value::String(step.to_owned()))?)
}
