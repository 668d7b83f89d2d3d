//! The course of one scenario: the movers take turns, so that whatever disturbs the machine disturbs both.
//!
//! Every turn has the order of the one before reversed (A B, B A, A B): what a move leaves behind, such as memory that it has
//! just freed, then helps or hinders each of them as often as the other.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;

use super::baseline::Baseline;
use super::load::Load;
use super::scenario::Scenario;
use super::subject::{Move, Subject};
use super::tls::TlsCopy;
use super::tranship::Tranship;
use super::watcher::{Course, Noticed, Watcher};
use crate::testbed::{Options, Testbed};

/// Who moves containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Mover {
    /// `tranship migrate`.
    Tranship,
    /// `runc checkpoint`, rsync, `runc restore`.
    Baseline,
    /// Only the bytes, over one TLS connection.
    TlsCopy,
}

impl Mover {
    fn start(self, bed: &Testbed, load: &Load, sent: &Arc<AtomicU64>) -> Result<Box<dyn Subject>> {
        Ok(match self {
            Self::Tranship => Box::new(Tranship::start(bed, load, sent.clone())?),
            Self::Baseline => Box::new(Baseline::start(bed, load)?),
            Self::TlsCopy => Box::new(TlsCopy::start(bed, sent.clone())?),
        })
    }
}

/// How often containers are moved.
#[derive(Clone, Copy, Debug)]
pub struct Moves {
    /// By Tranship, and bytes over TLS.
    pub each: u32,
    /// By the baseline, at most.
    pub baseline: u32,
}

impl Moves {
    fn of(self, mover: Mover) -> u32 {
        match mover {
            Mover::Baseline => self.baseline.min(self.each),
            Mover::Tranship | Mover::TlsCopy => self.each,
        }
    }

    fn most(self, movers: &[Mover]) -> u32 {
        movers.iter().map(|mover| self.of(*mover)).max().unwrap_or(0)
    }
}

/// What a scenario gave.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// Its name.
    pub scenario: &'static str,
    /// In words.
    pub about: &'static str,
    /// What was moved.
    pub load: Load,
    /// The movers, the one that all others are compared with first.
    pub subjects: Vec<&'static str>,
    /// Every counted move, in the order they were made.
    pub moves: Vec<Move>,
}

impl Outcome {
    /// The moves by one of the movers.
    pub fn moves_by<'a>(&'a self, subject: &str) -> impl Iterator<Item = &'a Move> {
        self.moves.iter().filter(move |one| one.subject == subject)
    }
}

struct Lane {
    moves: u32,
    subject: Box<dyn Subject>,
    watcher: Option<Box<dyn Watcher>>,
}

impl Lane {
    fn start(mover: Mover, moves: u32, bed: &Testbed, load: &Load, sent: &Arc<AtomicU64>) -> Result<Self> {
        let subject = mover.start(bed, load, sent)?;
        let watch = |address| load.watch(bed.client(), address);
        let watcher = subject.address().map(watch).transpose();
        let watcher = watcher.with_context(|| format!("the container of {}", subject.name()))?;
        Ok(Self {
            moves,
            subject,
            watcher,
        })
    }

    fn move_once(&mut self) -> Result<Move> {
        let subject = self.subject.name();
        let mut attempt = || -> Result<Move> {
            if let Some(watcher) = &mut self.watcher {
                watcher.begin()?;
            }
            let begun = Instant::now();
            let moved = self.subject.move_over()?;
            let course = Course {
                begun,
                before_freeze_us: moved.before_freeze_us,
            };
            let noticed = match &mut self.watcher {
                Some(watcher) => watcher.finish(&course)?,
                None => Noticed::default(),
            };
            Ok(Move {
                subject,
                noticed,
                moved,
            })
        };
        attempt().with_context(|| format!("a move by {subject}"))
    }
}

/// Runs a scenario on a testbed of its own: one move of each mover that does not count (afterwards both hosts have what
/// stays on a host, such as the image and CRIU's kernel probe), then as many of each as are wanted, by turns.
///
/// # Errors
/// Something does not work; the testbed is taken down.
pub fn run(scenario: &Scenario, movers: &[Mover], moves: Moves, options: &Options) -> Result<Outcome> {
    let bed = if movers.contains(&Mover::Tranship) {
        Testbed::up(options)?
    } else {
        Testbed::up_without_daemons(options)?
    };
    let sent = Arc::new(AtomicU64::new(0));
    let mut lanes = Vec::new();
    for mover in movers {
        lanes.push(Lane::start(
            *mover,
            moves.of(*mover),
            &bed,
            &scenario.load,
            &sent,
        )?);
    }
    let subjects = lanes.iter().map(|lane| lane.subject.name()).collect();
    let mut made = Vec::new();
    for turn in 0..=moves.most(movers) {
        for lane in lanes.iter_mut().filter(|lane| turn <= lane.moves) {
            let one = lane.move_once()?;
            eprintln!("bench: {} {turn}/{} {}", scenario.name, lane.moves, told(&one));
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
        load: scenario.load,
        subjects,
        moves: made,
    })
}

/// One line while one waits.
fn told(one: &Move) -> String {
    let ms = |us: Option<u64>| us.map_or("-".to_owned(), |us| format!("{}", us / 1000));
    format!(
        "{}: stall {} ms, blackout {} ms, total {} ms, {} MB",
        one.subject,
        ms(one.noticed.stall_us),
        ms(one.moved.blackout_us),
        one.moved.total_us / 1000,
        one.moved.bytes / 1_000_000
    )
}
