//! Stamps the number of its pass into page after page, again and again.
//!
//! At each moment the pages in front of the pen have this pass's stamp and the others that of the pass before: there is no
//! third kind. A page that a move has left behind, taken too early or put elsewhere is of that kind.

use std::convert::Infallible;

use anyhow::{Result, bail, ensure};

use super::pace::Pace;
use super::page::{self, Aligned, PAGES_PER_MIB};
use super::questions::Questions;

/// The memory and the pen.
#[derive(Debug)]
pub struct Field {
    pages: Vec<Aligned>,
    /// The pass that is being written.
    pass: u64,
    /// The page that is written next.
    next: usize,
}

impl Field {
    /// So many pages, all with the stamp of pass 1; pass 2 is about to begin.
    #[must_use]
    pub fn new(pages: usize) -> Self {
        let mut field = Self {
            pages: page::untouched(pages),
            pass: 2,
            next: 0,
        };
        for (index, page) in field.pages.iter_mut().enumerate() {
            page::stamp(&mut page.0, stamp(1, index));
        }
        field
    }

    /// Looks at the page that is next and stamps it.
    ///
    /// # Errors
    /// It is not what the pass before has made of it.
    pub fn advance(&mut self) -> Result<()> {
        self.look_at(self.next)?;
        page::stamp(&mut self.pages[self.next].0, stamp(self.pass, self.next));
        self.next += 1;
        if self.next == self.pages.len() {
            (self.pass, self.next) = (self.pass + 1, 0);
        }
        Ok(())
    }

    /// Looks at every page.
    ///
    /// # Errors
    /// One is not within a generation of the others.
    pub fn look(&self) -> Result<()> {
        (0..self.pages.len()).try_for_each(|index| self.look_at(index))
    }

    fn look_at(&self, index: usize) -> Result<()> {
        let pass = if index < self.next {
            self.pass
        } else {
            self.pass - 1
        };
        let page = &self.pages[index].0;
        let Some(word) = page::first_wrong(page, stamp(pass, index)) else {
            return Ok(());
        };
        let older = (1..pass)
            .rev()
            .find(|older| page::first_wrong(page, stamp(*older, index)).is_none());
        match older {
            Some(older) => bail!("page {index} has the stamp of pass {older}, not of pass {pass}"),
            None => bail!(
                "page {index} ({:p}) is not that of pass {pass} from word {word} on: {:#x}, zeros: {}",
                page,
                page[word],
                page::is_zero(page)
            ),
        }
    }
}

fn stamp(pass: u64, index: usize) -> u64 {
    pass << 32 | index as u64
}

/// Writes `mib_per_s` for ever; to every question, the answer is `ok PASS PAGES` after a look at every page.
///
/// # Errors
/// A page is not what it has to be.
pub fn run(mib: usize, mib_per_s: f64, questions: &Questions) -> Result<Infallible> {
    ensure!(mib > 0 && mib_per_s > 0.0, "without pages there is nothing to do");
    let mut field = Field::new(mib * PAGES_PER_MIB);
    let mut pace = Pace::new(mib_per_s * PAGES_PER_MIB as f64);
    println!("stamped {} pages", field.pages.len());
    loop {
        for _ in 0..pace.wait() {
            field.advance()?;
        }
        questions.answer(|_| {
            field.look()?;
            Ok(format!("ok {} {}", field.pass, field.pages.len()))
        })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_the_pass_before_the_last_is_found() {
        let mut field = Field::new(8);
        (0..11).for_each(|_| field.advance().unwrap());
        field.look().unwrap();
        page::stamp(&mut field.pages[5].0, stamp(1, 5));
        let error = field.look().unwrap_err().to_string();
        assert_eq!(error, "page 5 has the stamp of pass 1, not of pass 2");
        assert!((0..3).any(|_| field.advance().is_err()));
    }

    #[test]
    fn a_page_of_zeros_or_of_another_place_is_found() {
        let mut field = Field::new(4);
        field.pages[2].0.fill(0);
        assert!(field.look().unwrap_err().to_string().contains("zeros: true"));
        field.pages[2] = field.pages[1].clone();
        assert!(field.look().is_err());
    }
}
