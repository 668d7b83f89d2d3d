//! Numbers that look random and follow from a seed, so that a run can be repeated.

use std::env;
use std::time::SystemTime;

/// The seed of a run: TRANSHIP_SEED, or one that nobody knows. It is told, so that the run can be repeated.
#[must_use]
pub fn seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let any = now.map_or(1, |time| u64::from(time.subsec_nanos()));
    let seed = asked_for("TRANSHIP_SEED").unwrap_or(any);
    eprintln!("TRANSHIP_SEED={seed}");
    seed
}

/// How often a draw is made: TRANSHIP_DRAWS, or as often as usual.
#[must_use]
pub fn draws(usual: u64) -> u64 {
    asked_for("TRANSHIP_DRAWS").unwrap_or(usual)
}

fn asked_for(variable: &str) -> Option<u64> {
    env::var(variable).ok()?.parse().ok()
}

/// A generator: xorshift, followed by a multiplication.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The remainder of 64 bits by some thousands is even enough.
        (self.number() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_their_bound_and_reach_all_of_it() {
        let mut random = Random::new(1);
        let mut seen = [false; 7];
        (0..1000).for_each(|_| seen[random.below(7)] = true);
        assert_eq!(seen, [true; 7]);
    }
}
