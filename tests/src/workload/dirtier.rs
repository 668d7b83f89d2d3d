//! Changes pages at random, so many per second, and knows of each how often it was changed.

use std::convert::Infallible;

use anyhow::{Result, ensure};

use super::pace::Pace;
use super::page::{self, Aligned, PAGES_PER_MIB, WORDS};
use super::random::Random;

/// Words of a page that a change writes: at its ends and in the middle.
const CHANGED: [usize; 3] = [0, WORDS / 2, WORDS - 1];

/// The memory, and what it must hold.
#[derive(Debug)]
struct Field {
    pages: Vec<Aligned>,
    changes: Vec<u32>,
}

impl Field {
    fn new(pages: usize) -> Self {
        let mut field = Self {
            pages: page::untouched(pages),
            changes: vec![0; pages],
        };
        for (index, page) in field.pages.iter_mut().enumerate() {
            page::stamp(&mut page.0, index as u64);
            mark(page, 0);
        }
        field
    }

    /// Changes a page once more.
    fn change(&mut self, index: usize) -> Result<()> {
        let (page, changes) = (&mut self.pages[index], &mut self.changes[index]);
        for word in CHANGED {
            ensure!(
                page.0[word] == u64::from(*changes),
                "page {index} was changed {changes} times, and its word {word} says {}",
                page.0[word]
            );
        }
        *changes = changes.wrapping_add(1);
        mark(page, *changes);
        Ok(())
    }
}

fn mark(page: &mut Aligned, changes: u32) {
    for word in CHANGED {
        page.0[word] = changes.into();
    }
}

/// Dirties `mib_per_s` of `mib` for ever.
///
/// # Errors
/// A page is not what it has to be.
pub fn run(mib: usize, mib_per_s: f64) -> Result<Infallible> {
    ensure!(mib > 0 && mib_per_s > 0.0, "without pages there is nothing to do");
    let mut field = Field::new(mib * PAGES_PER_MIB);
    let mut pace = Pace::new(mib_per_s * PAGES_PER_MIB as f64);
    let mut random = Random::new(1);
    println!("filled {} pages", field.pages.len());
    loop {
        for _ in 0..pace.wait() {
            field.change(random.below(field.pages.len()))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_that_was_lost_is_found() {
        let mut field = Field::new(2);
        field.change(1).unwrap();
        let kept = field.pages[1].clone();
        field.change(1).unwrap();
        field.pages[1] = kept;
        assert!(
            field
                .change(1)
                .unwrap_err()
                .to_string()
                .contains("changed 2 times")
        );
        field.change(0).unwrap();
    }
}
