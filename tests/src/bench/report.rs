//! What the bench prints, and where docs/BENCHMARKS.md has it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::course::Outcome;
use super::figures::{Figures, ratio};
use super::machine::Machine;
use super::subject::Move;

const BEGIN: &str = "<!-- begin of what the bench writes -->";
const END: &str = "<!-- end of what the bench writes -->";

/// Everything that was measured in one run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    machine: Machine,
    /// Rate of the links; none is as fast as the machine.
    link: Option<String>,
    scenarios: Vec<Outcome>,
}

/// A row of the table: what is measured, and how it is read out of a move and shown.
struct Quantity {
    name: &'static str,
    read: fn(&Move) -> u64,
    show: fn(u64) -> String,
}

const QUANTITIES: [Quantity; 4] = [
    Quantity {
        name: "client's stall, ms",
        read: |one| one.stall_us,
        show: milliseconds,
    },
    Quantity {
        name: "blackout, ms",
        read: |one| one.moved.blackout_us,
        show: milliseconds,
    },
    Quantity {
        name: "whole move, ms",
        read: |one| one.moved.total_us,
        show: milliseconds,
    },
    Quantity {
        name: "sent, MB",
        read: |one| one.moved.bytes,
        show: megabytes,
    },
];

impl Report {
    /// The report of a run.
    #[must_use]
    pub fn new(machine: Machine, link: Option<String>, scenarios: Vec<Outcome>) -> Self {
        Self {
            machine,
            link,
            scenarios,
        }
    }

    /// As people read it.
    #[must_use]
    pub fn markdown(&self) -> String {
        let machine = &self.machine;
        let link = self.link.as_deref().unwrap_or("as fast as the machine");
        let mut text = format!(
            "{}; {}, {} cores for both hosts and the client, {} GiB of memory; CRIU {}, runc {}, rsync {}; \
             link: {link}.\n",
            machine.kernel,
            machine.processor,
            machine.cores,
            machine.memory_gib,
            machine.criu,
            machine.runc,
            machine.rsync,
        );
        for outcome in &self.scenarios {
            text.push('\n');
            text.push_str(&section(outcome));
        }
        text
    }

    /// Replaces what lies between the two marks of the file, and writes every measurement beside it as JSON.
    ///
    /// # Errors
    /// The file cannot be read or written, or has no marks.
    pub fn write_into(&self, file: &Path) -> Result<()> {
        let shown = file.display();
        let old = fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
        let new = replaced(&old, &self.markdown())
            .with_context(|| format!("{shown} has no `{BEGIN}` followed by `{END}`"))?;
        fs::write(file, new).with_context(|| format!("cannot write {shown}"))?;
        let beside = file.with_extension("json");
        let mut json = serde_json::to_string_pretty(self)?;
        json.push('\n');
        fs::write(&beside, json).with_context(|| format!("cannot write {}", beside.display()))
    }
}

fn replaced(old: &str, generated: &str) -> Option<String> {
    let (before, rest) = old.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{generated}\n{END}{after}"))
}

fn section(outcome: &Outcome) -> String {
    let subjects = &outcome.subjects;
    let mut text = format!("### {}\n\n{}.", outcome.scenario, outcome.about);
    let counts: Vec<_> = subjects
        .iter()
        .map(|subject| format!("{} moves by {subject}", moves_of(outcome, subject).count()))
        .collect();
    text.push_str(&format!(" {}.\n\n", counts.join(", ")));
    text.push_str(&totals(outcome, subjects));
    for subject in subjects {
        text.push('\n');
        text.push_str(&spans(outcome, subject));
    }
    text
}

/// Each mover's figures side by side; with two of them also how many times more the last one's median is.
fn totals(outcome: &Outcome, subjects: &[&str]) -> String {
    let mut heading = "| |".to_owned();
    let mut rule = "|---|".to_owned();
    for subject in subjects {
        heading.push_str(&format!(" {subject}: median | p95 | max |"));
        rule.push_str("---:|---:|---:|");
    }
    let compared = match subjects {
        [first, last] => Some((*first, *last)),
        _ => None,
    };
    if let Some((first, last)) = compared {
        heading.push_str(&format!(" {last} / {first} |"));
        rule.push_str("---:|");
    }
    let mut text = format!("{heading}\n{rule}\n");
    for quantity in &QUANTITIES {
        let mut medians = Vec::new();
        let mut row = format!("| {} |", quantity.name);
        for subject in subjects {
            let values = moves_of(outcome, subject).map(quantity.read);
            let Some(figures) = Figures::of(values) else {
                continue;
            };
            for value in [figures.median, figures.p95, figures.max] {
                row.push_str(&format!(" {} |", (quantity.show)(value)));
            }
            medians.push(figures.median);
        }
        if let (Some(_), [first, last]) = (compared, medians.as_slice()) {
            row.push_str(&format!(" {:.1} |", ratio(*last, *first)));
        }
        text.push_str(&format!("{row}\n"));
    }
    text
}

fn spans(outcome: &Outcome, subject: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for span in moves_of(outcome, subject).flat_map(|one| &one.moved.spans) {
        if !names.contains(&span.name.as_str()) {
            names.push(&span.name);
        }
    }
    let mut text = format!("| {subject}, median of each step | ms |\n|---|---:|\n");
    for name in names {
        let sums = moves_of(outcome, subject).map(|one| {
            let spans = one.moved.spans.iter().filter(|span| span.name == name);
            spans.map(|span| span.duration_us).sum()
        });
        if let Some(figures) = Figures::of(sums) {
            text.push_str(&format!("| {name} | {} |\n", milliseconds(figures.median)));
        }
    }
    text
}

fn moves_of<'a>(outcome: &'a Outcome, subject: &str) -> impl Iterator<Item = &'a Move> {
    outcome.moves.iter().filter(move |one| one.subject == subject)
}

/// Three digits that count.
fn milliseconds(us: u64) -> String {
    match us {
        0..10_000 => format!("{}.{:02}", us / 1000, us % 1000 / 10),
        10_000..100_000 => format!("{}.{}", us / 1000, us % 1000 / 100),
        _ => (us / 1000).to_string(),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::subject::{Moved, Stretch};

    fn one(subject: &'static str, stall_us: u64, restore_us: u64) -> Move {
        let span = Stretch {
            name: "restore".to_owned(),
            duration_us: restore_us,
        };
        Move {
            subject,
            stall_us,
            moved: Moved {
                from: "a".to_owned(),
                to: "b".to_owned(),
                blackout_us: 5,
                total_us: 7,
                bytes: 1_230_000,
                spans: vec![span.clone(), span],
            },
        }
    }

    fn outcome() -> Outcome {
        Outcome {
            scenario: "idle-64",
            about: "something idle",
            subjects: vec!["tranship", "runc+rsync"],
            moves: vec![
                one("tranship", 100_000, 2_000),
                one("runc+rsync", 450_000, 3_000),
                one("tranship", 200_000, 4_000),
            ],
        }
    }

    #[test]
    fn the_ratio_is_of_medians() {
        let text = section(&outcome());
        assert!(
            text.contains("| client's stall, ms | 150 | 200 | 200 | 450 | 450 | 450 | 3.0 |"),
            "{text}"
        );
        assert!(
            text.contains("| tranship, median of each step | ms |\n|---|---:|\n| restore | 6.00 |"),
            "{text}"
        );
    }

    #[test]
    fn one_mover_alone_has_no_ratio() {
        let mut outcome = outcome();
        outcome.subjects.truncate(1);
        assert!(section(&outcome).contains("| sent, MB | 1.2 | 1.2 | 1.2 |\n"));
    }

    #[test]
    fn only_what_lies_between_the_marks_is_replaced() {
        let old = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let new = replaced(&old, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(replaced(&new, "new\n").unwrap(), new);
        assert!(replaced("nothing", "new").is_none());
    }

    #[test]
    fn milliseconds_have_three_digits_that_count() {
        let shown = [1_234, 12_345, 123_456].map(milliseconds);
        assert_eq!(shown, ["1.23", "12.3", "123"]);
    }
}
