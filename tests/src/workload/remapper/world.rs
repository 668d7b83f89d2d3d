//! All areas, and what happens to them.
//!
//! What is done to a part of an area cuts it first, as the kernel does: so every area is (a part of) one of the kernel's,
//! and everything here is something that the kernel must not refuse.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};

use super::region::{Region, stamp_of_file};
use crate::sys::mapping::{Access, Advice, Mapping};
use crate::workload::page::{self, PAGE_BYTES, PAGES_PER_MIB, Page, WORDS};
use crate::workload::random::Random;

/// Pages of the file that private mappings are made of.
const FILE_PAGES: usize = 512;
/// Areas, before some go: the kernel takes 65,530 of them, and a look at everything should not take long.
const MOST_REGIONS: usize = 1500;
/// Pages of the largest area, and of a small one: most are small, some have room for huge pages.
const SIZES: [usize; 4] = [4, 64, 600, 1500];
/// Pages that are written one after the other.
const RUN: usize = 48;

/// Everything that is mapped.
#[derive(Debug)]
pub struct World {
    regions: Vec<Region>,
    random: Random,
    file: File,
    /// The next stamp that has not been used.
    stamp: u64,
    most_pages: usize,
}

impl World {
    /// An empty world in which at most `mib` are mapped.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(mib: usize, random: Random) -> Result<Self> {
        let mut file = tempfile::tempfile().context("cannot make a file")?;
        for index in 0..FILE_PAGES {
            let mut content: Page = [0; WORDS];
            page::stamp(&mut content, stamp_of_file(index));
            let bytes: Vec<u8> = content.iter().flat_map(|word| word.to_ne_bytes()).collect();
            debug_assert_eq!(bytes.len(), PAGE_BYTES);
            file.write_all(&bytes)?;
        }
        Ok(Self {
            regions: Vec::new(),
            random,
            file,
            stamp: 1,
            most_pages: mib * PAGES_PER_MIB,
        })
    }

    /// One time in `many`.
    pub fn chance(&mut self, many: usize) -> bool {
        self.below(many) == 0
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.random.below(bound)
    }

    /// Another future: for a copy that shall not do the same.
    pub fn reseed(&mut self, number: u64) {
        self.random = Random::new(self.random.number() ^ number);
    }

    /// Looks at every page that can be read, and says how many.
    ///
    /// # Errors
    /// One is not what it has to be.
    pub fn look(&mut self) -> Result<usize> {
        let mut pages = 0;
        for region in self
            .regions
            .iter_mut()
            .filter(|region| region.access() != Access::None)
        {
            (0..region.len()).try_for_each(|index| region.look_at(index))?;
            pages += region.len();
        }
        Ok(pages)
    }

    /// Does one thing.
    ///
    /// # Errors
    /// A page that is looked at is not what it has to be, or the kernel refuses.
    pub fn act(&mut self) -> Result<()> {
        if self.regions.is_empty() {
            return self.map();
        }
        match self.below(100) {
            0..6 => self.map(),
            6..11 => self.unmap(),
            11..61 => self.write(),
            61..76 => self.look_somewhere(),
            76..80 => self.advise(Advice::DontNeed),
            80..84 => self.advise(Advice::Free),
            84..87 => self.advise(Advice::HugePages),
            87..92 => self.protect(),
            92..96 => self.resize(),
            _ => self.relocate(),
        }
    }

    fn map(&mut self) -> Result<()> {
        let largest = SIZES[self.below(SIZES.len())];
        let pages = 1 + self.below(largest);
        while self.mapped() + pages > self.most_pages || self.regions.len() >= MOST_REGIONS {
            let index = self.below(self.regions.len());
            self.regions.swap_remove(index);
        }
        let region = if self.chance(4) {
            let pages = pages.min(FILE_PAGES);
            let first = self.below(FILE_PAGES - pages + 1);
            let mapping = Mapping::of_file(&self.file, first, pages).context("cannot map the file")?;
            Region::new(mapping, Some(first))
        } else {
            Region::new(Mapping::anonymous(pages).context("cannot map memory")?, None)
        };
        self.regions.push(region);
        Ok(())
    }

    fn mapped(&self) -> usize {
        self.regions.iter().map(Region::len).sum()
    }

    fn unmap(&mut self) -> Result<()> {
        let index = self.a_part();
        self.regions.swap_remove(index);
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let index = self.below(self.regions.len());
        if self.regions[index].access() != Access::Write {
            return Ok(());
        }
        let length = self.regions[index].len();
        let (first, count) = (self.below(length), 1 + self.below(RUN));
        for page in first..length.min(first + count) {
            self.regions[index].write(page, self.stamp);
            self.stamp += 1;
        }
        Ok(())
    }

    fn look_somewhere(&mut self) -> Result<()> {
        let index = self.below(self.regions.len());
        if self.regions[index].access() == Access::None {
            return Ok(());
        }
        let length = self.regions[index].len();
        let (first, count) = (self.below(length), 1 + self.below(RUN));
        (first..length.min(first + count)).try_for_each(|page| self.regions[index].look_at(page))
    }

    /// Files have no pages that can be freed.
    fn advise(&mut self, advice: Advice) -> Result<()> {
        let index = self.a_part();
        let region = &mut self.regions[index];
        if advice == Advice::Free && region.has_file() {
            return Ok(());
        }
        region.advise(advice)
    }

    fn protect(&mut self) -> Result<()> {
        let index = self.a_part();
        let access = [Access::None, Access::Read, Access::Write, Access::Write][self.below(4)];
        self.regions[index].protect(access)
    }

    /// Only anonymous memory becomes longer: behind the end of a file there is nothing.
    fn resize(&mut self) -> Result<()> {
        let index = self.below(self.regions.len());
        let (length, room) = (
            self.regions[index].len(),
            self.most_pages.saturating_sub(self.mapped()),
        );
        let longer = !self.regions[index].has_file() && room > 0 && self.chance(2);
        let pages = if longer {
            length + 1 + self.below(room.min(SIZES[1]))
        } else {
            1 + self.below(length)
        };
        self.regions[index].resize(pages)
    }

    fn relocate(&mut self) -> Result<()> {
        let index = self.a_part();
        self.regions[index].relocate()
    }

    /// The index of a whole area, or of a part that was cut out of one.
    fn a_part(&mut self) -> usize {
        let index = self.below(self.regions.len());
        let length = self.regions[index].len();
        if length == 1 || self.chance(2) {
            return index;
        }
        let (one, other) = (self.below(length), self.below(length));
        let (first, end) = (one.min(other), one.max(other) + 1);
        if end < length {
            let rest = self.regions[index].split_off(end);
            self.regions.push(rest);
        }
        if first == 0 {
            return index;
        }
        let part = self.regions[index].split_off(first);
        self.regions.push(part);
        self.regions.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_thousand_things_leave_every_page_as_it_must_be() {
        let mut world = World::new(32, Random::new(7)).unwrap();
        for _ in 0..10_000 {
            world.act().unwrap();
        }
        assert!(world.look().unwrap() > 100);
        assert!(world.mapped() <= 32 * PAGES_PER_MIB);
    }

    #[test]
    fn a_page_that_changed_behind_its_back_is_found() {
        let mut world = World::new(32, Random::new(7)).unwrap();
        let mut mapping = Mapping::anonymous(2).unwrap();
        mapping.write(1, &[1; WORDS]);
        world.regions.push(Region::new(mapping, None));
        let error = world.look().unwrap_err().to_string();
        assert!(error.contains("page 1 of 2"), "{error}");
    }
}
