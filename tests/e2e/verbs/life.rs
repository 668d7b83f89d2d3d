//! `stop`, `kill`, `wait`, `pause`, `rm`: a container's life and its end.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tranship_tests::testbed::{Host, daemon};
use tranship_tests::tranship::wait_for;

use super::{SOON, begin, failed, start};

#[test]
fn stop_kill_wait_pause_and_rm_do_what_they_do_everywhere() -> Result<()> {
    let scenario = begin()?;
    let a = scenario.host("a")?;
    start(
        a,
        "polite",
        "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done",
    )?;
    start(
        a,
        "deaf",
        "trap '' TERM; echo ready; while :; do sleep 0.05; done",
    )?;
    start(
        a,
        "hears",
        "trap 'exit 5' HUP; echo ready; while :; do sleep 0.05; done",
    )?;
    start(a, "counts", "echo ready; while :; do echo x; sleep 0.02; done")?;
    for name in ["polite", "deaf", "hears", "counts"] {
        wait_for("ready", SOON, || {
            Ok(a.tranship(&["logs", name])?.starts_with("ready"))
        })?;
    }
    paused(a)?;
    ended(a)?;
    removed(a)?;
    scenario.end()
}

fn ended(a: &Host) -> Result<()> {
    let waiting = daemon::cli(a, &["wait", "polite", "hears"])?
        .stdout(Stdio::piped())
        .spawn()?;
    let begun = Instant::now();
    ensure!(
        a.tranship(&["stop", "polite"])? == "polite",
        "stop prints the name"
    );
    ensure!(
        begun.elapsed() < Duration::from_secs(5),
        "stop took {:?}",
        begun.elapsed()
    );
    a.tranship(&["kill", "-s", "HUP", "hears"])?;
    let waited = waiting.wait_with_output()?;
    ensure!(
        waited.stdout == b"9\n5\n",
        "wait printed {:?}",
        String::from_utf8_lossy(&waited.stdout)
    );
    let begun = Instant::now();
    a.tranship(&["stop", "-t", "1", "deaf"])?;
    ensure!(
        begun.elapsed() >= Duration::from_secs(1),
        "stop killed after {:?}",
        begun.elapsed()
    );
    a.tranship(&["kill", "counts"])?;
    ensure!(
        a.tranship(&["wait", "deaf", "counts"])? == "137\n137",
        "exit codes of killed ones"
    );
    for (name, code) in [("polite", 9), ("deaf", 137), ("hears", 5), ("counts", 137)] {
        let shown = a.container(name)?;
        ensure!(
            shown["state"] == "exited" && shown["exit_code"] == code,
            "{name}: {shown:#}"
        );
    }
    ensure!(a.tranship(&["-q", "ps"])?.is_empty(), "ps shows those that ended");
    let all = a.tranship(&["ps", "-a"])?;
    ensure!(
        all.contains("Exited (9) ") && all.contains("Exited (137) "),
        "ps -a:\n{all}"
    );
    failed(&a.try_tranship(&["kill", "counts"])?, 1, "not running")?;
    failed(
        &a.try_tranship(&["kill", "-s", "NONSENSE", "counts"])?,
        1,
        "NONSENSE",
    )?;
    // Stopping what has stopped is no mistake.
    a.tranship(&["stop", "polite"])?;
    Ok(())
}

fn removed(a: &Host) -> Result<()> {
    start(a, "runs", "exec sleep 86400")?;
    failed(&a.try_tranship(&["rm", "runs"])?, 1, "running")?;
    ensure!(
        a.container("runs")?["state"] == "running",
        "the refused rm stopped it"
    );
    // One that fails does not keep the others from their turn.
    let removed = a.try_tranship(&["rm", "polite", "nobody", "deaf", "hears", "counts"])?;
    failed(&removed, 1, "no container \"nobody\"")?;
    ensure!(
        removed.text() == "polite\ndeaf\nhears\ncounts",
        "rm printed {:?}",
        removed.text()
    );
    a.tranship(&["rm", "-f", "runs"])?;
    ensure!(
        a.tranship(&["-q", "ps", "-a"])?.is_empty(),
        "something was not removed"
    );
    Ok(())
}

/// What is paused stands still, and goes on as if nothing had been.
fn paused(a: &Host) -> Result<()> {
    let lines = || Ok::<_, anyhow::Error>(a.tranship(&["logs", "counts"])?.lines().count());
    a.tranship(&["pause", "counts"])?;
    ensure!(a.container("counts")?["state"] == "paused", "it is not paused");
    ensure!(a.tranship(&["ps"])?.contains("Paused"), "ps does not say so");
    failed(&a.try_tranship(&["pause", "counts"])?, 1, "paused")?;
    failed(&a.try_tranship(&["exec", "counts", "true"])?, 125, "paused")?;
    // The monitor may still be writing what was said before.
    std::thread::sleep(Duration::from_millis(100));
    let so_far = lines()?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(lines()? == so_far, "it writes while it is paused");
    a.tranship(&["unpause", "counts"])?;
    wait_for("it to go on", SOON, || Ok(lines()? > so_far + 5))?;
    ensure!(a.container("counts")?["state"] == "running", "it is not running");
    failed(&a.try_tranship(&["unpause", "counts"])?, 1, "running")
}
