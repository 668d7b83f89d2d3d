//! What is moved.
//!
//! All scenarios run Redis: it is a real program that keeps what it is given in anonymous memory, its answers can be
//! checked (a counter may neither lose nor repeat an increment), and from one scenario to the next nothing changes but
//! the amount of memory, so that their difference is what memory costs.

use anyhow::{Context, Result, bail};

use crate::resp::{Answer, Connection};

/// Bytes of one value: with Redis's own header just below 4 KiB, so that the allocator wastes nothing.
const VALUE_BYTES: usize = 4080;
/// Values sent in one command.
const BATCH: u64 = 64;

/// One thing to move.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// As `--scenario` takes it.
    pub name: &'static str,
    /// In words, for the report.
    pub about: &'static str,
    /// What is put into Redis before it is moved.
    pub data_bytes: u64,
}

/// Every scenario, in the order they run.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "idle-64",
        about: "Redis with 64 MiB of random values, one client that increments a counter 1,000 times a second",
        data_bytes: 64 << 20,
    },
    Scenario {
        name: "redis-1g",
        about: "Redis with 1 GiB of random values, one client that increments a counter 1,000 times a second",
        data_bytes: 1 << 30,
    },
];

/// The command that each of them runs, in the image `redis`.
pub const COMMAND: &[&str] = &[
    "redis-server",
    "--dir",
    DATA_DIR,
    "--save",
    "",
    "--appendonly",
    "no",
    "--protected-mode",
    "no",
];

/// Where the container's volume is mounted.
pub const DATA_DIR: &str = "/var/lib/redis";

impl Scenario {
    /// The scenarios of these names; without names, all.
    ///
    /// # Errors
    /// There is none of a name.
    pub fn choose(names: &[String]) -> Result<Vec<&'static Self>> {
        if names.is_empty() {
            return Ok(ALL.iter().collect());
        }
        let find = |name: &String| {
            let known = || ALL.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
            ALL.iter()
                .find(|scenario| scenario.name == name)
                .with_context(|| format!("there is no scenario {name}: the bench has {}", known()))
        };
        names.iter().map(find).collect()
    }

    /// Puts the data into a fresh Redis. It is random: nothing in it can be compressed or left out.
    ///
    /// # Errors
    /// Redis does not take it.
    pub fn fill(&self, redis: &mut Connection) -> Result<()> {
        let mut random = blake3::Hasher::new().update(self.name.as_bytes()).finalize_xof();
        let count = self.data_bytes.div_ceil(VALUE_BYTES as u64);
        for first in (0..count).step_by(BATCH as usize) {
            let mut words = vec![b"MSET".to_vec()];
            for index in first..count.min(first + BATCH) {
                let mut value = vec![0; VALUE_BYTES];
                random.fill(&mut value);
                words.push(format!("key:{index}").into_bytes());
                words.push(value);
            }
            redis.ask(&words)?;
        }
        match redis.ask(&["DBSIZE"])? {
            Answer::Number(keys) if u64::try_from(keys) == Ok(count) => Ok(()),
            other => bail!("redis was given {count} values and has {other:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_chosen_by_name_and_none_means_all() {
        assert_eq!(Scenario::choose(&[]).unwrap().len(), ALL.len());
        let chosen = Scenario::choose(&["redis-1g".to_owned()]).unwrap();
        assert_eq!(chosen[0].data_bytes, 1 << 30);
        let error = Scenario::choose(&["redis".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("idle-64"), "{error}");
    }
}
