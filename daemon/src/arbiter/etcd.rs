//! A record in etcd decides.
//!
//! The record of a container is one key, `PREFIX/containers/ID/owner`. It is read linearizably and changed by transactions on
//! the revision that was read, never otherwise; what it says is for [`record`](super::record) to judge. A change whose answer
//! was lost is found when the call is repeated: the revision has moved, and the record names the migration.

use async_trait::async_trait;
use etcd_client::{Compare, CompareOp, GetResponse, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::time::Instant;
use tranship_proto::ids::{ContainerId, Name};

use super::record::{Record, Standing, Stored};
use super::{Arbiter, ArbiterError, Decision, Handoff, Owner, Token};
use crate::etcd::{DEADLINE, Etcd, EtcdError};

/// Decides by records in etcd. Each call answers within [`DEADLINE`].
#[derive(Clone)]
pub struct EtcdArbiter {
    etcd: Etcd,
}

/// What became of a change.
enum Change {
    /// The record has this revision now.
    Made(i64),
    /// It had changed before; this is what there is.
    Overtaken(Option<Stored>),
}

/// One call: what it does, on which key, until when.
struct Call<'a> {
    etcd: &'a Etcd,
    key: String,
    doing: &'static str,
    until: Instant,
}

impl EtcdArbiter {
    /// Decides by the records of `etcd`.
    #[must_use]
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd }
    }

    fn call(&self, container: &ContainerId, doing: &'static str) -> Call<'_> {
        Call {
            etcd: &self.etcd,
            key: self.etcd.key(&format!("containers/{}/owner", container.as_str())),
            doing,
            until: Instant::now() + DEADLINE,
        }
    }

    /// Has it decided as `wanted`, unless it is decided already.
    async fn decide(
        &self,
        handoff: &Handoff,
        wanted: Decision,
        doing: &'static str,
    ) -> Result<Decision, ArbiterError> {
        let call = self.call(&handoff.container, doing);
        let mut now = call.read().await?;
        loop {
            let stored = match judge(now, handoff)? {
                Judged::Decided(decision) => return Ok(decision),
                Judged::Undecided(stored) => stored,
            };
            let next = stored.record.after(handoff, wanted);
            now = match call.change(handoff.token.0, Some(&next)).await? {
                Change::Made(_) => return Ok(wanted),
                Change::Overtaken(now) => now,
            };
        }
    }
}

#[async_trait]
impl Arbiter for EtcdArbiter {
    async fn open(&self, container: &ContainerId, owner: &Name, epoch: u64) -> Result<Token, ArbiterError> {
        let call = self.call(container, "the container's owner is on record");
        let own = Owner {
            host: owner.clone(),
            epoch,
        };
        let mut now = call.read().await?;
        loop {
            let seen = match &now {
                None => 0,
                Some(stored) if stored.record.owner() == own => return Ok(Token(stored.modified)),
                // Epochs are handed on from owner to owner: who has the higher one has it from the other, by whatever way.
                Some(stored) if stored.record.owner().epoch < epoch => stored.modified,
                Some(stored) => return Err(not_owner(container, own, stored)),
            };
            let record = Record::anew(owner.clone(), epoch);
            now = match call.change(seen, Some(&record)).await? {
                Change::Made(revision) => return Ok(Token(revision)),
                Change::Overtaken(now) => now,
            };
        }
    }

    async fn commit(&self, handoff: &Handoff) -> Result<Decision, ArbiterError> {
        self.decide(handoff, Decision::Committed, "the handoff is committed")
            .await
    }

    async fn abandon(&self, handoff: &Handoff) -> Result<Decision, ArbiterError> {
        self.decide(handoff, Decision::Abandoned, "the handoff is abandoned")
            .await
    }

    async fn decision(&self, handoff: &Handoff) -> Result<Option<Decision>, ArbiterError> {
        let call = self.call(&handoff.container, "the handoff is decided");
        match judge(call.read().await?, handoff)? {
            Judged::Decided(decision) => Ok(Some(decision)),
            Judged::Undecided(_) => Ok(None),
        }
    }

    async fn take(&self, container: &ContainerId, owner: &Name, epoch: u64) -> Result<(), ArbiterError> {
        let call = self.call(container, "the container is this host's");
        let own = Owner {
            host: owner.clone(),
            epoch,
        };
        let mut now = call.read().await?;
        loop {
            let (seen, record) = match now {
                None => (0, Record::anew(owner.clone(), epoch)),
                // Written once more as it is: no handoff that was opened on it is committed any more.
                Some(stored) if stored.record.owner() == own => (stored.modified, stored.record),
                Some(stored) if stored.record.owner().epoch < epoch => {
                    (stored.modified, Record::anew(owner.clone(), epoch))
                }
                Some(stored) => return Err(not_owner(container, own, &stored)),
            };
            now = match call.change(seen, Some(&record)).await? {
                Change::Made(_) => return Ok(()),
                Change::Overtaken(now) => now,
            };
        }
    }

    async fn owner(&self, container: &ContainerId) -> Result<Option<Owner>, ArbiterError> {
        let call = self.call(container, "somebody owns the container");
        Ok(call.read().await?.map(|stored| stored.record.owner()))
    }

    async fn forget(&self, container: &ContainerId, owner: &Name) -> Result<(), ArbiterError> {
        let call = self.call(container, "the container is forgotten");
        let mut now = call.read().await?;
        while let Some(stored) = now.filter(|stored| stored.record.owner().host == *owner) {
            now = match call.change(stored.modified, None).await? {
                Change::Made(_) => return Ok(()),
                Change::Overtaken(now) => now,
            };
        }
        Ok(())
    }
}

impl Call<'_> {
    /// The record as it is now.
    async fn read(&self) -> Result<Option<Stored>, ArbiterError> {
        let get = Txn::new().and_then([TxnOp::get(self.key.as_str(), None)]);
        let response = self.send(get).await?;
        self.stored(&response)
    }

    /// Writes the record, or removes it, if its last change is still of the revision `seen`; 0 is that there is none.
    async fn change(&self, seen: i64, record: Option<&Record>) -> Result<Change, ArbiterError> {
        let key = self.key.as_str();
        let change = match record {
            Some(record) => {
                let value = serde_json::to_vec(record).map_err(|source| ArbiterError::Malformed {
                    key: self.key.clone(),
                    source,
                })?;
                TxnOp::put(key, value, None)
            }
            None => TxnOp::delete(key, None),
        };
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, seen)])
            .and_then([change])
            .or_else([TxnOp::get(key, None)]);
        let response = self.send(txn).await?;
        if response.succeeded() {
            let revision = response.header().map_or(0, |header| header.revision());
            return Ok(Change::Made(revision));
        }
        Ok(Change::Overtaken(self.stored(&response)?))
    }

    async fn send(&self, txn: Txn) -> Result<TxnResponse, ArbiterError> {
        let failed = |source: EtcdError| ArbiterError::Unknown {
            doing: self.doing,
            source: Box::new(source),
        };
        self.etcd.txn(txn, self.until).await.map_err(failed)
    }

    fn stored(&self, response: &TxnResponse) -> Result<Option<Stored>, ArbiterError> {
        let answers = response.op_responses();
        let found = answers.iter().find_map(|answer| match answer {
            TxnOpResponse::Get(get) => GetResponse::kvs(get).first(),
            _ => None,
        });
        let read = found.map(|found| {
            Ok(Stored {
                record: serde_json::from_slice(found.value())?,
                created: found.create_revision(),
                modified: found.mod_revision(),
            })
        });
        read.transpose().map_err(|source| ArbiterError::Malformed {
            key: self.key.clone(),
            source,
        })
    }
}

enum Judged {
    Decided(Decision),
    Undecided(Stored),
}

fn judge(now: Option<Stored>, handoff: &Handoff) -> Result<Judged, ArbiterError> {
    let superseded = |on_record| ArbiterError::Superseded {
        container: handoff.container.clone(),
        migration: handoff.migration,
        on_record,
    };
    let stored = now.ok_or_else(|| superseded(None))?;
    match stored.standing(handoff) {
        Standing::Decided(decision) => Ok(Judged::Decided(decision)),
        Standing::Undecided => Ok(Judged::Undecided(stored)),
        Standing::Superseded => Err(superseded(Some(stored.record.owner()))),
        Standing::NotItsSource => {
            let source = Owner {
                host: handoff.source.clone(),
                epoch: handoff.epoch.saturating_sub(1),
            };
            Err(not_owner(&handoff.container, source, &stored))
        }
    }
}

fn not_owner(container: &ContainerId, asking: Owner, stored: &Stored) -> ArbiterError {
    ArbiterError::NotOwner {
        container: container.clone(),
        asking: asking.host,
        epoch: asking.epoch,
        on_record: stored.record.owner(),
    }
}
