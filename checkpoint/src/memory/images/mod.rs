//! CRIU's images of memory, where Tranship moves the pages itself.
//!
//! ```text
//! mm-ID.img        areas of a process's address space             CRIU writes it, in every dump
//! pagemap-ID.img   which pages are there; where they are          source: write_pagemaps
//!   LAZY           missing at first, filled in when touched       from the page store, by the filler
//!   PRESENT        read by CRIU from pages-N.img, in order        destination: write_present, from the page store
//! ```
//! A dump of state alone (see [`crate::criu::Memory`]) has pagemaps with hardly a page: [`write_pagemaps`] replaces them by
//! the list of what was really resident when the tree stood still. Where CRIU did write pages that are not on that list,
//! its pagemap is kept beside the new one, as `own-pagemap-ID.img`, and its pages are taken from there.
//!
//! Everything that is read at the destination comes from a peer.

mod area;
mod destination;
mod directory;
mod error;
mod framing;
mod layout;
mod messages;
mod pagemap;
mod source;
#[cfg(test)]
mod tests;
mod threads;

pub use area::{Area, areas};
pub use destination::{PresentPages, all_present, write_present};
pub use directory::process_pagemaps;
pub use error::ImageError;
pub use pagemap::{PageFlags, PagemapEntry, PagemapImage, read_pagemap};
pub use source::write_pagemaps;
