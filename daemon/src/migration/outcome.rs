//! How a migration ended, as its record says it: the outcome, what happened, what state things are in and what to do.

use tranship_migrate::destination::{DestinationEnd, DestinationReport};
use tranship_migrate::error::{Failure, HostError, chain};
use tranship_migrate::source::{SourceEnd, SourceReport};
use tranship_proto::v1::{Migration, MigrationOutcome, TreeBytes};

use crate::clock::now_ms;

/// Puts the source's end into the record.
pub fn of_source(record: &mut Migration, report: SourceReport) {
    record.finished_ms = now_ms();
    record.spans = report.spans;
    record.rounds = report.rounds;
    record.memory_mode = report.memory_mode.to_string();
    record.blackout_us = report.blackout_us;
    record.total_us = report.total_us;
    record.warnings.extend(report.warnings);
    record.bytes_sent = report.trees.iter().map(|tree| tree.bytes).sum();
    record.trees = report
        .trees
        .iter()
        .map(|tree| TreeBytes {
            tree: tree.name.to_string(),
            entries: tree.entries,
            bytes: tree.bytes,
        })
        .collect();
    match report.end {
        SourceEnd::Done { left } => {
            record.set_outcome(MigrationOutcome::Done);
            if !left.is_empty() {
                record.error = with_undo(
                    "its copy at the source could not be removed yet".to_owned(),
                    &left,
                );
                record.advice = format!(
                    "container {} runs at {}; this goes on trying",
                    record.container_name, record.destination
                );
            }
        }
        SourceEnd::Failed { failure, undo } => not_started(record, &failure, &undo),
        SourceEnd::RolledBack { failure, undo } => rolled_back(record, &failure, &undo),
        SourceEnd::Unknown(failure) => unknown(record, &failure),
    }
}

/// Puts the destination's end into the record.
pub fn of_destination(record: &mut Migration, report: DestinationReport) {
    record.finished_ms = now_ms();
    record.spans = report.spans;
    record.total_us = report.total_us;
    record.warnings = report.warnings;
    match report.end {
        DestinationEnd::Runs => record.set_outcome(MigrationOutcome::Done),
        DestinationEnd::Dropped { failure, undo } => {
            let outcome = if failure.is_cancelled() {
                MigrationOutcome::Cancelled
            } else {
                MigrationOutcome::RolledBack
            };
            record.set_outcome(outcome);
            record.error = with_undo(chain(&failure), &undo);
            record.advice = format!(
                "the container is at {}; nothing of it is left here",
                record.source
            );
        }
    }
}

/// The preflight found reasons against it.
pub fn refused(record: &mut Migration, blockers: Vec<String>) {
    record.set_outcome(MigrationOutcome::Refused);
    record.advice = refused_advice(record);
    record.blockers = blockers;
    record.finished_ms = now_ms();
}

/// A person stopped it before anything was touched.
pub fn cancelled(record: &mut Migration) {
    record.set_outcome(MigrationOutcome::Cancelled);
    record.error = "preflight failed: cancelled".to_owned();
    record.advice = untouched(record);
    record.finished_ms = now_ms();
}

fn untouched(record: &Migration) -> String {
    format!(
        "container {} runs at {} and was not touched",
        record.container_name, record.source
    )
}

/// What a refused migration leaves, and what to do about it.
#[must_use]
pub fn refused_advice(record: &Migration) -> String {
    format!(
        "container {} runs at {} and was not touched; mend what is named and try again, or choose another host",
        record.container_name, record.source
    )
}

fn outcome_of(failure: &Failure, otherwise: MigrationOutcome) -> MigrationOutcome {
    match failure {
        cancelled if cancelled.is_cancelled() => MigrationOutcome::Cancelled,
        late if late.is_timeout() => MigrationOutcome::TimedOut,
        _ => otherwise,
    }
}

fn not_started(record: &mut Migration, failure: &Failure, undo: &[HostError]) {
    record.set_outcome(outcome_of(failure, MigrationOutcome::Failed));
    record.error = with_undo(chain(failure), undo);
    record.transient = undo.is_empty() && failure.cause.is_transient();
    record.advice = match (undo.is_empty(), record.transient) {
        (true, true) => try_again(record),
        (true, false) => untouched(record),
        (false, _) => not_whole(record),
    };
}

/// The connection is what is wrong, or the other daemon.
#[must_use]
pub fn try_again(record: &Migration) -> String {
    format!(
        "{}; see with `tranship host ls` whether {} answers, and ask for it again",
        untouched(record),
        record.destination
    )
}

fn not_whole(record: &Migration) -> String {
    format!(
        "container {} is at {} but was not brought back whole yet; this goes on trying",
        record.container_name, record.source
    )
}

fn rolled_back(record: &mut Migration, failure: &Failure, undo: &[HostError]) {
    record.set_outcome(outcome_of(failure, MigrationOutcome::RolledBack));
    record.error = with_undo(chain(failure), undo);
    record.advice = if undo.is_empty() {
        format!(
            "container {} runs at {} again",
            record.container_name, record.source
        )
    } else {
        not_whole(record)
    };
}

fn unknown(record: &mut Migration, failure: &Failure) {
    record.set_outcome(MigrationOutcome::Unknown);
    record.error = chain(failure);
    record.advice = format!(
        "the copy of container {} at {} stays frozen until it is certain whose it is, {}'s or its own; this goes on by itself: \
         see `tranship migrate status {}`; if {2} is gone for ever, `tranship migrate resolve` lets a person decide",
        record.container_name, record.source, record.destination, record.id
    );
}

fn with_undo(mut text: String, undo: &[HostError]) -> String {
    for error in undo {
        text.push_str("; also: ");
        text.push_str(&chain(error));
    }
    text
}

#[cfg(test)]
mod tests {
    use tranship_migrate::error::StepError;
    use tranship_migrate::host::MemoryMode;
    use tranship_proto::v1::Phase;

    use super::*;

    fn report(end: SourceEnd) -> SourceReport {
        SourceReport {
            end,
            spans: Vec::new(),
            trees: Vec::new(),
            rounds: Vec::new(),
            memory_mode: MemoryMode::Live,
            blackout_us: 0,
            total_us: 7,
            warnings: Vec::new(),
        }
    }

    fn record() -> Migration {
        Migration {
            source: "a".into(),
            destination: "b".into(),
            container_name: "web".into(),
            ..Migration::default()
        }
    }

    #[test]
    fn a_rollback_says_what_failed_and_where_the_container_runs() {
        let failure = Failure {
            phase: Phase::Drain,
            cause: HostError::new("dump it", "io_uring").into(),
        };
        let mut record = record();
        of_source(
            &mut record,
            report(SourceEnd::RolledBack {
                failure,
                undo: Vec::new(),
            }),
        );
        assert_eq!(record.outcome(), MigrationOutcome::RolledBack);
        assert_eq!(record.error, "drain failed: cannot dump it: io_uring");
        assert_eq!(record.advice, "container web runs at a again");
    }

    #[test]
    fn what_may_pass_says_so_and_what_to_do() {
        let waiting_for = "seeded";
        let failure = Failure {
            phase: Phase::Seed,
            cause: tranship_migrate::error::ControlError::Lost { waiting_for }.into(),
        };
        let mut record = record();
        let undo = Vec::new();
        of_source(&mut record, report(SourceEnd::Failed { failure, undo }));
        assert!(record.transient);
        assert_eq!(
            record.advice,
            "container web runs at a and was not touched; see with `tranship host ls` whether b answers, and ask for it again"
        );
    }

    #[test]
    fn what_the_destination_warns_of_comes_behind_what_the_preflight_found() {
        let mut record = record();
        record.warnings = vec!["found before".to_owned()];
        let done = report(SourceEnd::Done { left: Vec::new() });
        let warned = SourceReport {
            warnings: vec!["not on its network".to_owned()],
            ..done
        };
        of_source(&mut record, warned);
        assert_eq!(record.outcome(), MigrationOutcome::Done);
        assert_eq!(record.warnings, ["found before", "not on its network"]);
    }

    #[test]
    fn a_failed_undo_is_not_kept_quiet() {
        let failure = Failure {
            phase: Phase::Freeze,
            cause: StepError::Cancelled,
        };
        let undo = vec![HostError::new("thaw it", "no such cgroup")];
        let mut record = record();
        of_source(&mut record, report(SourceEnd::RolledBack { failure, undo }));
        assert_eq!(record.outcome(), MigrationOutcome::Cancelled);
        assert!(
            record.error.ends_with("; also: cannot thaw it: no such cgroup"),
            "{}",
            record.error
        );
        assert!(record.advice.contains("goes on trying"), "{}", record.advice);
    }
}
