//! Prints: lists as tables or as one JSON object per line, single things as a JSON array, names one per line.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Value;

use crate::failure::Failure;
use crate::json;

/// How lists are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people.
    #[default]
    Table,
    /// One JSON object per line; an array where something is inspected.
    Json,
}

/// Where and how a verb prints.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// For lists and records.
    pub format: Format,
    /// Names and ids only, no talk.
    pub quiet: bool,
}

/// A list's columns, and what a row shows in them.
pub struct Columns<'a, T> {
    /// Headings.
    pub headings: &'a [&'a str],
    /// The cells of one row.
    pub cells: &'a dyn Fn(&T) -> Vec<String>,
    /// What `-q` prints of it.
    pub key: &'a dyn Fn(&T) -> String,
}

impl Output {
    /// Prints a list.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub fn list<T: Serialize>(self, items: &[T], columns: &Columns<'_, T>) -> Result<(), Failure> {
        if self.quiet {
            return items.iter().try_for_each(|item| self.line(&(columns.key)(item)));
        }
        if self.format == Format::Json {
            return items
                .iter()
                .try_for_each(|item| self.line(&json::value(item)?.to_string()));
        }
        let mut table = table(columns.headings);
        table.add_rows(items.iter().map(columns.cells));
        self.line(&table.trim_fmt())
    }

    /// Prints records as an indented JSON array, as `inspect` does in every format.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub fn records<T: Serialize>(self, items: &[T]) -> Result<(), Failure> {
        let values = items.iter().map(json::value).collect::<Result<Vec<_>, _>>()?;
        self.line(&format!("{:#}", Value::Array(values)))
    }

    /// Prints one record as JSON on one line.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub fn record<T: Serialize>(self, item: &T) -> Result<(), Failure> {
        self.line(&json::value(item)?.to_string())
    }

    /// Prints a line of data.
    ///
    /// # Errors
    /// Stdout cannot be written.
    pub fn line(self, text: &str) -> Result<(), Failure> {
        let mut stdout = io::stdout().lock();
        let outcome = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
        outcome.map_err(Failure::local("cannot write to stdout"))
    }

    /// Says something to a person.
    pub fn say(self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// A line that moves while something goes on: on a terminal only.
    pub fn progress(self, template: &str) -> ProgressBar {
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if self.quiet || dumb || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10));
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}

/// An empty table without lines.
pub fn table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(headings.to_vec());
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table
}
