//! Migrations of long ago are forgotten, with their journals, when nobody can ask about them any more.
//!
//! A source that has ended its role asks nothing: so its destination may forget once that is so, and asks whether it is. A destination
//! whose source has forgotten is through, or reads from that that nothing of what it has is of use, which is how it ended.

use std::collections::BTreeSet;
use std::sync::Arc;

use tranship_migrate::error::{HostError, chain};
use tranship_migrate::handoff::{DestinationStep, SourceStep};
use tranship_proto::ids::{MigrationId, Name};
use tranship_proto::v1::MigrationRole;

use super::conductor::Shared;
use super::journal::Journal;
use crate::registry::MigrationRecord;

/// Looked at when a migration ends: more than come, so that those of a host that was away are made up for.
const AT_ONCE: u32 = 16;

type AnyError = Box<dyn std::error::Error + Send + Sync>;

impl Shared {
    /// Forgets some of what is older than is to be kept, in the background, unless somebody is at it. Nothing depends on it.
    pub fn forget_old(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let Ok(_alone) = shared.forgetting.try_lock() else {
                return;
            };
            if let Err(error) = shared.forget_some().await {
                tracing::debug!(error = %chain(&error), "migrations of long ago stay on record for now");
            }
        });
    }

    async fn forget_some(&self) -> Result<(), HostError> {
        let failed = |error: AnyError| HostError::new("forget migrations of long ago", error);
        let migrations = self.registry().migrations();
        let keep = self.daemon.config.history;
        let old = migrations.ended_beyond(keep, AT_ONCE).await;
        let (mut over, mut silent) = (Vec::new(), BTreeSet::new());
        for record in old.map_err(|error| failed(error.into()))? {
            let (id, role, peer) = parts(&record).map_err(failed)?;
            if silent.contains(&peer) {
                continue;
            }
            match self.is_over(id, role, &peer).await {
                Ok(true) => over.push((id, role)),
                Ok(false) => {}
                Err(error) => {
                    tracing::debug!(migration_id = %id, error = %chain(&error), "it stays on record for now");
                    silent.insert(peer);
                }
            }
        }
        if over.is_empty() {
            return Ok(());
        }
        // At once: each transaction is a sync of the journal, for which a handoff under way may have to wait.
        migrations
            .forget(over)
            .await
            .map_err(|error| failed(error.into()))
    }

    async fn is_over(&self, id: MigrationId, role: MigrationRole, peer: &Name) -> Result<bool, HostError> {
        let journal = Journal::new(self.registry().clone(), id, role);
        let unread = |error| HostError::new("read the journal", error);
        if role == MigrationRole::Source {
            return Ok(SourceStep::is_over(&journal.words().await.map_err(unread)?));
        }
        if !DestinationStep::is_over(&journal.words().await.map_err(unread)?) {
            return Ok(false);
        }
        // Whoever was removed from the cluster is not answered any more, and has no journal when he is let in again.
        let is_host = self.peers().hosts().iter().any(|host| host.name == *peer);
        Ok(!is_host || self.is_over_at_source(id, peer).await?)
    }
}

fn parts(record: &MigrationRecord) -> Result<(MigrationId, MigrationRole, Name), AnyError> {
    let (migration, peer) = (&record.migration, record.peer());
    Ok((migration.id.parse()?, migration.role(), peer.parse()?))
}
