//! What runs in the container that is moved.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::busy::Busy;
use super::client::Client;
use super::watcher::Watcher;
use crate::crowd::Crowd;
use crate::images::{COUNT_PORT, REDIS_PORT, WORKLOAD};
use crate::resp::{Answer, Connection};
use crate::testbed::Host;

/// Where the container's volume is mounted.
pub const DATA_DIR: &str = "/data";

/// Bytes of one value: with Redis's own header just below 4 KiB, so that the allocator wastes nothing.
const VALUE_BYTES: usize = 4080;
/// Values sent in one command.
const BATCH: u64 = 64;
/// Keys looked for in one command.
const LOOK_UPS: u64 = 10_000;
/// Between two requests of the one client that waits.
const OFTEN: Duration = Duration::from_millis(1);
/// Between two requests of each client of many.
const NOW_AND_THEN: Duration = Duration::from_millis(100);

/// A program with something in its memory, and those who wait for its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// Redis with random values and one client.
    Redis {
        /// Size of the values.
        mib: usize,
    },
    /// Redis with random values, under redis-benchmark.
    BusyRedis {
        /// Size of the values.
        mib: usize,
    },
    /// A program that changes its pages at random, and one client.
    Dirtier {
        /// Size of its memory.
        mib: usize,
        /// How much it changes per second.
        mib_per_s: usize,
    },
    /// Many processes, and one client.
    Processes {
        /// How many.
        count: usize,
        /// Size of each one's memory.
        mib: usize,
    },
    /// Many threads in one process, and one client.
    Threads {
        /// How many.
        count: usize,
    },
    /// A server with many clients.
    Connections {
        /// How many.
        count: usize,
    },
}

impl Load {
    /// The image it is in.
    #[must_use]
    pub fn image(&self) -> &'static str {
        match self {
            Self::Redis { .. } | Self::BusyRedis { .. } => "redis",
            _ => WORKLOAD,
        }
    }

    /// Where it answers.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Redis { .. } | Self::BusyRedis { .. } => REDIS_PORT,
            _ => COUNT_PORT,
        }
    }

    /// The command line, whose words have no blanks.
    #[must_use]
    pub fn command(&self) -> Vec<String> {
        let line = match self {
            Self::Redis { .. } | Self::BusyRedis { .. } => {
                // An empty word is one that cannot be written in a line.
                let line =
                    format!("redis-server --dir {DATA_DIR} --appendonly no --protected-mode no --save");
                return words(&line).chain([String::new()]).collect();
            }
            Self::Dirtier { mib, mib_per_s } => format!("dirtier --mib {mib} --mib-per-s {mib_per_s}"),
            Self::Processes { count, mib } => format!("processes --count {count} --mib {mib}"),
            Self::Threads { count } => format!("threads --count {count}"),
            Self::Connections { .. } => "count".to_owned(),
        };
        words(&format!("{WORKLOAD} {line} --count-port {COUNT_PORT}")).collect()
    }

    /// With only a part of the memory, for a quick look.
    #[must_use]
    pub fn divided(self, by: usize) -> Self {
        let part = |mib: usize| (mib / by.max(1)).max(1);
        match self {
            Self::Redis { mib } => Self::Redis { mib: part(mib) },
            Self::BusyRedis { mib } => Self::BusyRedis { mib: part(mib) },
            Self::Dirtier { mib, mib_per_s } => Self::Dirtier {
                mib: part(mib),
                mib_per_s,
            },
            other => other,
        }
    }

    /// Fills it, where it does not do so itself, and begins to wait for its answers on a host.
    ///
    /// # Errors
    /// It does not answer, or does not take the data.
    pub fn watch(&self, from: &Host, address: SocketAddr) -> Result<Box<dyn Watcher>> {
        let crowd = |count, period| Crowd::start(from, address, count, period);
        Ok(match *self {
            Self::Redis { mib } => Box::new(Client::start(from, address, mib)?),
            Self::BusyRedis { mib } => Box::new(Busy::start(from, address, mib)?),
            Self::Connections { count } => Box::new(crowd(count, NOW_AND_THEN)?),
            Self::Dirtier { .. } | Self::Processes { .. } | Self::Threads { .. } => {
                Box::new(crowd(1, OFTEN)?)
            }
        })
    }
}

fn words(line: &str) -> impl Iterator<Item = String> {
    line.split(' ').map(str::to_owned)
}

/// Puts random values into a fresh Redis: nothing in them can be compressed or left out. It is idle afterwards.
///
/// # Errors
/// Redis does not take them.
pub fn fill(redis: &mut Connection, mib: usize) -> Result<()> {
    let mut random = blake3::Hasher::new().update(b"values").finalize_xof();
    let count = ((mib as u64) << 20).div_ceil(VALUE_BYTES as u64);
    for first in (0..count).step_by(BATCH as usize) {
        let mut words = vec![b"MSET".to_vec()];
        for index in first..count.min(first + BATCH) {
            let mut value = vec![0; VALUE_BYTES];
            random.fill(&mut value);
            words.push(format!("value:{index}").into_bytes());
            words.push(value);
        }
        redis.ask(&words).context("cannot fill redis")?;
    }
    match redis.ask(&["DBSIZE"])? {
        Answer::Number(keys) if u64::try_from(keys) == Ok(count) => settle(redis, count),
        other => bail!("redis was given {count} values and has {other:?}"),
    }
}

/// Lets Redis end the growth of its table of keys, which would otherwise go on for minutes beside the first moves:
/// each look-up takes it one bucket further, and there are fewer than twice as many buckets as keys.
fn settle(redis: &mut Connection, count: u64) -> Result<()> {
    let mut words = vec!["nothing"; LOOK_UPS as usize + 1];
    words[0] = "EXISTS";
    for _ in (0..2 * count).step_by(LOOK_UPS as usize) {
        redis.ask(&words).context("cannot look for keys")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_is_told_to_save_nothing() {
        let command = Load::Redis { mib: 1 }.command();
        assert_eq!(command[command.len() - 2..], ["--save", ""]);
    }

    #[test]
    fn a_part_is_never_nothing_and_a_rate_is_not_memory() {
        let load = Load::Dirtier {
            mib: 8,
            mib_per_s: 50,
        };
        let divided = Load::Dirtier {
            mib: 1,
            mib_per_s: 50,
        };
        assert_eq!(load.divided(100), divided);
    }
}
