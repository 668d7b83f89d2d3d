//! What a person asked of a migration, and what earlier ones have shown, as numbers for the source's role.

use std::time::Duration;

use tranship_migrate::convergence::{OnTimeout, Wishes};
use tranship_migrate::host::MemoryMode;
use tranship_migrate::source::Plan;
use tranship_proto::limits::MAX_PAGE_STREAMS;
use tranship_proto::v1::{Migration, MigrationOptions, MigrationOutcome, Span};

/// Longest blackout, unless something else is asked for.
const MAX_DOWNTIME: Duration = Duration::from_millis(100);

/// Longest time before the freeze, unless something else is asked for.
const TIMEOUT: Duration = Duration::from_secs(3600);

/// Streams of memory, unless something else is asked for. One keeps one core of either host busy with encryption.
const PAGE_STREAMS: u32 = 2;

/// Earlier migrations that are looked at.
const HISTORY: usize = 7;

/// Less than this says nothing about how fast a container is copied: the blackout is about something else then.
const TELLING_BYTES: u64 = 64 << 20;

/// Stretches of the blackout that depend on how much memory was written last.
const GROWING: [&str; 2] = ["list of pages", "send memory"];

/// An option that means nothing.
#[derive(Debug, thiserror::Error)]
pub enum OptionError {
    /// Neither of the two words.
    #[error("{0:?} is nothing that can be done when time is up: use `cancel` or `force`")]
    OnTimeout(String),
    /// Too many streams.
    #[error("{0} streams are more than a migration may have, which is {MAX_PAGE_STREAMS}")]
    Streams(u32),
}

/// Options as numbers; 0 and an empty word stand for the default.
///
/// # Errors
/// One of them means nothing.
pub fn plan(options: &MigrationOptions) -> Result<Plan, OptionError> {
    let or =
        |given: u64, otherwise, unit: fn(u64) -> Duration| if given == 0 { otherwise } else { unit(given) };
    let on_timeout = match options.on_timeout.as_str() {
        "" | "cancel" => OnTimeout::Cancel,
        "force" => OnTimeout::Force,
        other => return Err(OptionError::OnTimeout(other.chars().take(40).collect())),
    };
    if options.streams > MAX_PAGE_STREAMS {
        return Err(OptionError::Streams(options.streams));
    }
    Ok(Plan {
        wishes: Wishes {
            max_downtime: or(
                options.max_downtime_ms.into(),
                MAX_DOWNTIME,
                Duration::from_millis,
            ),
            strict: options.max_downtime_ms > 0,
            timeout: or(options.timeout_s.into(), TIMEOUT, Duration::from_secs),
            on_timeout,
        },
        page_streams: match options.streams {
            0 => PAGE_STREAMS,
            streams => streams,
        },
        max_bandwidth: options.max_bandwidth_bytes,
    })
}

/// What blackouts to `destination` cost beyond memory: the median of the newest live migrations. `records` are oldest
/// first.
#[must_use]
pub fn fixed_cost(records: &[Migration], destination: &str) -> Option<Duration> {
    let live = |record: &&Migration| {
        record.outcome() == MigrationOutcome::Done
            && record.destination == destination
            && record.blackout_us > 0
            && record.memory_mode == MemoryMode::Live.to_string()
    };
    let mut costs: Vec<u64> = records
        .iter()
        .rev()
        .filter(live)
        .take(HISTORY)
        .map(|record| record.blackout_us.saturating_sub(growing_us(&record.spans)))
        .collect();
    costs.sort_unstable();
    let median = costs.get(costs.len() / 2)?;
    Some(Duration::from_micros(*median))
}

/// What stop-and-copy migrations to `destination` have copied while the container stood still, in bytes a second: the median of
/// the newest that tell anything. `records` are oldest first.
#[must_use]
pub fn copied_bytes_per_s(records: &[Migration], destination: &str) -> Option<u64> {
    let images = |record: &Migration| {
        let trees = record.trees.iter().filter(|tree| tree.tree == "images");
        trees.map(|tree| tree.bytes).sum::<u64>()
    };
    let tells = |record: &&Migration| {
        record.outcome() == MigrationOutcome::Done
            && record.destination == destination
            && record.blackout_us > 0
            && record.memory_mode != MemoryMode::Live.to_string()
            && images(record) >= TELLING_BYTES
    };
    let mut rates: Vec<u64> = records
        .iter()
        .rev()
        .filter(tells)
        .take(HISTORY)
        .map(|record| images(record).saturating_mul(1_000_000) / record.blackout_us)
        .collect();
    rates.sort_unstable();
    rates.get(rates.len() / 2).copied()
}

fn growing_us(spans: &[Span]) -> u64 {
    let grows = |span: &&Span| GROWING.contains(&span.name.as_str());
    spans.iter().filter(grows).map(|span| span.duration_us).sum()
}

#[cfg(test)]
mod tests {
    use tranship_proto::v1::TreeBytes;

    use super::*;

    #[test]
    fn nothing_asked_for_is_the_default_and_only_what_is_asked_for_is_strict() {
        let nothing = plan(&MigrationOptions::default()).unwrap();
        assert_eq!(nothing.wishes.max_downtime, MAX_DOWNTIME);
        assert!(!nothing.wishes.strict);
        let asked = MigrationOptions {
            max_downtime_ms: 250,
            timeout_s: 7,
            on_timeout: "force".into(),
            streams: 5,
            ..MigrationOptions::default()
        };
        let asked = plan(&asked).unwrap();
        assert_eq!(asked.wishes.max_downtime.as_millis(), 250);
        assert!(asked.wishes.strict && asked.wishes.on_timeout == OnTimeout::Force);
        assert_eq!((asked.wishes.timeout.as_secs(), asked.page_streams), (7, 5));
    }

    #[test]
    fn an_option_that_means_nothing_is_named() {
        let wrong = MigrationOptions {
            on_timeout: "shrug".into(),
            ..MigrationOptions::default()
        };
        assert!(plan(&wrong).unwrap_err().to_string().contains("\"shrug\""));
    }

    #[test]
    fn the_fixed_cost_is_the_median_blackout_without_its_memory() {
        let record = |to: &str, blackout_us, memory_us| Migration {
            destination: to.into(),
            outcome: MigrationOutcome::Done.into(),
            blackout_us,
            memory_mode: "live".into(),
            spans: vec![Span {
                name: "send memory".into(),
                duration_us: memory_us,
                ..Span::default()
            }],
            ..Migration::default()
        };
        let records = [
            record("b", 90_000, 10_000),
            record("c", 900_000, 0),
            record("b", 200_000, 130_000),
            record("b", 60_000, 0),
        ];
        assert_eq!(fixed_cost(&records, "b"), Some(Duration::from_millis(70)));
        assert_eq!(fixed_cost(&records, "d"), None);
    }

    #[test]
    fn how_fast_a_container_is_copied_is_the_median_of_those_that_were_large() {
        let record = |to: &str, mib: u64, blackout_ms: u64| Migration {
            destination: to.into(),
            outcome: MigrationOutcome::Done.into(),
            blackout_us: blackout_ms * 1000,
            trees: vec![TreeBytes {
                tree: "images".into(),
                bytes: mib << 20,
                ..TreeBytes::default()
            }],
            ..Migration::default()
        };
        let live = Migration {
            memory_mode: "live".into(),
            ..record("b", 4096, 1)
        };
        let records = [
            record("b", 100, 1000),
            record("b", 1, 1),
            record("c", 4096, 1),
            live,
            record("b", 300, 1000),
            record("b", 200, 1000),
        ];
        assert_eq!(copied_bytes_per_s(&records, "b"), Some(200 << 20));
        assert_eq!(copied_bytes_per_s(&records, "d"), None);
    }
}
