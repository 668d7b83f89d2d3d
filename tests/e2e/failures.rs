//! Checkpoints and restores that fail: the container goes on at the source, and its client's connection with it.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tranship_tests::broken_criu::{break_criu, mend_criu};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::oracles::Inventory;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, daemon};

/// Between two migrations, so that each finds a client at work.
const COUNT: Duration = Duration::from_millis(200);

/// Exit code of a migration that failed before anything changed.
const NOT_TOUCHED: i32 = 1;
/// Exit code of a migration that failed and was rolled back.
const ROLLED_BACK: i32 = 5;

/// What a CRIU does instead of its work, as lines of a shell.
struct Fault {
    what: &'static str,
    script: &'static str,
    exit_code: i32,
}

/// A CRIU that is killed, before or after its parent, as soon as it is seen to trace a task.
macro_rules! killed_in_a_dump {
    ($($who:literal),+) => {
        concat!(
            "
    (until grep -qs \"^TracerPid:.$$\\$\" /proc/[0-9]*/status; do kill -0 $$ || exit; done",
            $("; kill -KILL ", $who,)+
            ") </dev/null >/dev/null 2>&1 &
    exec \"$real\" \"$@\""
        )
    };
}

/// A CRIU that the kernel kills when one of its files grows beyond so many blocks of 512 bytes.
macro_rules! killed_at_a_file_of {
    ($blocks:literal) => {
        concat!("ulimit -c 0; ulimit -f ", $blocks, "; exec \"$real\" \"$@\"")
    };
}

/// Its standard input must be said; other descriptors go along by themselves.
const KILLED: &str = "
    \"$real\" \"$@\" <&0 &
    pid=$!
    while kill -0 $pid 2>/dev/null; do
        [ -z \"$(pgrep -P $pid)\" ] || kill -KILL $pid
    done
    wait $pid";

/// Killed from outside at moments of a dump. Those of its files do not depend on who is faster.
const KILLED_IN_A_DUMP: [Fault; 5] = [
    Fault {
        what: "is killed when it has the tasks",
        script: killed_in_a_dump!("$$"),
        exit_code: ROLLED_BACK,
    },
    Fault {
        what: "is killed at its first image of more than 512 bytes",
        script: killed_at_a_file_of!("1"),
        exit_code: ROLLED_BACK,
    },
    Fault {
        what: "is killed at its first image of more than 3.5 KiB",
        script: killed_at_a_file_of!("7"),
        exit_code: ROLLED_BACK,
    },
    Fault {
        what: "is killed together with its relay",
        script: killed_in_a_dump!("$$ $PPID"),
        exit_code: ROLLED_BACK,
    },
    Fault {
        what: "is killed right after its relay",
        script: killed_in_a_dump!("$PPID", "$$"),
        exit_code: ROLLED_BACK,
    },
];

/// CRIU's own faults are numbers: see its `fault-injection.h`.
const DUMP_FAULTS: [Fault; 4] = [
    Fault {
        what: "refuses to work",
        script: "exit 1",
        exit_code: NOT_TOUCHED,
    },
    Fault {
        what: "kills itself with its code in the tasks",
        script: "CRIU_FAULT=1 exec \"$real\" \"$@\"",
        exit_code: ROLLED_BACK,
    },
    Fault {
        what: "finds that its code in the tasks does not answer",
        script: "CRIU_FAULT=5 exec \"$real\" \"$@\"",
        exit_code: ROLLED_BACK,
    },
    Fault {
        what: "fails at the pages",
        script: "CRIU_FAULT=3 exec \"$real\" \"$@\"",
        exit_code: ROLLED_BACK,
    },
];

const RESTORE_FAULTS: [Fault; 3] = [
    Fault {
        what: "refuses to work",
        script: "exit 1",
        exit_code: NOT_TOUCHED,
    },
    Fault {
        what: "fails when all is restored",
        script: "CRIU_FAULT=6 exec \"$real\" \"$@\"",
        exit_code: ROLLED_BACK,
    },
    Fault {
        what: "is killed as soon as it has made a process",
        script: KILLED,
        exit_code: ROLLED_BACK,
    },
];

#[test]
fn a_dump_that_fails_leaves_the_container_running() -> Result<()> {
    with_broken_criu("a", &DUMP_FAULTS)
}

#[test]
fn a_criu_that_is_killed_in_a_dump_leaves_the_container_running() -> Result<()> {
    with_broken_criu("a", &KILLED_IN_A_DUMP)
}

#[test]
fn a_restore_that_fails_leaves_the_container_at_the_source() -> Result<()> {
    with_broken_criu("b", &RESTORE_FAULTS)
}

fn with_broken_criu(broken: &str, faults: &[Fault]) -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, client) = (scenario.host("a")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    for fault in faults {
        fails(&scenario, broken, fault).with_context(|| format!("a CRIU on {broken} that {}", fault.what))?;
    }
    // Once what was broken is mended, it moves.
    let host = scenario.host(broken)?;
    mend_criu(host)?;
    restart(host)?;
    a.migrate("redis", "b")?;
    sleep(COUNT);
    counter.stop()?.checked()?;
    scenario.end()
}

/// A migration that must fail and change nothing.
fn fails(scenario: &Scenario, broken: &str, fault: &Fault) -> Result<()> {
    let (a, b, bed) = (scenario.host("a")?, scenario.host("b")?, scenario.bed()?);
    let host = scenario.host(broken)?;
    break_criu(host, fault.script)?;
    restart(host)?;
    let before = Inventory::take(bed)?;
    sleep(COUNT);
    let failed = a.try_tranship(&["migrate", "redis", "b"])?;
    ensure!(
        failed.status.code() == Some(fault.exit_code),
        "{} instead of {}: {}",
        failed.status,
        fault.exit_code,
        failed.errors()
    );
    let told = failed.errors();
    ensure!(
        told.contains("redis runs at a"),
        "it is not told where the container is: {told}"
    );
    ensure!(
        a.container("redis")?["state"] == "running",
        "it does not run at the source"
    );
    let there = b.try_tranship(&["inspect", "redis"])?;
    ensure!(
        !there.status.success(),
        "something of it is at the destination: {}",
        there.text()
    );
    // Layers and the image that have arrived are kept for the next attempt, as a download would be.
    before.expect_unchanged_but(bed, |line| {
        line.contains("/overlay/layers/") || (line.starts_with("gone") && line.contains("/overlay/staging/"))
    })
}

fn restart(host: &Host) -> Result<()> {
    daemon::stop(host)?;
    daemon::start(host)
}
