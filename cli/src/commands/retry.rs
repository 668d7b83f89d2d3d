//! A migration that failed of something that may pass by itself, asked for again.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tranship_proto::v1::{Migration, MigrationOutcome};

use super::follow::{exit_code, explain};
use crate::failure::Failure;

/// Before the first retry; twice as long before each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// At most.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// How often is still tried, and how often it was.
pub struct Retries {
    tried: u32,
    at_most: u32,
}

impl Retries {
    pub fn new(at_most: u32) -> Self {
        Self { tried: 0, at_most }
    }

    /// How long to wait before this migration, which has ended, is asked for again; nothing where it is not to be.
    pub fn next(&mut self, migration: &Migration) -> Option<Duration> {
        // The other host may still be on its way back, or clear away what the last try has left there.
        let on_its_way = self.tried > 0 && migration.outcome() == MigrationOutcome::Refused;
        let is_over = self.tried >= self.at_most || !(migration.transient || on_its_way);
        if is_over {
            return None;
        }
        let pause = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(self.tried).unwrap_or(u32::MAX));
        self.tried += 1;
        Some(pause.min(LONGEST_PAUSE))
    }

    /// Says what has happened, and waits. Ctrl-C ends it, with the exit code of what has happened.
    pub async fn wait(&self, migration: &Migration, pause: Duration) -> Result<(), Failure> {
        explain(migration);
        eprintln!(
            "tranship: trying again in {} s ({} of {})",
            pause.as_secs(),
            self.tried,
            self.at_most
        );
        let mut interrupt =
            signal(SignalKind::interrupt()).map_err(Failure::local("cannot listen for signals"))?;
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            _ = interrupt.recv() => {
                let text = "interrupted: it is not tried again";
                Err(Failure::Usage(text.to_owned()).with_code(exit_code(migration.outcome())))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(outcome: MigrationOutcome, transient: bool) -> Migration {
        Migration {
            outcome: outcome.into(),
            transient,
            ..Migration::default()
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_not_for_ever() {
        let mut retries = Retries::new(3);
        for outcome in [
            MigrationOutcome::Failed,
            MigrationOutcome::Refused,
            MigrationOutcome::RolledBack,
            MigrationOutcome::Done,
        ] {
            assert_eq!(retries.next(&ended(outcome, false)), None, "{outcome:?}");
        }
        let lost = ended(MigrationOutcome::Failed, true);
        assert_eq!(retries.next(&lost), Some(Duration::from_secs(1)));
        // Its daemon is not back yet.
        let refused = ended(MigrationOutcome::Refused, false);
        assert_eq!(retries.next(&refused), Some(Duration::from_secs(2)));
        assert_eq!(retries.next(&ended(MigrationOutcome::Failed, false)), None);
        assert_eq!(retries.next(&lost), Some(Duration::from_secs(4)));
        assert_eq!(retries.next(&lost), None);
        assert_eq!(Retries::new(0).next(&lost), None);
    }

    #[test]
    fn pauses_do_not_grow_for_ever() {
        let mut retries = Retries::new(100);
        let lost = ended(MigrationOutcome::Failed, true);
        let last = std::iter::from_fn(|| retries.next(&lost)).last();
        assert_eq!(last, Some(LONGEST_PAUSE));
    }
}
