//! The testbed itself, without daemons: what all other tests stand on.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tranship_tests::command;
use tranship_tests::testbed::{Host, Layout, Options, PoolKind, Testbed, layout};
use tranship_tests::tranship::wait_for;

/// Tests of this file take turns: there is one testbed.
static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());

fn options(pool: PoolKind) -> Options {
    Options {
        hosts: 3,
        pool,
        force: true,
        ..Options::default()
    }
}

fn own_layout() -> Result<Layout> {
    Layout::new(&Options::default().dir)
}

#[test]
fn hosts_and_client_reach_each_other_until_a_cable_is_pulled() -> Result<()> {
    let _turn = TURN.lock();
    let bed = Testbed::up_without_daemons(&options(PoolKind::Dir))?;
    let (a, client) = (bed.host("a")?, bed.client());
    for host in bed.hosts() {
        reaches(client, host.name())?;
        reaches(host, layout::CLIENT)?;
        let name = host.run("hostname", [""; 0])?.text();
        ensure!(name == host.name(), "host {} calls itself {name}", host.name());
    }
    // They have one kernel, and so one place for what was changed of it.
    let (here, there) = (
        a.path(layout::OF_THE_KERNEL),
        bed.host("b")?.path(layout::OF_THE_KERNEL),
    );
    let inode = |path: &std::path::Path| {
        Ok::<_, anyhow::Error>((fs::metadata(path)?.dev(), fs::metadata(path)?.ino()))
    };
    ensure!(
        inode(&here)? == inode(&there)?,
        "each host has a place of its own"
    );
    bed.set_link("b", false)?;
    let sent = a.finish(
        "busybox",
        ["ping", "-c", "1", "-W", "1", "10.77.0.2"],
        command::SHORT,
    )?;
    ensure!(!sent.status.success(), "b is reached without a cable");
    bed.set_link("b", true)?;
    reaches(a, "b")?;
    bed.down()
}

#[test]
fn a_shaped_link_is_as_slow_as_it_should_be() -> Result<()> {
    let _turn = TURN.lock();
    let bed = Testbed::up_without_daemons(&options(PoolKind::Dir))?;
    bed.set_rate("a", "8mbit")?;
    let slow = megabyte(&bed)?;
    ensure!((0.9..2.0).contains(&slow), "1 MB at 8 mbit took {slow:.3} s");
    bed.set_rate("a", "unlimited")?;
    let fast = megabyte(&bed)?;
    ensure!(fast < 0.3, "1 MB without a limit took {fast:.3} s");
    ensure!(bed.set_rate("a", "slow").is_err(), "a word was taken for a rate");
    bed.down()
}

#[test]
fn nothing_is_left_of_a_testbed_with_frozen_processes_and_loop_devices() -> Result<()> {
    let _turn = TURN.lock();
    Testbed::take_down(&own_layout()?)?;
    for pool in [PoolKind::Dir, PoolKind::Btrfs, PoolKind::Xfs] {
        let before = machine()?;
        let bed = Testbed::up_without_daemons(&options(pool))?;
        let a = bed.host("a")?;
        a.run("sh", ["-c", FREEZE, &a.layout.cgroup()])?;
        ensure!(machine()? != before, "the testbed is not there");
        bed.down()?;
        let after = machine()?;
        let changed: Vec<_> = after.symmetric_difference(&before).collect();
        ensure!(
            changed.is_empty(),
            "with {pool:?} the machine is not as it was: {changed:#?}"
        );
    }
    // Nothing is left to take down, and that is fine too.
    Testbed::take_down(&own_layout()?)
}

/// A process in a frozen cgroup, on either version.
const FREEZE: &str = "
    cd /sys/fs/cgroup
    [ ! -d freezer ] || cd freezer
    mkdir -p \"$0\"/a/x
    cd \"$0\"/a/x
    setsid sleep 600 </dev/null >/dev/null 2>&1 &
    echo $! >cgroup.procs
    if [ -e freezer.state ]; then
        echo FROZEN >freezer.state
    else
        echo 1 >cgroup.freeze
    fi
";

#[test]
fn a_second_testbed_in_the_same_place_is_refused() -> Result<()> {
    let _turn = TURN.lock();
    let bed = Testbed::up_without_daemons(&options(PoolKind::Dir))?;
    let second = Options {
        force: false,
        ..options(PoolKind::Dir)
    };
    let error = format!(
        "{:#}",
        Testbed::up_without_daemons(&second).expect_err("a second one came up")
    );
    ensure!(
        error.contains("testbed down"),
        "the message does not say what to do: {error}"
    );
    // The refusal has not touched the first one.
    reaches(bed.client(), "a")?;
    bed.down()
}

#[test]
fn a_daemon_that_does_not_start_is_told_with_the_end_of_its_log() -> Result<()> {
    let _turn = TURN.lock();
    let bed = Testbed::up_without_daemons(&options(PoolKind::Dir))?;
    let a = bed.host("a")?;
    fs::write(a.layout.config("a"), "no_such_key = 1\n")?;
    let error =
        tranship_tests::testbed::daemon::start(a).expect_err("a daemon started without a configuration");
    let error = format!("{error:#}");
    ensure!(
        error.contains("no_such_key"),
        "the log is not in the message: {error}"
    );
    bed.down()
}

fn reaches(from: &Host, to: &str) -> Result<()> {
    let address = layout::address(to)
        .map(|address| address.to_string())
        .unwrap_or_default();
    // A bridge port needs a moment until it forwards.
    wait_for(
        &format!("{} to reach {to}", from.name()),
        Duration::from_secs(5),
        || {
            let sent = from.finish(
                "busybox",
                ["ping", "-c", "1", "-W", "1", &address],
                command::SHORT,
            )?;
            Ok(sent.status.success())
        },
    )
}

/// Seconds for a megabyte from the client to host a.
fn megabyte(bed: &Testbed) -> Result<f64> {
    let mut sink = bed
        .host("a")?
        .command("busybox", ["timeout", "20", "busybox", "nc", "-l", "-p", "5000"]);
    // An input that stays open: with an end, `nc` would leave at once.
    let mut sink = sink.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
    let script = "dd if=/dev/zero bs=1000 count=1000 2>/dev/null | busybox nc 10.77.0.1 5000";
    let mut began = Instant::now();
    wait_for("the sink to listen", Duration::from_secs(5), || {
        began = Instant::now();
        let sent = bed.client().finish("sh", ["-c", script], command::SHORT)?;
        Ok(sent.status.success())
    })?;
    // The sender is done when its socket has taken everything; the wire is done when the receiver has.
    let stdin = sink.stdin.take();
    sink.wait()?;
    drop(stdin);
    Ok(began.elapsed().as_secs_f64())
}

/// Mounts, links, loop devices, cgroups and files of the machine that a testbed could leave.
fn machine() -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    let layout = own_layout()?;
    let disks = layout.disks();
    let disks = disks.to_string_lossy();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    lines.extend(
        mounts
            .lines()
            .filter(|line| line.contains(&*disks))
            .map(str::to_owned),
    );
    let links = command::succeed(&mut command::command("ip", ["-br", "link"]), command::SHORT)?.text();
    lines.extend(
        links
            .lines()
            .filter(|line| line.starts_with("p-"))
            .map(str::to_owned),
    );
    let devices = command::succeed(
        &mut command::command("losetup", ["-n", "-O", "BACK-FILE"]),
        command::SHORT,
    )?;
    lines.extend(
        devices
            .text()
            .lines()
            .filter(|line| line.contains(&*disks))
            .map(str::to_owned),
    );
    lines.extend(tranship_tests::testbed::teardown::traces(&layout)?);
    Ok(lines)
}
