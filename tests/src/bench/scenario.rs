//! What is moved, and by whom.
//!
//! Most scenarios run Redis: it is a real program that keeps what it is given in anonymous memory, its answers can be
//! checked (a counter may neither lose nor repeat an increment), and from one scenario to the next nothing changes but
//! the amount of memory, so that their difference is what memory costs. The others run `workload`.

use anyhow::{Context, Result};

use super::course::Mover;
use super::load::Load;

/// One thing to move.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// As `--scenario` takes it.
    pub name: &'static str,
    /// In words, for the report.
    pub about: &'static str,
    /// What runs in the container.
    pub load: Load,
    /// Who moves it, the one that others are compared with first.
    pub movers: &'static [Mover],
}

const ALONE: &[Mover] = &[Mover::Tranship];
const WITH_RUNC: &[Mover] = &[Mover::Tranship, Mover::Baseline];
const WITH_TLS: &[Mover] = &[Mover::Tranship, Mover::TlsCopy];

/// Every scenario, in the order they run.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "redis-64m",
        about: "Redis with 64 MiB of random values, one client that increments a counter 1,000 times a second",
        load: Load::Redis { mib: 64 },
        movers: WITH_RUNC,
    },
    Scenario {
        name: "redis-1g",
        about: "Redis with 1 GiB of random values, one client that increments a counter 1,000 times a second",
        load: Load::Redis { mib: 1024 },
        movers: WITH_RUNC,
    },
    Scenario {
        name: "redis-2g",
        about: "Redis with 2 GiB of random values, the same client; the same bytes over one TLS connection",
        load: Load::Redis { mib: 2048 },
        movers: WITH_TLS,
    },
    Scenario {
        name: "redis-4g",
        about: "Redis with 4 GiB of random values, the same client",
        load: Load::Redis { mib: 4096 },
        movers: ALONE,
    },
    Scenario {
        name: "dirty-10",
        about: "1 GiB, of which 10 MiB/s are changed in random pages; one client that asks 1,000 times a second",
        load: Load::Dirtier {
            mib: 1024,
            mib_per_s: 10,
        },
        movers: ALONE,
    },
    Scenario {
        name: "dirty-50",
        about: "As dirty-10, with 50 MiB/s",
        load: Load::Dirtier {
            mib: 1024,
            mib_per_s: 50,
        },
        movers: ALONE,
    },
    Scenario {
        name: "dirty-200",
        about: "As dirty-10, with 200 MiB/s",
        load: Load::Dirtier {
            mib: 1024,
            mib_per_s: 200,
        },
        movers: ALONE,
    },
    Scenario {
        name: "processes-128",
        about: "128 processes of 2 MiB each; one client that asks their parent 1,000 times a second",
        load: Load::Processes { count: 128, mib: 2 },
        movers: WITH_RUNC,
    },
    Scenario {
        name: "threads-256",
        about: "One process with 256 threads; one client that asks it 1,000 times a second",
        load: Load::Threads { count: 256 },
        movers: WITH_RUNC,
    },
    Scenario {
        name: "connections-1000",
        about: "A server with 1,000 clients, each of which asks every 100 ms",
        load: Load::Connections { count: 1000 },
        movers: ALONE,
    },
    Scenario {
        name: "busy-1g",
        about: "Redis with 1 GiB of random values, under `redis-benchmark -t set -c 1`",
        load: Load::BusyRedis { mib: 1024 },
        movers: ALONE,
    },
];

impl Scenario {
    /// The scenarios of these names; without names, all. Each with `1 / divide` of its memory.
    ///
    /// # Errors
    /// There is none of a name.
    pub fn choose(names: &[String], divide: usize) -> Result<Vec<Self>> {
        let smaller = |scenario: &Self| Self {
            load: scenario.load.divided(divide),
            ..*scenario
        };
        if names.is_empty() {
            return Ok(ALL.iter().map(smaller).collect());
        }
        let find = |name: &String| {
            let known = || ALL.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
            let found = ALL.iter().find(|scenario| scenario.name == name);
            found
                .map(smaller)
                .with_context(|| format!("there is no scenario {name}: the bench has {}", known()))
        };
        names.iter().map(find).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scenario_is_chosen_by_name_and_none_means_all() {
        assert_eq!(Scenario::choose(&[], 1).unwrap().len(), ALL.len());
        let chosen = Scenario::choose(&["redis-1g".to_owned()], 4).unwrap();
        assert_eq!(chosen[0].load, Load::Redis { mib: 256 });
        let error = Scenario::choose(&["redis".to_owned()], 1)
            .unwrap_err()
            .to_string();
        assert!(error.contains("redis-64m"), "{error}");
    }
}
