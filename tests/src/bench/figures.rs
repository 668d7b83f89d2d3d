//! Median, p95 and maximum of what was measured.

use serde::Serialize;

/// What is reported of a series of measurements, in the unit of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// The one in the middle, or between the two.
    pub median: u64,
    /// 95 % are not above it (nearest rank: with fewer than 20 measurements it is the maximum).
    pub p95: u64,
    /// The worst.
    pub max: u64,
}

impl Figures {
    /// None without measurements.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut sorted: Vec<u64> = values.into_iter().collect();
        sorted.sort_unstable();
        let max = *sorted.last()?;
        let count = sorted.len();
        let median = sorted[(count - 1) / 2].midpoint(sorted[count / 2]);
        let p95 = sorted[(count * 95).div_ceil(100) - 1];
        Some(Self { median, p95, max })
    }
}

/// How many times more the one is than the other.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "measurements are far below 2^52")]
pub fn ratio(more: u64, less: u64) -> f64 {
    more as f64 / less.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_an_even_count_has_its_median_between() {
        let figures = Figures::of([40, 10, 30, 20]).unwrap();
        assert_eq!((figures.median, figures.p95, figures.max), (25, 40, 40));
        assert_eq!(Figures::of([7]).unwrap().median, 7);
        assert_eq!(Figures::of([]), None);
    }

    #[test]
    fn p95_of_a_hundred_leaves_out_five() {
        assert_eq!(Figures::of(1..=100).unwrap().p95, 95);
        assert_eq!(Figures::of(1..=20).unwrap().p95, 19);
    }

    #[test]
    fn a_ratio_with_nothing_is_finite() {
        assert!((ratio(10, 4) - 2.5).abs() < 1e-9);
        assert!(ratio(10, 0).is_finite());
    }
}
