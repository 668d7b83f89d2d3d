//! What the bench prints, and where docs/BENCHMARKS.md has it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::course::Outcome;
use super::figures::{Figures, ratio};
use super::goals::{self, GOALS};
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
    read: fn(&Outcome, &Move) -> Option<u64>,
    show: fn(u64) -> String,
}

const QUANTITIES: [Quantity; 9] = [
    Quantity {
        name: "stall, ms",
        read: |_, one| one.noticed.stall_us,
        show: milliseconds,
    },
    Quantity {
        name: "blackout, ms",
        read: |_, one| one.moved.blackout_us,
        show: milliseconds,
    },
    Quantity {
        name: "whole move, ms",
        read: |_, one| Some(one.moved.total_us),
        show: milliseconds,
    },
    Quantity {
        name: "sent, MB",
        read: |_, one| Some(one.moved.bytes),
        show: megabytes,
    },
    Quantity {
        name: "sent / geometric ideal",
        read: |outcome, one| goals::permille_of_ideal(outcome.load, one),
        show: thousandths,
    },
    Quantity {
        name: "requests per second before the move",
        read: |_, one| one.noticed.rate_before,
        show: |rate| rate.to_string(),
    },
    Quantity {
        name: "requests per second until the freeze",
        read: |_, one| one.noticed.rate_meanwhile,
        show: |rate| rate.to_string(),
    },
    Quantity {
        name: "peak memory of the source's daemon, MiB",
        read: |_, one| one.moved.daemons_peak_bytes.first().copied(),
        show: mebibytes,
    },
    Quantity {
        name: "peak memory of the destination's daemon, MiB",
        read: |_, one| one.moved.daemons_peak_bytes.get(1).copied(),
        show: mebibytes,
    },
];

/// The scenario whose blackout is accounted for, step by step.
const ACCOUNT: &str = "redis-1g";

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
        text.push('\n');
        text.push_str(&goals(&self.scenarios));
        for outcome in &self.scenarios {
            text.push('\n');
            text.push_str(&section(outcome));
            if outcome.scenario == ACCOUNT || self.scenarios.len() == 1 {
                for subject in &outcome.subjects {
                    text.push_str(&spans(outcome, subject));
                }
            }
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

fn goals(outcomes: &[Outcome]) -> String {
    let mut text = "### What is wanted and what is reached\n\n".to_owned();
    text.push_str("| | must reach | aimed at | reached | |\n|---|---|---|---:|---|\n");
    for goal in GOALS {
        let (figure, verdict) = match (goal.judge)(outcomes) {
            Some(reached) => (reached.figure, if reached.is_met { "yes" } else { "**no**" }),
            None => ("not measured".to_owned(), ""),
        };
        let (what, must, aim) = (goal.what, goal.must, goal.aim);
        text.push_str(&format!("| {what} | {must} | {aim} | {figure} | {verdict} |\n"));
    }
    text
}

fn section(outcome: &Outcome) -> String {
    let subjects = &outcome.subjects;
    let mut text = format!("### {}\n\n{}.", outcome.scenario, outcome.about);
    let counts: Vec<_> = subjects
        .iter()
        .map(|subject| format!("{} moves by {subject}", outcome.moves_by(subject).count()))
        .collect();
    text.push_str(&format!(" {}.\n\n", counts.join(", ")));
    text.push_str(&totals(outcome));
    text
}

/// Each mover's figures side by side; with two of them also how many times more the last one's median is.
fn totals(outcome: &Outcome) -> String {
    let subjects = outcome.subjects.as_slice();
    let mut heading = "| |".to_owned();
    let mut rule = "|---|".to_owned();
    for subject in subjects {
        heading.push_str(&format!(" {subject}: median | p95 | p99 |"));
        rule.push_str("---:|---:|---:|");
    }
    if let [first, last] = subjects {
        heading.push_str(&format!(" {last} / {first} |"));
        rule.push_str("---:|");
    }
    let rows: String = QUANTITIES
        .iter()
        .filter_map(|quantity| row(outcome, quantity))
        .collect();
    format!("{heading}\n{rule}\n{rows}")
}

/// None when nobody has such a thing.
fn row(outcome: &Outcome, quantity: &Quantity) -> Option<String> {
    let mut row = format!("| {} |", quantity.name);
    let mut medians = Vec::new();
    for subject in &outcome.subjects {
        let values = outcome
            .moves_by(subject)
            .filter_map(|one| (quantity.read)(outcome, one));
        let Some(figures) = Figures::of(values) else {
            row.push_str(" | | |");
            continue;
        };
        for value in [figures.median, figures.p95, figures.p99] {
            row.push_str(&format!(" {} |", (quantity.show)(value)));
        }
        medians.push(figures.median);
    }
    match (medians.as_slice(), outcome.subjects.len()) {
        ([], _) => return None,
        ([first, last], 2) => row.push_str(&format!(" {:.1} |", ratio(*last, *first))),
        (_, 2) => row.push_str(" |"),
        _ => {}
    }
    row.push('\n');
    Some(row)
}

fn spans(outcome: &Outcome, subject: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for span in outcome.moves_by(subject).flat_map(|one| &one.moved.spans) {
        if !names.contains(&span.name.as_str()) {
            names.push(&span.name);
        }
    }
    if names.is_empty() {
        return String::new();
    }
    let mut text = format!("\n| {subject}, median of each step | ms |\n|---|---:|\n");
    for name in names {
        let sums = outcome.moves_by(subject).map(|one| {
            let spans = one.moved.spans.iter().filter(|span| span.name == name);
            spans.map(|span| span.duration_us).sum()
        });
        if let Some(figures) = Figures::of(sums) {
            text.push_str(&format!("| {name} | {} |\n", milliseconds(figures.median)));
        }
    }
    text
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

fn mebibytes(bytes: u64) -> String {
    format!("{}.{}", bytes >> 20, ((bytes % (1 << 20)) * 10) >> 20)
}

fn thousandths(permille: u64) -> String {
    format!("{}.{:02}", permille / 1000, permille % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::Load;
    use crate::bench::subject::{Moved, Stretch};
    use crate::bench::watcher::Noticed;

    fn one(subject: &'static str, stall_us: u64, restore_us: u64) -> Move {
        let span = Stretch {
            name: "restore".to_owned(),
            duration_us: restore_us,
        };
        Move {
            subject,
            noticed: Noticed::stall(stall_us),
            moved: Moved {
                from: "a".to_owned(),
                to: "b".to_owned(),
                blackout_us: Some(5),
                total_us: 7,
                before_freeze_us: 0,
                bytes: 1_230_000,
                daemons_peak_bytes: vec![3 << 20, 63 << 20],
                spans: vec![span.clone(), span],
            },
        }
    }

    fn outcome() -> Outcome {
        Outcome {
            scenario: "redis-1g",
            about: "something idle",
            load: Load::Redis { mib: 1024 },
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
        let row = "| stall, ms | 150 | 200 | 200 | 450 | 450 | 450 | 3.0 |";
        assert!(text.contains(row), "{text}");
        let text = spans(&outcome(), "tranship");
        let steps = "| tranship, median of each step | ms |\n|---|---:|\n| restore | 6.00 |";
        assert!(text.contains(steps), "{text}");
    }

    #[test]
    fn one_mover_alone_has_no_ratio() {
        let mut outcome = outcome();
        outcome.subjects.truncate(1);
        assert!(section(&outcome).contains("| sent, MB | 1.2 | 1.2 | 1.2 |\n"));
    }

    #[test]
    fn a_goal_that_is_missed_says_so_and_one_without_figures_too() {
        let text = goals(&[outcome()]);
        assert!(
            text.contains("| <= 120 ms | 50 ms | 150.0 ms | **no** |"),
            "{text}"
        );
        assert!(text.contains("| >= 60 times |  | 3.0 times | **no** |"), "{text}");
        assert!(text.contains("| <= 64 MiB |  | 63 MiB | yes |"), "{text}");
        assert!(
            text.contains("| <= 1.5 times | 1.1 times | not measured |  |"),
            "{text}"
        );
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
