//! Daemons come and go; containers stay, and move afterwards as before.

use std::time::Duration;

use anyhow::{Result, ensure};
use tranship_tests::counter::Counter;
use tranship_tests::images::{self, REDIS_PORT};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::daemon;
use tranship_tests::tranship::wait_for;

#[test]
fn daemons_restart_on_each_side_between_two_moves() -> Result<()> {
    let scenario = Scenario::begin(&["redis"])?;
    let (a, b, client) = (scenario.host("a")?, scenario.host("b")?, scenario.host("client")?);
    images::run_redis(a, "redis", "data", client)?;
    let counter = Counter::start(client, a.address_of("redis", REDIS_PORT)?, "visits")?;
    for (from, to) in [(a, b), (b, a)] {
        daemon::stop(from)?;
        daemon::start(from)?;
        daemon::kill(to)?;
        daemon::start(to)?;
        from.migrate("redis", to.name())?;
        for host in [a, b] {
            daemon::kill(host)?;
            daemon::start(host)?;
        }
        let here = to.container("redis")?;
        ensure!(
            here["state"] == "running",
            "after the restarts it is {}",
            here["state"]
        );
        let pong = to.exec("redis", &["redis-cli", "ping"])?;
        ensure!(pong == "PONG", "redis answers {pong:?}");
    }
    counter.stop()?.checked()?;
    scenario.end()
}

#[test]
fn a_restarted_daemon_finds_logs_and_exit_codes_again() -> Result<()> {
    let scenario = Scenario::begin(&["busybox"])?;
    let a = scenario.host("a")?;
    let run = |name: &str, script: &str| {
        a.tranship(&[
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            script,
        ])
    };
    run(
        "talks",
        "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.05; done",
    )?;
    // It ends while no daemon is there to see it.
    run("ends", "echo so far; sleep 1; echo done >&2; exit 7")?;
    daemon::kill(a)?;
    std::thread::sleep(Duration::from_millis(1500));
    daemon::start(a)?;

    let ended = a.container("ends")?;
    ensure!(
        ended["state"] == "exited" && ended["exit_code"] == 7,
        "it is {ended:#}"
    );
    ensure!(a.tranship(&["wait", "ends"])? == "7", "wait says something else");
    let logs = a.try_tranship(&["logs", "ends"])?;
    ensure!(
        (logs.text(), logs.errors()) == ("so far".into(), "done".into()),
        "its log: {logs:?}"
    );

    let lines = || Ok::<_, anyhow::Error>(a.tranship(&["logs", "talks"])?.lines().count());
    let reached = lines()?;
    wait_for("more lines", Duration::from_secs(10), || {
        Ok(lines()? > reached + 5)
    })?;
    let log = a.tranship(&["logs", "talks"])?;
    for (number, line) in (1..).zip(log.lines()) {
        ensure!(
            line == format!("line {number}"),
            "line {number} of the log is {line:?}"
        );
    }
    let echoed = a.exec("talks", &["echo", "hello"])?;
    ensure!(echoed == "hello", "exec says {echoed:?}");
    a.tranship(&["stop", "-t", "1", "talks"])?;
    ensure!(
        a.container("talks")?["exit_code"] == 137,
        "it was stopped by SIGKILL"
    );
    scenario.end()
}
