//! What becomes of a migration: seen to its end, told to a person or a script, and as an exit code.

use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::StreamExt;
use tranship_proto::v1::{Migration, MigrationOutcome, NameRequest, Phase};

use super::timeline::{self, Detail};
use crate::connect::Client;
use crate::failure::Failure;
use crate::output::{Format, Output};
use crate::{json, units};

/// Exit code for a migration of which nobody knows how it ended.
const UNKNOWN: u8 = 6;

/// Watches a migration to its end and answers its last record. Ctrl-C asks for a cancellation, a second one leaves it to itself.
///
/// With `every_change` each record is printed as it comes.
pub async fn follow(
    output: Output,
    client: Client,
    id: String,
    every_change: bool,
) -> Result<Migration, Failure> {
    let progress = output.progress("{spinner} {msg} ({elapsed})");
    let mut last = None;
    let watch = async {
        let mut stream = client
            .clone()
            .watch_migration(NameRequest { name: id.clone() })
            .await?
            .into_inner();
        while let Some(migration) = stream.next().await {
            let migration: Migration = migration?;
            progress.set_message(standing(&migration));
            if every_change {
                output.record(&migration)?;
            }
            last = Some(migration);
        }
        Ok::<_, Failure>(())
    };
    let outcome = tokio::select! {
        outcome = watch => outcome,
        failure = cancel_on_interrupt(client.clone(), &id) => return Err(failure),
    };
    progress.finish_and_clear();
    match last {
        Some(migration) if migration.outcome() != MigrationOutcome::Unspecified => Ok(migration),
        _ => Err(match outcome {
            Err(Failure::Daemon(status)) if status.code() != tonic::Code::NotFound => {
                lost(&id, status.message())
            }
            Err(failure) => failure,
            Ok(()) => lost(&id, "the daemon ended the conversation"),
        }),
    }
}

/// Where a migration stands, on one line.
fn standing(migration: &Migration) -> String {
    let phase = json::phase(migration.phase);
    let rounds = matches!(migration.phase(), Phase::Seed | Phase::Rounds);
    let Some(progress) = migration.progress.as_ref().filter(|_| rounds) else {
        return format!("{phase}, {} sent", units::show_bytes(migration.bytes_sent));
    };
    let mut text = format!(
        "{phase}, round {}: {} sent at {}/s",
        progress.round,
        units::show_bytes(progress.sent_bytes),
        units::show_bytes(progress.throughput_bytes_per_s),
    );
    if progress.predicted_blackout_us > 0 {
        text.push_str(&format!(
            ", {} left, {}/s written, blackout now {}, ETA {}",
            units::show_bytes(progress.remaining_bytes),
            units::show_bytes(progress.dirty_bytes_per_s),
            units::show_us(progress.predicted_blackout_us),
            units::show_us(progress.eta_ms * 1000),
        ));
    }
    text
}

fn lost(id: &str, why: &str) -> Failure {
    let text = format!(
        "lost sight of migration {id} ({why}): it goes on without us and its outcome is unknown here; \
         `tranship migrate status {id}` tells it once the daemon answers"
    );
    Failure::Usage(text).with_code(UNKNOWN)
}

/// For ever, but for a second Ctrl-C or a failure.
async fn cancel_on_interrupt(mut client: Client, id: &str) -> Failure {
    let mut interrupt = match signal(SignalKind::interrupt()) {
        Ok(interrupt) => interrupt,
        Err(error) => return Failure::local("cannot listen for signals")(error),
    };
    interrupt.recv().await;
    eprintln!("tranship: cancelling; once more to leave the migration to itself");
    if let Err(status) = client.cancel_migration(NameRequest { name: id.to_owned() }).await {
        eprintln!("tranship: cannot cancel: {}", status.message());
    }
    interrupt.recv().await;
    lost(id, "interrupted")
}

/// Prints a migration that has an outcome, says what is to be said about it, and answers its exit code.
pub fn tell(output: Output, migration: &Migration) -> Result<u8, Failure> {
    report(output, migration)?;
    explain(migration);
    Ok(exit_code(migration.outcome()))
}

/// Prints a migration that has an outcome.
fn report(output: Output, migration: &Migration) -> Result<(), Failure> {
    match (output.quiet, output.format) {
        (true, _) => output.line(&migration.id),
        (false, Format::Json) => output.record(migration),
        (false, Format::Table) => output.line(&timeline::show(migration, Detail::Phases)),
    }
}

pub fn explain(migration: &Migration) {
    for warning in &migration.warnings {
        eprintln!("tranship: warning: {warning}");
    }
    if migration.outcome() == MigrationOutcome::Done {
        return;
    }
    let outcome = json::outcome(migration.outcome).replace('_', " ");
    let error = if migration.error.is_empty() {
        String::new()
    } else {
        format!(": {}", migration.error)
    };
    eprintln!(
        "tranship: migration of {} {outcome}{error}",
        migration.container_name
    );
    migration
        .blockers
        .iter()
        .for_each(|blocker| eprintln!("  {blocker}"));
    if !migration.advice.is_empty() {
        eprintln!("{}", migration.advice);
    }
}

pub fn report_check(output: Output, migration: &Migration) -> Result<u8, Failure> {
    if output.format == Format::Json {
        output.record(migration)?;
    }
    match migration.outcome() {
        MigrationOutcome::Unspecified | MigrationOutcome::Done if migration.blockers.is_empty() => {
            migration
                .warnings
                .iter()
                .for_each(|warning| eprintln!("tranship: warning: {warning}"));
            output.say(&format!(
                "{} can move to {}",
                migration.container_name, migration.destination
            ));
            Ok(0)
        }
        MigrationOutcome::Unspecified | MigrationOutcome::Done => {
            explain(&Migration {
                outcome: MigrationOutcome::Refused.into(),
                ..migration.clone()
            });
            Ok(exit_code(MigrationOutcome::Refused))
        }
        outcome => {
            explain(migration);
            Ok(exit_code(outcome))
        }
    }
}

pub fn exit_code(outcome: MigrationOutcome) -> u8 {
    match outcome {
        MigrationOutcome::Done => 0,
        MigrationOutcome::Failed => 1,
        MigrationOutcome::Refused => 4,
        MigrationOutcome::RolledBack => 5,
        MigrationOutcome::Unspecified | MigrationOutcome::Unknown => UNKNOWN,
        MigrationOutcome::Cancelled => 7,
        MigrationOutcome::TimedOut => 8,
    }
}

#[cfg(test)]
mod tests {
    use tranship_proto::v1::Progress;

    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let codes = [
            (MigrationOutcome::Done, 0),
            (MigrationOutcome::Failed, 1),
            (MigrationOutcome::Refused, 4),
            (MigrationOutcome::RolledBack, 5),
            (MigrationOutcome::Unknown, 6),
            (MigrationOutcome::Cancelled, 7),
            (MigrationOutcome::TimedOut, 8),
        ];
        for (outcome, code) in codes {
            assert_eq!(exit_code(outcome), code, "{outcome:?}");
        }
    }

    #[test]
    fn a_person_sees_how_far_the_rounds_are() {
        let mut migration = Migration {
            bytes_sent: 5_000_000,
            phase: Phase::Rounds.into(),
            progress: Some(Progress {
                round: 2,
                dirty_bytes_per_s: 3_000_000,
                sent_bytes: 70_000_000,
                throughput_bytes_per_s: 800_000_000,
                remaining_bytes: 1_000_000,
                predicted_blackout_us: 61_000,
                eta_ms: 2,
            }),
            ..Migration::default()
        };
        assert_eq!(
            standing(&migration),
            "rounds, round 2: 70.0 MB sent at 800 MB/s, 1.00 MB left, 3.00 MB/s written, blackout now 61.0 ms, ETA 2.0 ms"
        );
        migration.set_phase(Phase::Drain);
        assert_eq!(standing(&migration), "drain, 5.00 MB sent");
    }

    #[test]
    fn losing_sight_says_how_to_find_it_again() {
        let failure = lost("01ABC", "broken pipe");
        assert_eq!(failure.exit_code(), 6);
        assert!(failure.to_string().contains("tranship migrate status 01ABC"));
    }
}
