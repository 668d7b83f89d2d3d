//! One area of memory and what each of its pages must hold.

use anyhow::{Context, Result, bail};

use crate::sys::mapping::{Access, Advice, Mapping};
use crate::workload::page::{self, Page, WORDS};

/// What a page must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing but zeros.
    Zero,
    /// This stamp.
    Stamp(u64),
    /// This stamp or nothing: the kernel was told that it may take the page.
    StampOrZero(u64),
}

/// An area whose pages can all be used in the same way.
#[derive(Debug)]
pub struct Region {
    mapping: Mapping,
    pages: Vec<Content>,
    access: Access,
    /// The page of the file that is mapped at its beginning; none is anonymous memory.
    file_page: Option<usize>,
}

/// The stamp of a page of the file behind private mappings.
#[must_use]
pub fn stamp_of_file(page: usize) -> u64 {
    u64::MAX - page as u64
}

impl Region {
    /// A mapping that nobody has written to.
    #[must_use]
    pub fn new(mapping: Mapping, file_page: Option<usize>) -> Self {
        let mut region = Self {
            pages: Vec::new(),
            mapping,
            access: Access::Write,
            file_page,
        };
        region.pages = (0..region.mapping.pages())
            .map(|index| region.fresh(index))
            .collect();
        region
    }

    /// Number of pages.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether there are none; there always are.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// What may be done with its pages.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether a file is behind it.
    #[must_use]
    pub fn has_file(&self) -> bool {
        self.file_page.is_some()
    }

    fn fresh(&self, index: usize) -> Content {
        match self.file_page {
            Some(first) => Content::Stamp(stamp_of_file(first + index)),
            None => Content::Zero,
        }
    }

    /// Cuts it in two; the second part begins with page `at`.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        Self {
            mapping: self.mapping.split_off(at),
            pages: self.pages.split_off(at),
            access: self.access,
            file_page: self.file_page.map(|first| first + at),
        }
    }

    /// Writes a page.
    pub fn write(&mut self, index: usize, stamp: u64) {
        let mut content = [0; WORDS];
        page::stamp(&mut content, stamp);
        self.mapping.write(index, &content);
        self.pages[index] = Content::Stamp(stamp);
    }

    /// Looks at a page.
    ///
    /// # Errors
    /// It is not what it must be.
    pub fn look_at(&mut self, index: usize) -> Result<()> {
        let mut found: Page = [0; WORDS];
        self.mapping.read(index, &mut found);
        let expected = self.pages[index];
        let is_right = match expected {
            Content::Zero => page::is_zero(&found),
            Content::Stamp(stamp) => page::first_wrong(&found, stamp).is_none(),
            Content::StampOrZero(stamp) => {
                let taken = page::is_zero(&found);
                if taken {
                    self.pages[index] = Content::Zero;
                }
                taken || page::first_wrong(&found, stamp).is_none()
            }
        };
        if !is_right {
            let wrong = match expected {
                Content::Zero => found.iter().position(|word| *word != 0),
                Content::Stamp(stamp) | Content::StampOrZero(stamp) => page::first_wrong(&found, stamp),
            };
            bail!(
                "page {index} of {} at {:#x} (file page {:?}, {:?}) is not {expected:x?} from word {wrong:?} on; zeros: {}",
                self.len(),
                self.mapping.address(),
                self.file_page,
                self.access,
                page::is_zero(&found)
            );
        }
        Ok(())
    }

    /// Throws the content away or lets the kernel do so; huge pages change nothing of it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn advise(&mut self, advice: Advice) -> Result<()> {
        self.mapping
            .advise(advice)
            .with_context(|| format!("{advice:?}"))?;
        for index in 0..self.len() {
            self.pages[index] = match (advice, self.pages[index]) {
                (Advice::DontNeed, _) => self.fresh(index),
                (Advice::Free, Content::Stamp(stamp)) => Content::StampOrZero(stamp),
                (_, content) => content,
            };
        }
        Ok(())
    }

    /// Sets what may be done with its pages.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn protect(&mut self, access: Access) -> Result<()> {
        self.mapping.protect(access).context("mprotect")?;
        self.access = access;
        Ok(())
    }

    /// Makes it longer, with zeros, or shorter.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn resize(&mut self, pages: usize) -> Result<()> {
        self.mapping.resize(pages).context("mremap to another size")?;
        self.pages.resize(pages, Content::Zero);
        Ok(())
    }

    /// Moves it to another place.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn relocate(&mut self) -> Result<()> {
        self.mapping.relocate().context("mremap to another place")
    }
}
