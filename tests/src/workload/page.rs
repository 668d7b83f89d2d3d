//! A page and what is written all over it.
//!
//! The whole page follows from one number, its stamp, and no two words of two pages are alike: a page that is half old, lies
//! at the wrong place or has become zeros does not pass.

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Words of a page.
pub const WORDS: usize = PAGE_BYTES / 8;
/// Pages of a MiB.
pub const PAGES_PER_MIB: usize = (1 << 20) / PAGE_BYTES;

/// The content of a page.
pub type Page = [u64; WORDS];

/// Many pages one after the other. Aligned, so that each is one page of the machine.
#[derive(Clone, Debug)]
#[repr(C, align(4096))]
pub struct Aligned(pub Page);

/// So many pages of zeros that have not been touched.
#[must_use]
pub fn untouched(pages: usize) -> Vec<Aligned> {
    vec![Aligned([0; WORDS]); pages]
}

/// Writes a stamp all over a page.
pub fn stamp(page: &mut Page, stamp: u64) {
    for (index, word) in page.iter_mut().enumerate() {
        *word = value(stamp, index);
    }
}

/// The first word of a page that is not what the stamp has made it.
#[must_use]
pub fn first_wrong(page: &Page, stamp: u64) -> Option<usize> {
    page.iter()
        .enumerate()
        .position(|(index, word)| *word != value(stamp, index))
}

/// Whether a page holds nothing.
#[must_use]
pub fn is_zero(page: &Page) -> bool {
    page.iter().all(|word| *word == 0)
}

/// Multiplying by an odd number loses nothing: different stamps give different words.
fn value(stamp: u64, index: usize) -> u64 {
    let index = index as u64;
    (stamp ^ index.rotate_left(48))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(index | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_found_whole_and_a_change_is_seen() {
        let mut page = [0; WORDS];
        stamp(&mut page, 42);
        assert_eq!(first_wrong(&page, 42), None);
        assert!(first_wrong(&page, 43).is_some());
        page[300] ^= 1;
        assert_eq!(first_wrong(&page, 42), Some(300));
    }

    #[test]
    fn pages_of_zeros_pass_for_no_stamp() {
        let page = [0; WORDS];
        assert!(is_zero(&page) && (0..1000).all(|stamp| first_wrong(&page, stamp).is_some()));
    }
}
