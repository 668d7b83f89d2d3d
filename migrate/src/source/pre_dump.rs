//! The part of the source's role that is about memory as a chain of CRIU's images.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tranship_proto::v1::RoundStored;
use tranship_proto::v1::migrate_message::Body;

use super::{Reserved, Source};
use crate::chain::Chain;
use crate::control::unexpected;
use crate::convergence::{ASSUMED_FIXED, Convergence, Decision};
use crate::deadlines::SYNC;
use crate::error::StepError;
use crate::host::Event;

impl Source {
    /// Nothing earlier tells what such a move costs, and the least it costs is to read all of the memory at the destination.
    pub(super) fn begin_chain(&mut self) {
        self.fixed = ASSUMED_FIXED + Chain::restoring(self.memory_bytes);
        self.chain = Some(Chain::new(self.memory_bytes));
    }

    /// One round: written by CRIU, sent, and stored at the destination. A round that CRIU has begun is waited for whoever cancels: its
    /// code is in the tasks.
    pub(super) async fn pre_dump(&mut self, reserved: &mut Reserved) -> Result<(), StepError> {
        let (host, began) = (Arc::clone(&self.host), Instant::now());
        let Some(number) = self.chain.as_ref().map(Chain::next) else {
            return Ok(());
        };
        let tree = host.pre_dump(number).await?;
        let written = began.elapsed();
        self.send(reserved, &tree).await?;
        let bytes = self.trees.last().map_or(0, |report| report.bytes);
        match self.hear("round stored", SYNC).await? {
            Body::RoundStored(RoundStored { round }) if round == number => {}
            other => return Err(unexpected("round stored", &other)),
        }
        self.timings
            .record(&format!("round {number}"), began, began.elapsed());
        if let Some(chain) = &mut self.chain {
            let round = chain.stored(began, written, bytes);
            self.host.observe(Event::Round(&round));
        }
        Ok(())
    }

    /// What to do after a round of a chain.
    pub(super) fn decide_chain(
        &mut self,
        convergence: &mut Convergence,
        elapsed: Duration,
    ) -> Option<Decision> {
        let chain = self.chain.as_ref()?;
        let facts = chain.facts(elapsed, self.fixed);
        let decision = convergence.decide_by_images(&facts, chain.has_room());
        self.stop.explain(convergence.when_time_is_up(&facts));
        tracing::debug!(migration_id = %self.migration, remaining_bytes = facts.remaining_bytes, predicted_ms = facts.predicted().as_millis(), ?decision, "between rounds");
        self.host.observe(Event::Progress(&chain.progress(&facts)));
        Some(decision)
    }
}
