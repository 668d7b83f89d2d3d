//! The number that decides between two records of one host.
//!
//! ```text
//!   63            32 31             0
//!  +----------------+----------------+
//!  |  incarnation   |    changes     |
//!  +----------------+----------------+
//! ```
//!
//! A name can be used again after its host was removed. Each host that ever had it is an incarnation, and a certificate
//! names the incarnation it was made for, so that the certificate of the removed one does not come back to life.

/// Records with a higher number are refused: it could not be stored, or not be counted on from.
const MAX: u64 = i64::MAX as u64 >> 1;

/// A record's generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(u64);

impl Generation {
    /// Of the first host with a name.
    pub const FIRST: Self = Self(1 << 32);

    /// Reads a peer's number; `None` where no host counts like that.
    #[must_use]
    pub fn read(number: u64) -> Option<Self> {
        (Self::FIRST.0..=MAX).contains(&number).then_some(Self(number))
    }

    /// The number as it is sent and stored.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }

    /// Which host of that name it is, from 1.
    #[must_use]
    pub fn incarnation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// After a change of the record.
    #[must_use]
    pub fn changed(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Of the next host with that name.
    #[must_use]
    pub fn reborn(self) -> Self {
        Self(((self.0 >> 32).saturating_add(1)) << 32)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_step_goes_up_and_only_a_rebirth_changes_the_incarnation(number in (1u64 << 32)..MAX) {
            let generation = Generation::read(number).unwrap();
            prop_assert!(generation.changed() > generation);
            prop_assert!(generation.reborn() > generation);
            prop_assert_eq!(generation.reborn().incarnation(), generation.incarnation() + 1);
        }
    }

    #[test]
    fn numbers_that_no_host_counts_to_are_refused() {
        assert_eq!(Generation::read(0), None);
        assert_eq!(Generation::read(u64::MAX), None);
        assert_eq!(Generation::FIRST.incarnation(), 1);
        assert_eq!(Generation::FIRST.changed().incarnation(), 1);
    }
}
