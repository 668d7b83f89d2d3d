//! Real containers, dumped and restored by the real CRIU through the relay. Needs root, runc, CRIU and busybox.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use support::{Side, criu, end_of, loopback_up, soon, wait_until};
use tranship_checkpoint::criu::{
    BarrierStage, Dump, DumpError, Operation, Relay, RelayError, RestoreError, discard, dump, journal_of,
    remove_ghosts,
};
use tranship_checkpoint::freeze::Freezer;
use tranship_checkpoint::process_tree;

/// A running source.
fn source() -> Side {
    let side = Side::new();
    side.run(side.output());
    side
}

/// A source that has been frozen and dumped.
async fn dumped() -> Side {
    let side = source();
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    freezer.freeze(soon(5)).await.unwrap();
    dump(side.dump_request(), soon(60)).await.unwrap();
    side
}

fn assert_stands_still(side: &Side) {
    let before = (side.count(), side.echoed());
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!((side.count(), side.echoed()), before, "a task has run");
}

fn assert_goes_on(side: &Side) {
    let (count, echoed) = (side.count(), side.echoed());
    wait_until("the workload goes on", || {
        side.count() > count + 3 && side.echoed() > echoed + 3
    });
}

/// The content of a file that the workload writes anew all the time: between its truncation and its write it is empty.
fn written(path: &Path) -> String {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let content = fs::read_to_string(path).unwrap();
        if !content.is_empty() || Instant::now() > end {
            return content;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test]
async fn a_container_is_held_at_every_barrier_and_goes_on_at_the_other_side() {
    let source = source();
    let freezer = Freezer::of_cgroup(&source.cgroup).unwrap();
    assert!(tranship_checkpoint::cgroup::memory_bytes(&source.cgroup).unwrap() > 4096);

    let mut dump = Dump::prepare(source.dump_request(), soon(60)).await.unwrap();
    assert_goes_on(&source);
    let took = freezer.freeze(soon(5)).await.unwrap();
    assert!(took < Duration::from_secs(1), "{took:?}");
    let barrier = dump.write(soon(60)).await.unwrap();
    assert_eq!(barrier.stage, BarrierStage::PostDump);
    assert!(source.path("images/inventory.img").exists() && source.path("images/descriptors.json").exists());
    assert_stands_still(&source);
    assert!(
        freezer.is_frozen().unwrap(),
        "only ptrace holds the tasks at the barrier"
    );
    let report = dump.complete(soon(60)).await.unwrap();
    assert_eq!(report.pid, barrier.pid);
    assert!(report.images_bytes > 0);
    println!("dump: {:?}, frozen in {took:?}", report.stages);
    let names: Vec<&str> = report.stages.iter().map(|time| time.stage.as_str()).collect();
    assert!(
        names.starts_with(&["started", "request", "pre-dump"]) && names.ends_with(&["ended"]),
        "{names:?}"
    );
    assert!(
        report
            .stages
            .windows(2)
            .all(|pair| pair[0].at_us <= pair[1].at_us)
    );
    assert!(freezer.is_frozen().unwrap());
    process_tree::verify_untouched(&source.cgroup).unwrap();
    assert_stands_still(&source);

    let target = Side::beside(&source);
    let frozen_at = source.count();
    let pid = restore(&target).await;
    assert_goes_on(&target);
    assert!(target.count() >= frozen_at, "it has started anew");
    assert_eq!(written(&target.path("vol/ghost")), "secret\n");
    assert_eq!(written(&target.path("vol/shm")), "tmpfs\n");
    assert_in_its_cgroups(&target, pid);
    assert_stands_still(&source);

    process_tree::kill(&source.cgroup, soon(10)).await.unwrap();
    assert_eq!(process_tree::pids(&source.cgroup).unwrap(), Vec::<i32>::new());
    assert_goes_on(&target);
}

/// Restores with a stop at each barrier; returns the root task.
async fn restore(target: &Side) -> i32 {
    let mut relay = Relay::bind(&target.path("relay"), &criu(), Operation::Restore).unwrap();
    let runc = target.start_restore(relay.environment());
    let seen = relay.wait_request(soon(60)).await.unwrap();
    assert_eq!((seen.operation, seen.pid), (Operation::Restore, None));
    assert!(
        process_tree::pids(&target.cgroup)
            .unwrap()
            .contains(&seen.relay_pid),
        "the relay is outside the cgroup"
    );
    relay.release_request().await.unwrap();
    let pid = relay.wait_namespaces(soon(60)).await.unwrap();
    loopback_up(pid);
    relay.continue_namespaces().await.unwrap();
    let barrier = relay.wait_barrier(soon(60)).await.unwrap();
    assert_eq!((barrier.stage, barrier.pid), (BarrierStage::PostRestore, pid));
    assert_stands_still(target);
    relay.release().await.unwrap();
    let finished = relay.wait_finished(soon(60)).await.unwrap();
    println!("restore: {:?}", finished.stages);
    assert!(
        finished.success,
        "{finished:?} {}",
        RestoreError::explain(&target.path("work"), Some(&finished))
    );
    assert!(
        end_of(runc).success(),
        "{:?}",
        fs::read_to_string(target.path("output"))
    );
    assert_eq!(
        fs::read_to_string(target.path("pid")).unwrap().trim(),
        pid.to_string()
    );
    pid
}

fn assert_in_its_cgroups(side: &Side, pid: i32) {
    let table = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    for line in table.lines() {
        let path = line.splitn(3, ':').nth(2).unwrap();
        assert_eq!(path, side.cgroup, "{line}");
    }
}

#[tokio::test]
async fn a_daemon_that_goes_away_at_the_end_of_a_dump_leaves_a_frozen_container_that_can_go_on() {
    let side = source();
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    let mut relay = Relay::bind(&side.path("relay"), &criu(), Operation::Dump).unwrap();
    let runc = side.start_dump(relay.environment());
    relay.wait_request(soon(60)).await.unwrap();
    freezer.freeze(soon(5)).await.unwrap();
    relay.release_request().await.unwrap();
    relay.wait_barrier(soon(60)).await.unwrap();
    drop(relay);
    assert!(!end_of(runc).success(), "an abandoned dump has succeeded");
    assert!(freezer.is_frozen().unwrap());
    assert_stands_still(&side);
    process_tree::verify_untouched(&side.cgroup).unwrap();
    freezer.thaw().unwrap();
    assert_goes_on(&side);
}

#[tokio::test]
async fn a_dump_that_is_aborted_at_any_point_leaves_the_container_able_to_go_on() {
    let side = source();
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    for held in [false, true] {
        let mut dump = Dump::prepare(side.dump_request(), soon(60)).await.unwrap();
        freezer.freeze(soon(5)).await.unwrap();
        if held {
            dump.write(soon(60)).await.unwrap();
        }
        dump.abort().await.unwrap();
        assert!(freezer.is_frozen().unwrap());
        process_tree::verify_untouched(&side.cgroup).unwrap();
        freezer.thaw().unwrap();
        assert_goes_on(&side);
        for image in fs::read_dir(side.path("images")).unwrap() {
            fs::remove_file(image.unwrap().path()).unwrap();
        }
    }
}

#[tokio::test]
async fn a_dump_that_criu_refuses_says_why_and_leaves_the_container_able_to_go_on() {
    let side = Side::new();
    // A file of the host as standard output is not reachable from the container's mounts.
    let output = fs::File::create(side.path("host-file")).unwrap();
    side.run(output.into());
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    freezer.freeze(soon(5)).await.unwrap();
    let error = dump(side.dump_request(), soon(60)).await.unwrap_err();
    let DumpError::Criu { stage, lines, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(stage, "query-ext-files");
    assert!(
        lines.iter().any(|line| line.contains("Can't lookup mount")),
        "{error}"
    );
    assert!(freezer.is_frozen().unwrap());
    assert_stands_still(&side);
    process_tree::verify_untouched(&side.cgroup).unwrap();
    freezer.thaw().unwrap();
    assert_goes_on(&side);
}

#[tokio::test]
async fn a_criu_that_is_killed_at_the_barrier_does_not_let_the_container_run() {
    let side = source();
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    let mut relay = Relay::bind(&side.path("relay"), &criu(), Operation::Dump).unwrap();
    let runc = side.start_dump(relay.environment());
    let seen = relay.wait_request(soon(60)).await.unwrap();
    freezer.freeze(soon(5)).await.unwrap();
    relay.release_request().await.unwrap();
    relay.wait_barrier(soon(60)).await.unwrap();
    freezer.ask_to_freeze().unwrap();
    assert!(matches!(
        process_tree::verify_untouched(&side.cgroup),
        Err(process_tree::TreeError::Touched { .. })
    ));
    kill(seen.criu_pid);
    let error = relay.wait_barrier(soon(10)).await.unwrap_err();
    let RelayError::Ended { finished, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(
        (finished.success, finished.exit.as_str()),
        (false, "killed by signal 9")
    );
    assert!(!end_of(runc).success());
    assert!(freezer.is_frozen().unwrap());
    assert_stands_still(&side);
    let error = process_tree::verify_untouched(&side.cgroup).unwrap_err();
    assert!(error.to_string().contains("in repair"), "{error}");
    let journal = journal_of(&side.path("relay"));
    assert!(process_tree::recover(&side.cgroup, &journal).unwrap().connections > 0);
    freezer.thaw().unwrap();
    assert_goes_on(&side);
}

/// Where a restore is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    Request,
    Namespaces,
    PostRestore,
}

/// How it is given up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    Abort,
    ConnectionLost,
    RuncKilled,
    RelayKilled,
    CriuKilled,
}

#[tokio::test]
async fn a_restore_that_is_given_up_leaves_nothing_and_can_be_tried_again() {
    let source = dumped().await;
    let target = Side::beside(&source);
    for at in [At::Request, At::Namespaces, At::PostRestore] {
        for how in [How::Abort, How::ConnectionLost] {
            give_up_restore(&target, at, how).await;
            target.delete();
            assert_nothing_left(&target, &format!("{at:?}, {how:?}"));
        }
    }
    restore(&target).await;
    assert_goes_on(&target);
}

#[tokio::test]
async fn a_restore_whose_programs_are_killed_can_be_discarded_and_tried_again() {
    let source = dumped().await;
    let target = Side::beside(&source);
    for at in [At::Request, At::Namespaces, At::PostRestore] {
        for how in [How::RuncKilled, How::RelayKilled, How::CriuKilled] {
            give_up_restore(&target, at, how).await;
            discard(&target.to_discard(), soon(10)).await.unwrap();
            assert_nothing_left(&target, &format!("{at:?}, {how:?}"));
            assert!(
                target.path("rootfs/bin/busybox").exists(),
                "{at:?}, {how:?}: the rootfs is gone"
            );
            discard(&target.to_discard(), soon(10)).await.unwrap();
            let left = remove_ghosts(
                &target.path("images"),
                &[target.path("vol"), target.path("rootfs")],
            )
            .unwrap();
            // The others may have been in the middle of cleaning up when they were discarded.
            assert!(
                left > 0 || (at, how) != (At::PostRestore, How::CriuKilled),
                "no name was left"
            );
        }
    }
    restore(&target).await;
    assert_goes_on(&target);
}

async fn give_up_restore(target: &Side, at: At, how: How) {
    let mut relay = Relay::bind(&target.path("relay"), &criu(), Operation::Restore).unwrap();
    let runc = target.start_restore(relay.environment());
    let seen = relay.wait_request(soon(60)).await.unwrap();
    if at != At::Request {
        relay.release_request().await.unwrap();
        loopback_up(relay.wait_namespaces(soon(60)).await.unwrap());
    }
    if at == At::PostRestore {
        relay.continue_namespaces().await.unwrap();
        let held = relay.wait_barrier(soon(60)).await;
        assert!(
            held.is_ok(),
            "{at:?} {how:?}: {held:?} {}",
            RestoreError::explain(&target.path("work"), None)
        );
    }
    match how {
        How::Abort => {
            relay.abort().await.unwrap();
            assert!(!relay.wait_finished(soon(60)).await.unwrap().success);
        }
        How::ConnectionLost => drop(relay),
        How::RuncKilled => kill(i32::try_from(runc.id()).unwrap()),
        How::RelayKilled => kill(seen.relay_pid),
        How::CriuKilled => kill(seen.criu_pid),
    }
    assert!(!end_of(runc).success(), "{at:?} {how:?}");
    assert_stands_still(target);
}

fn kill(pid: i32) {
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
}

fn assert_nothing_left(side: &Side, when: &str) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(side.directory.path().to_str().unwrap()),
        "{when}: {mounts}"
    );
    assert_eq!(fs::read_dir(side.path("runc")).unwrap().count(), 0, "{when}");
    assert_eq!(side.cgroups(), Vec::<std::path::PathBuf>::new(), "{when}");
    // What was killed is gone when whoever adopted it has reaped it.
    wait_until(&format!("{when}: no process is left"), || {
        let tables = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .map(|process| process.path().join("cgroup"));
        !tables
            .filter_map(|table| fs::read_to_string(table).ok())
            .any(|table| table.contains(&side.cgroup))
    });
}

#[tokio::test]
async fn a_restore_that_cannot_work_says_why() {
    let source = dumped().await;
    let target = Side::beside(&source);
    fs::remove_file(target.path("vol/work.sh")).unwrap();
    let mut relay = Relay::bind(&target.path("relay"), &criu(), Operation::Restore).unwrap();
    let runc = target.start_restore(relay.environment());
    relay.wait_request(soon(60)).await.unwrap();
    relay.release_request().await.unwrap();
    loopback_up(relay.wait_namespaces(soon(60)).await.unwrap());
    relay.continue_namespaces().await.unwrap();
    let error = relay.wait_barrier(soon(60)).await.unwrap_err();
    let RelayError::Ended { finished, .. } = &error else {
        panic!("{error}")
    };
    assert!(!end_of(runc).success());
    let error = RestoreError::explain(&target.path("work"), Some(finished));
    assert!(error.lines.iter().any(|line| line.contains("work.sh")), "{error}");
    target.delete();
    assert_nothing_left(&target, "after a failed restore");
}
