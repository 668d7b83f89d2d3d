//! A migration as people read it: what took how long on which host, what travelled, how long the container stood still.
//!
//! Spans of source and destination are on different clocks, so each side's are listed by themselves; only durations are
//! compared.

use comfy_table::{CellAlignment, Table};
use tranship_proto::v1::{Migration, MigrationRole, Phase, Span, TreeBytes};

use crate::output::table;
use crate::{json, units};

/// How much is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What each phase spent its time on.
    Phases,
    /// Also CRIU's stages within.
    Stages,
}

/// The story without a line end; of a migration in which nothing was measured only the headline.
pub fn show(migration: &Migration, detail: Detail) -> String {
    let mut parts = vec![headline(migration)];
    if !migration.spans.is_empty() {
        parts.push(spans(migration, detail));
    }
    if !migration.rounds.is_empty() {
        parts.push(rounds(migration));
    }
    if !migration.trees.is_empty() {
        parts.push(trees(migration));
    }
    if parts.len() > 1 {
        parts.push(totals(migration));
    }
    parts.join("\n\n")
}

fn headline(migration: &Migration) -> String {
    let Migration {
        container_name,
        source,
        destination,
        id,
        ..
    } = migration;
    let outcome = json::outcome(migration.outcome).replace('_', " ");
    let phase = match migration.phase() {
        Phase::Unspecified | Phase::Clean => String::new(),
        _ => format!(" in phase {}", json::phase(migration.phase)),
    };
    format!("{container_name}: {source} -> {destination}   {outcome}{phase}   {id}")
}

fn spans(migration: &Migration, detail: Detail) -> String {
    let mut table = table(&["PHASE", "WHAT", "HOST", "START", "TIME"]);
    align_right(&mut table, &[3, 4]);
    let shown = |span: &&Span| detail == Detail::Stages || !is_stage(span);
    let mut spans: Vec<&Span> = migration.spans.iter().filter(shown).collect();
    spans.sort_by_key(|span| (span.phase, span.role, span.start_us));
    let mut last = None;
    for span in spans {
        let host = match span.role() {
            MigrationRole::Destination => &migration.destination,
            _ => &migration.source,
        };
        let phase = if last == Some(span.phase) {
            String::new()
        } else {
            json::phase(span.phase)
        };
        last = Some(span.phase);
        table.add_row(vec![
            phase,
            span.name.clone(),
            host.clone(),
            units::show_us(span.start_us),
            units::show_us(span.duration_us),
        ]);
    }
    table.trim_fmt()
}

/// CRIU's stages are called after the notifications they lie between.
fn is_stage(span: &Span) -> bool {
    span.name.starts_with("criu ") && span.name.contains(" to ")
}

fn trees(migration: &Migration) -> String {
    let mut table = table(&["TREE", "ENTRIES", "BYTES"]);
    align_right(&mut table, &[1, 2]);
    for tree in &migration.trees {
        let TreeBytes {
            tree: name,
            entries,
            bytes,
        } = tree;
        table.add_row(vec![
            shown_name(name),
            entries.to_string(),
            units::show_bytes(*bytes),
        ]);
    }
    table.trim_fmt()
}

/// Rounds of memory; the last ones were read while the container stood still, and overlap with the dump.
fn rounds(migration: &Migration) -> String {
    let mut table = table(&["ROUND", "PAGES", "ZERO", "BYTES", "FIND", "READ", "TIME"]);
    align_right(&mut table, &[1, 2, 3, 4, 5, 6]);
    for round in &migration.rounds {
        let frozen = if round.frozen { " (frozen)" } else { "" };
        let time = match round.duration_us {
            0 => "-".to_owned(),
            time => units::show_us(time),
        };
        table.add_row(vec![
            format!("{}{frozen}", round.number),
            round.pages.to_string(),
            round.zero_pages.to_string(),
            units::show_bytes(round.bytes),
            units::show_us(round.scan_us),
            units::show_us(round.read_us),
            time,
        ]);
    }
    table.trim_fmt()
}

/// A layer's digest in twelve digits.
fn shown_name(tree: &str) -> String {
    match tree.split_once("sha256:") {
        Some((kind, hex)) => format!("{kind}{}", hex.chars().take(12).collect::<String>()),
        None => tree.to_owned(),
    }
}

fn totals(migration: &Migration) -> String {
    let mut totals = vec![format!("total {}", units::show_us(migration.total_us))];
    if migration.blackout_us > 0 {
        totals.insert(0, format!("blackout {}", units::show_us(migration.blackout_us)));
    }
    totals.push(format!("{} sent", units::show_bytes(migration.bytes_sent)));
    if !migration.memory_mode.is_empty() {
        totals.push(format!("memory {}", migration.memory_mode));
    }
    totals.join(", ")
}

/// Numbers stand below each other.
fn align_right(table: &mut Table, columns: &[usize]) {
    for index in columns {
        if let Some(column) = table.column_mut(*index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

#[cfg(test)]
mod tests {
    use tranship_proto::v1::Round;

    use super::*;

    fn span(phase: Phase, role: MigrationRole, name: &str, start_us: u64) -> Span {
        Span {
            name: name.to_owned(),
            role: role.into(),
            start_us,
            duration_us: 1500,
            phase: phase.into(),
        }
    }

    #[test]
    fn spans_are_in_the_order_of_the_phases_and_name_the_host() {
        let migration = Migration {
            container_name: "db".to_owned(),
            source: "a".to_owned(),
            destination: "b".to_owned(),
            phase: Phase::Clean.into(),
            outcome: 1,
            spans: vec![
                span(Phase::Hold, MigrationRole::Destination, "restore", 10),
                span(Phase::Freeze, MigrationRole::Source, "freezer", 5),
                span(
                    Phase::Drain,
                    MigrationRole::Source,
                    "criu request to post-dump",
                    6,
                ),
            ],
            rounds: vec![Round {
                number: 1,
                pages: 77,
                frozen: true,
                ..Round::default()
            }],
            memory_mode: "live".to_owned(),
            trees: vec![TreeBytes {
                tree: format!("layer:sha256:{}", "ab".repeat(32)),
                entries: 3,
                bytes: 4_000,
            }],
            blackout_us: 90_000,
            total_us: 1_000_000,
            bytes_sent: 5_000_000,
            ..Migration::default()
        };
        let text = show(&migration, Detail::Phases);
        assert!(!text.contains("criu request"), "{text}");
        assert!(show(&migration, Detail::Stages).contains("criu request"));
        let place = |word: &str| {
            text.find(word)
                .unwrap_or_else(|| panic!("{word} is missing in\n{text}"))
        };
        assert!(place("freezer") < place("restore"));
        assert!(text.starts_with("db: a -> b   done   "), "{text}");
        assert!(text.contains("1 (frozen)") && text.contains("77"), "{text}");
        assert!(
            text.contains("layer:abababababab ") && text.contains("4.00 kB"),
            "{text}"
        );
        assert!(
            text.ends_with("blackout 90.0 ms, total 1000 ms, 5.00 MB sent, memory live"),
            "{text}"
        );
    }
}
