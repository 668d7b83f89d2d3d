//! Median, p95 and p99 of what was measured.

use serde::Serialize;

/// What is reported of a series of measurements, in the unit of the measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// The one in the middle, or between the two.
    pub median: u64,
    /// 95 % are not above it (nearest rank: with fewer than 20 measurements it is the maximum).
    pub p95: u64,
    /// 99 % are not above it (with fewer than 100 measurements it is the maximum).
    pub p99: u64,
}

impl Figures {
    /// None without measurements.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = u64>) -> Option<Self> {
        let mut sorted: Vec<u64> = values.into_iter().collect();
        sorted.sort_unstable();
        let count = sorted.len();
        if count == 0 {
            return None;
        }
        let rank = |percent: usize| sorted[(count * percent).div_ceil(100) - 1];
        Some(Self {
            median: sorted[(count - 1) / 2].midpoint(sorted[count / 2]),
            p95: rank(95),
            p99: rank(99),
        })
    }
}

/// How many times more the one is than the other.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "measurements are far below 2^52")]
pub fn ratio(more: u64, less: u64) -> f64 {
    more as f64 / less.max(1) as f64
}

/// How much `y` grows per unit of `x`, by least squares; none without two different values of `x`.
#[must_use]
pub fn slope(points: &[(f64, f64)]) -> Option<f64> {
    #[expect(clippy::cast_precision_loss, reason = "a handful of points")]
    let count = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / count;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let square: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    let product: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    (square > 0.0).then(|| product / square)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_matter_and_an_even_count_has_its_median_between() {
        let figures = Figures::of([40, 10, 30, 20]).unwrap();
        assert_eq!((figures.median, figures.p95, figures.p99), (25, 40, 40));
        assert_eq!(Figures::of([7]).unwrap().median, 7);
        assert_eq!(Figures::of([]), None);
    }

    #[test]
    fn p95_of_a_hundred_leaves_out_five() {
        assert_eq!(Figures::of(1..=100).unwrap().p95, 95);
        assert_eq!(Figures::of(1..=20).unwrap().p95, 19);
        assert_eq!(Figures::of(1..=200).unwrap().p99, 198);
    }

    #[test]
    fn the_slope_of_points_on_a_line_is_the_lines() {
        let slope_of = |points| slope(points).map(|slope| (slope * 1000.0).round());
        assert_eq!(slope_of(&[(1.0, 5.0), (2.0, 7.0), (4.0, 11.0)]), Some(2000.0));
        assert_eq!(slope_of(&[(1.0, 5.0), (1.0, 7.0)]), None);
        assert_eq!(slope_of(&[]), None);
    }

    #[test]
    fn a_ratio_with_nothing_is_finite() {
        assert!((ratio(10, 4) - 2.5).abs() < 1e-9);
        assert!(ratio(10, 0).is_finite());
    }
}
