//! `bench`: what docs/BENCHMARKS.md reports.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use tranship_tests::bench::course::{self, Mover, Moves};
use tranship_tests::bench::machine::Machine;
use tranship_tests::bench::report::Report;
use tranship_tests::bench::scenario::Scenario;
use tranship_tests::interrupt;
use tranship_tests::testbed::Options;

/// Moves containers to and fro, by Tranship and by runc and rsync in turn, while a client waits for answers.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Moves of each mover and scenario that count.
    #[arg(long, default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    moves: u32,
    /// The most by runc and rsync, which take their time.
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u32).range(1..))]
    baseline_moves: u32,
    /// Move only one Nth of each scenario's memory, for a quick look.
    #[arg(long, value_name = "N", default_value_t = 1)]
    divide: usize,
    /// Only these scenarios.
    #[arg(long, value_name = "NAME")]
    scenario: Vec<String>,
    /// Only these movers, of those that a scenario has.
    #[arg(long, value_enum, value_name = "NAME")]
    mover: Vec<Mover>,
    /// Rate of each link, such as 1gbit; without it as fast as the machine.
    #[arg(long)]
    link: Option<String>,
    /// Rewrite the generated part of this file.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What is printed: tables, or every single measurement.
    #[arg(long, value_enum, default_value = "table")]
    format: Format,
    /// Take down what a run that was killed has left.
    #[arg(long)]
    force: bool,
    /// The testbed's directory.
    #[arg(long, default_value = "/run/tranship-bench")]
    dir: PathBuf,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Table,
    Json,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let scenarios = Scenario::choose(&arguments.scenario, arguments.divide)?;
    let moves = Moves {
        each: arguments.moves,
        baseline: arguments.baseline_moves,
    };
    let options = Options {
        link: arguments.link,
        dir: arguments.dir,
        force: arguments.force,
        ..Options::default()
    };
    interrupt::take_down_on_signal(&options.dir)?;
    let machine = Machine::look()?;
    let mut outcomes = Vec::new();
    for scenario in scenarios {
        let wanted = |mover: &&Mover| arguments.mover.is_empty() || arguments.mover.contains(mover);
        let movers: Vec<Mover> = scenario.movers.iter().filter(wanted).copied().collect();
        if !movers.is_empty() {
            outcomes.push(course::run(&scenario, &movers, moves, &options)?);
        }
    }
    let report = Report::new(machine, options.link, outcomes);
    match arguments.format {
        Format::Table => println!("{}", report.markdown()),
        Format::Json => println!("{}", serde_json::to_string(&report)?),
    }
    match arguments.output {
        Some(file) => report.write_into(&file),
        None => Ok(()),
    }
}
