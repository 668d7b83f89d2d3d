//! Hosts found through etcd: each tells there where it is reached, and takes what the others have told.
//!
//! A record is one key, `PREFIX/hosts/NAME`. A host writes its own, and those of removed hosts, wherever what is there is older;
//! it takes whatever is newer than its own knowledge, as in a sync. That is all it takes: who may connect is
//! still said by certificates, and hosts tell each other the same without etcd.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse, WatchStream};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tranship_proto::v1::HostRecord;

use super::cluster::Inner;
use super::hosts::{HostTableError, KnownHost};
use super::refusal::chain;
use crate::etcd::{DEADLINE, Etcd, EtcdError};

/// Between two rounds with nothing new.
const INTERVAL: Duration = Duration::from_secs(30);

/// Between two rounds however much is new, or fails.
const PAUSE: Duration = Duration::from_millis(500);

/// Where the records are.
const HOSTS: &str = "hosts/";

/// Nothing, or not everything, was told or taken; another round will.
#[derive(Debug, thiserror::Error)]
enum FoundError {
    /// Etcd is away.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// The host's own table.
    #[error(transparent)]
    Table(#[from] HostTableError),
    /// A record of this host cannot be put into words.
    #[error("cannot write a host's record")]
    Words(#[from] serde_json::Error),
}

/// A host's record as etcd has it.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    name: String,
    address: String,
    generation: u64,
    #[serde(default)]
    removed: bool,
}

/// What etcd has of one host.
struct Seen {
    generation: u64,
    revision: i64,
}

/// Tells and takes at once, when there is news, and from time to time, until `shutdown`.
pub(super) async fn run(inner: Arc<Inner>, etcd: Etcd, shutdown: CancellationToken) {
    let finding = async {
        let (mut changes, mut members) = (inner.hosts.changes(), inner.membership.subscribe());
        let mut away = false;
        loop {
            // Before a host is in a cluster it has nothing to say, and nobody to look for.
            while members.borrow_and_update().is_none() {
                if members.changed().await.is_err() {
                    return;
                }
            }
            changes.borrow_and_update();
            let watching = async {
                // First the watch, then the round: what comes between is seen by either.
                let stream = etcd.watch(HOSTS).await?;
                round(&inner, &etcd).await?;
                Ok::<_, FoundError>(stream)
            };
            let stream = watching.await;
            note(&mut away, &stream);
            tokio::select! {
                () = news(stream.ok()) => {}
                _ = changes.changed() => {}
                _ = members.changed() => {}
                () = sleep(INTERVAL) => {}
            }
            sleep(PAUSE).await;
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = finding => {}
    }
}

/// Says in the log when it begins to fail and when that is over.
fn note<T>(away: &mut bool, round: &Result<T, FoundError>) {
    match round {
        Ok(_) if *away => tracing::info!("etcd answers again"),
        Err(error) if !*away => {
            let error = chain(error);
            tracing::warn!(
                error,
                "etcd does not tell of other hosts; what is known of them stays"
            );
        }
        _ => {}
    }
    *away = round.is_err();
}

/// Waits for a change in etcd. Without a stream etcd is asked again soon.
async fn news(stream: Option<WatchStream>) {
    if let Some(mut stream) = stream {
        while let Ok(Some(message)) = stream.message().await {
            if !message.events().is_empty() || message.canceled() {
                return;
            }
        }
    }
    sleep(PAUSE).await;
}

/// Takes what is newer in etcd, and tells what is newer here.
async fn round(inner: &Inner, etcd: &Etcd) -> Result<(), FoundError> {
    let until = Instant::now() + DEADLINE;
    let all = GetOptions::new().with_prefix();
    let get = Txn::new().and_then([TxnOp::get(etcd.key(HOSTS), Some(all))]);
    let answer = etcd.txn(get, until).await?;
    let mut seen = BTreeMap::new();
    let mut records = Vec::new();
    for response in answer.op_responses() {
        let TxnOpResponse::Get(found) = response else {
            continue;
        };
        for pair in found.kvs() {
            let name = String::from_utf8_lossy(pair.key()).replacen(&etcd.key(HOSTS), "", 1);
            let record = read(&name, pair);
            let generation = record.as_ref().map_or(0, |record| record.generation);
            let revision = pair.mod_revision();
            seen.insert(name, Seen { generation, revision });
            records.extend(record);
        }
    }
    inner.take_records(records).await?;
    let Some(member) = inner.member() else {
        return Ok(());
    };
    let own = |host: &KnownHost| host.removed || host.name == member.identity.name;
    for host in inner.hosts.all().iter().filter(|host| own(host)) {
        tell(etcd, host, seen.get(host.name.as_str()), until).await?;
    }
    Ok(())
}

/// A record that a host of this version has written under that name; anything else is left alone.
fn read(name: &str, pair: &KeyValue) -> Option<HostRecord> {
    let told: Told = serde_json::from_slice(pair.value()).ok()?;
    let record = HostRecord {
        name: told.name,
        address: told.address,
        generation: told.generation,
        removed: told.removed,
    };
    (record.name == name && KnownHost::read(&record).is_ok()).then_some(record)
}

/// Writes a record, if what is there is what was seen, and is older. Else another round sees what is there.
async fn tell(etcd: &Etcd, host: &KnownHost, seen: Option<&Seen>, until: Instant) -> Result<(), FoundError> {
    let generation = host.generation.number();
    if seen.is_some_and(|seen| seen.generation >= generation) {
        return Ok(());
    }
    let told = Told {
        name: host.name.to_string(),
        address: host.address.to_string(),
        generation,
        removed: host.removed,
    };
    let key = etcd.key(&format!("{HOSTS}{}", host.name));
    let revision = seen.map_or(0, |seen| seen.revision);
    let put = Txn::new()
        .when([Compare::mod_revision(key.as_str(), CompareOp::Equal, revision)])
        .and_then([TxnOp::put(key, serde_json::to_vec(&told)?, None)]);
    etcd.txn(put, until).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_stored_in_these_words() {
        let text = r#"{"name":"a","address":"192.0.2.1:7077","generation":4294967296,"removed":false}"#;
        let told: Told = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&told).unwrap(), text);
    }
}
