//! The course of one scenario: the movers take turns, so that whatever disturbs the machine disturbs both.
//!
//! Every turn has the order of the one before reversed (A B, B A, A B): what a move leaves behind, such as memory that it has
//! just freed, then helps or hinders each of them as often as the other.

use anyhow::{Context, Result};
use serde::Serialize;

use super::baseline::Baseline;
use super::client::Client;
use super::scenario::Scenario;
use super::subject::{Move, Subject};
use super::tranship::Tranship;
use crate::testbed::{Options, Testbed};

/// Who moves containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mover {
    /// `tranship migrate`.
    Tranship,
    /// `runc checkpoint`, rsync, `runc restore`.
    Baseline,
}

impl Mover {
    fn start(self, bed: &Testbed) -> Result<Box<dyn Subject>> {
        Ok(match self {
            Self::Tranship => Box::new(Tranship::start(bed)?),
            Self::Baseline => Box::new(Baseline::start(bed)?),
        })
    }
}

/// What a scenario gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub scenario: &'static str,
    /// In words.
    pub about: &'static str,
    /// The movers, the one that all others are compared with first.
    pub subjects: Vec<&'static str>,
    /// Every counted move, in the order they were made.
    pub moves: Vec<Move>,
}

struct Lane {
    subject: Box<dyn Subject>,
    client: Client,
}

impl Lane {
    fn start(mover: Mover, bed: &Testbed, scenario: &'static Scenario) -> Result<Self> {
        let subject = mover.start(bed)?;
        let client = Client::start(bed.client(), subject.address(), scenario)
            .with_context(|| format!("the container of {}", subject.name()))?;
        Ok(Self { subject, client })
    }

    fn move_once(&mut self) -> Result<Move> {
        let subject = self.subject.name();
        let mut attempt = || -> Result<Move> {
            self.client.begin()?;
            let moved = self.subject.move_over()?;
            let stall_us = self.client.finish()?;
            Ok(Move {
                subject,
                stall_us,
                moved,
            })
        };
        attempt().with_context(|| format!("a move by {subject}"))
    }
}

/// Runs a scenario on a testbed of its own: one move of each mover that does not count (afterwards both hosts have what
/// stays on a host, such as the image and CRIU's kernel probe), then `moves` of each that do, by turns.
///
/// # Errors
/// Something does not work; the testbed is taken down.
pub fn run(scenario: &'static Scenario, movers: &[Mover], moves: u32, options: &Options) -> Result<Outcome> {
    let bed = if movers.contains(&Mover::Tranship) {
        Testbed::up(options)?
    } else {
        Testbed::up_without_daemons(options)?
    };
    let mut lanes = Vec::new();
    for mover in movers {
        lanes.push(Lane::start(*mover, &bed, scenario)?);
    }
    let subjects = lanes.iter().map(|lane| lane.subject.name()).collect();
    let mut made = Vec::new();
    for turn in 0..=moves {
        for lane in &mut lanes {
            let one = lane.move_once()?;
            eprintln!(
                "bench: {} {turn}/{moves} {}: stall {} ms, blackout {} ms, total {} ms{}",
                scenario.name,
                one.subject,
                one.stall_us / 1000,
                one.moved.blackout_us / 1000,
                one.moved.total_us / 1000,
                if turn == 0 { " (does not count)" } else { "" }
            );
            if turn > 0 {
                made.push(one);
            }
        }
        lanes.reverse();
    }
    drop(lanes);
    bed.down()?;
    Ok(Outcome {
        scenario: scenario.name,
        about: scenario.about,
        subjects,
        moves: made,
    })
}
