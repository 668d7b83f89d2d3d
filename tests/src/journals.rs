//! What the journals of all hosts say together, read as an operator would with `sqlite3`, and judged by the code of the machines that
//! wrote them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rusqlite::{Connection, OpenFlags};
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
    source: Vec<SourceStep>,
    destination: Vec<DestinationStep>,
    /// Under which epochs the steps were written.
    epochs: BTreeSet<i64>,
}

/// Every handoff on record, by its id.
#[derive(Debug, Default)]
struct Journals {
    handoffs: BTreeMap<String, Handoff>,
    /// The last that each host was the source of.
    last: BTreeMap<String, String>,
    /// The epochs of each host's commits, by container, in order.
    commits: BTreeMap<(String, String), Vec<i64>>,
}

/// Waits until every handoff among these hosts is at its end, which nobody but the machines and no person has brought about, and demands
/// that `owner` has what was last to go from `source`.
///
/// # Errors
/// The journals contradict each other, or stay undecided.
pub fn agree(hosts: &[&Host], source: &Host, owner: &Host) -> Result<()> {
    wait_for("the journals to be at their ends", SOON, || {
        let journals = Journals::read(hosts)?;
        for (id, handoff) in &journals.handoffs {
            let owner = handoff
                .judged()
                .with_context(|| format!("the journals of {id}: {handoff:?}"))?;
            ensure!(owner.is_some(), "{id} is not at its end: {handoff:?}");
        }
        for ((host, container), epochs) in &journals.commits {
            ensure!(
                epochs.is_sorted_by(|earlier, later| earlier < later),
                "{host} has given {container} away under the epochs {epochs:?}"
            );
        }
        let last = journals
            .last
            .get(source.name())
            .and_then(|id| journals.handoffs.get(id));
        let last = last.with_context(|| format!("{} has given nothing away", source.name()))?;
        let stayed = last.judged()? == Some(Owner::Source);
        ensure!(
            stayed == (owner.name() == source.name()),
            "{} runs it, and the journals say {last:?}",
            owner.name()
        );
        Ok(true)
    })
}

impl Handoff {
    fn judged(&self) -> Result<Option<Owner>> {
        let history = History {
            source: &self.source,
            destination: &self.destination,
            arbiter: false,
            person: false,
        };
        history.check()?;
        ensure!(self.epochs.len() < 2, "epochs {:?}", self.epochs);
        Ok(history.owner())
    }
}

impl Journals {
    fn read(hosts: &[&Host]) -> Result<Self> {
        let mut all = Self::default();
        for host in hosts {
            all.add(host)?;
        }
        Ok(all)
    }

    fn add(&mut self, host: &Host) -> Result<()> {
        let path = host.path(host.layout.state_dir(host.name()).join("registry.db"));
        let registry = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY)
            .with_context(|| format!("cannot open {}", path.display()))?;
        registry.busy_timeout(SOON)?;
        let mut rows = registry
            .prepare("SELECT migration_id, role, step, epoch, data FROM handoff_journal ORDER BY rowid")?;
        let mut rows = rows.query([])?;
        while let Some(row) = rows.next()? {
            let (id, role, step): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
            let epoch: i64 = row.get(3)?;
            let handoff = self.handoffs.entry(id.clone()).or_default();
            handoff.epochs.insert(epoch);
            if role == "destination" {
                handoff.destination.push(word(&step)?);
                continue;
            }
            let step: SourceStep = word(&step)?;
            handoff.source.push(step);
            self.last.insert(host.name().to_owned(), id);
            if step == SourceStep::Committed {
                let data: Value = serde_json::from_str(&row.get::<_, String>(4)?)?;
                let container = data["container"]
                    .as_str()
                    .context("a commit names its container")?;
                let key = (host.name().to_owned(), container.to_owned());
                self.commits.entry(key).or_default().push(epoch);
            }
        }
        Ok(())
    }
}

fn word<S: DeserializeOwned>(step: &str) -> Result<S> {
    Ok(serde_json::from_value(Value::String(step.to_owned()))?)
}
