//! Changes its own memory map at random, and knows at any time what every page must hold.
//!
//! [`region`] is one area and what is known of it, [`world`] all of them and what can be done to them; here is the life:
//! one thing after the other, a look at everything now and then, and a child process now and then, which goes on with
//! its own copy of everything for a while, so that pages are shared until somebody writes.

pub mod region;
pub mod world;

use std::convert::Infallible;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, WaitOptions, waitpid};

use super::pace::Pace;
use super::questions::Questions;
use super::random::Random;
use crate::sys::fork::{Forked, fork};
use world::World;

/// Things done per second.
const PER_SECOND: f64 = 1000.0;
/// One thing in so many is followed by a look at everything.
const LOOK: usize = 500;
/// One thing in so many is a fork.
const FORK: usize = 400;
/// Children at the same time.
const MOST_CHILDREN: usize = 2;
/// The longest life of a child.
const CHILD_MS: usize = 1500;

/// Goes on for ever with at most `mib` mapped; to every question, the answer is `ok THINGS PAGES FORKS` after a look at
/// everything.
///
/// # Errors
/// A page is not what it has to be, a child has found such a page, or the kernel refuses something that it must not.
pub fn run(mib: usize, seed: u64, questions: &Questions) -> Result<Infallible> {
    let mut world = World::new(mib, Random::new(seed))?;
    let mut pace = Pace::new(PER_SECOND);
    let mut children: Vec<Pid> = Vec::new();
    let (mut things, mut forks) = (0_u64, 0_u64);
    println!("begun with seed {seed}");
    loop {
        for _ in 0..pace.wait() {
            world.act()?;
            things += 1;
            if world.chance(LOOK) {
                world.look()?;
            }
            if world.chance(FORK) && children.len() < MOST_CHILDREN {
                forks += 1;
                match fork()? {
                    Forked::Child => live_as_child(world, forks),
                    Forked::Parent(pid) => children.push(Pid::from_raw(pid).context("a child has a pid")?),
                }
            }
        }
        let mut running = Vec::new();
        for child in children {
            if !has_ended(child)? {
                running.push(child);
            }
        }
        children = running;
        questions.answer(|_| {
            let pages = world.look()?;
            Ok(format!("ok {things} {pages} {forks}"))
        })?;
    }
}

/// Whether a child has ended; how it did must be well.
fn has_ended(child: Pid) -> Result<bool> {
    match waitpid(Some(child), WaitOptions::NOHANG).context("cannot ask for a child")? {
        None => Ok(false),
        Some((_, status)) if status.exit_status() == Some(0) => Ok(true),
        Some((_, status)) => bail!("child {child} ended with {status:?}"),
    }
}

/// Another life with the same past.
fn live_as_child(mut world: World, number: u64) -> ! {
    world.reseed(number);
    let life = Duration::from_millis(world.below(CHILD_MS) as u64);
    let begun = Instant::now();
    let mut pace = Pace::new(PER_SECOND);
    let mut live = || -> Result<()> {
        while begun.elapsed() < life {
            for _ in 0..pace.wait() {
                world.act()?;
            }
        }
        world.look()?;
        Ok(())
    };
    match live() {
        Ok(()) => std::process::exit(0),
        Err(error) => super::end_with(&error.context(format!("in child {number}"))),
    }
}
