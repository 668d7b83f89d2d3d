//! Real containers that run before their memory is there: dumped, restored with lazy pages by the real CRIU, and filled by
//! `tranship-filler` from a page store. Each verifies its own memory. Needs root, runc, CRIU and busybox.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "lazy_restore/bed.rs"]
mod bed;
mod support;
#[path = "lazy_restore/workload.rs"]
mod workload;

use std::time::{Duration, Instant};

use bed::{Lazy, Namespaces};
use support::{soon, wait_until};
use tranship_checkpoint::memory::fill::{FillError, Memory, filling};
use tranship_checkpoint::process_tree;

#[tokio::test]
async fn a_container_runs_at_once_and_finds_all_its_memory() {
    for namespaces in [Namespaces::User, Namespaces::Host] {
        let bed = Lazy::dumped("verify", 64, namespaces).await;
        let mut restored = bed.restore().await;
        let figures = restored.complete().await;
        println!("{namespaces:?}: {figures:?}");
        assert_eq!(bed.result(), "ok");
        assert!(
            figures.filled_bytes + figures.hot_bytes + figures.faults * 65536 >= 64 << 20,
            "{figures:?}"
        );
        assert_eq!(filling(&bed.mark()).unwrap(), None);
        assert_eq!(*restored.holder.lock().unwrap().memory(), Memory::Complete);
        assert_eq!(
            std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd")
                .unwrap()
                .trim(),
            "0"
        );
    }
}

#[tokio::test]
async fn processes_that_change_their_memory_while_it_is_filled_find_what_should_be_there() {
    let bed = Lazy::dumped("change", 512, Namespaces::User).await;
    let mut restored = bed.restore().await;
    let figures = restored.complete().await;
    println!("{figures:?}");
    assert_eq!(bed.result(), "ok");
    assert!(figures.processes > 1, "no fork was seen: {figures:?}");
}

#[tokio::test]
async fn a_process_that_ends_while_it_is_filled_ends_the_filling() {
    let bed = Lazy::dumped("exit", 512, Namespaces::User).await;
    let mut restored = bed.restore().await;
    let figures = restored.complete().await;
    println!("{figures:?}");
    assert!(figures.filled_bytes < 512 << 20, "{figures:?}");
    assert_eq!(bed.result(), "ended");
}

#[tokio::test]
async fn what_was_written_last_is_there_before_the_container_runs() {
    let bed = Lazy::dumped("verify", 64, Namespaces::User).await;
    let mut held = bed.start().await;
    std::thread::sleep(Duration::from_millis(200));
    bed.release(&mut held).await;
    let figures = held.complete().await;
    println!("{figures:?}");
    assert!(
        figures.hot_bytes >= 512 << 10 && figures.hot_bytes < 32 << 20,
        "{figures:?}"
    );
    assert_eq!(bed.result(), "ok");
}

#[tokio::test]
async fn a_restore_that_is_given_up_leaves_a_store_that_another_one_can_use() {
    let bed = Lazy::dumped("verify", 64, Namespaces::User).await;
    let mut given_up = bed.start().await;
    given_up.relay.abort().await.unwrap();
    let ended = given_up.filler.wait_complete(soon(30)).await;
    assert!(matches!(ended, Err(FillError::Aborted)), "{ended:?}");
    assert_eq!(filling(&bed.mark()).unwrap(), None);
    given_up.give_up();
    bed.side.delete();
    let mut restored = bed.restore().await;
    restored.complete().await;
    assert_eq!(bed.result(), "ok");
}

#[tokio::test]
async fn a_container_whose_filler_is_killed_never_runs_on_zeros() {
    let bed = Lazy::dumped("verify", 512, Namespaces::User).await;
    let mut restored = bed.restore().await;
    kill(restored.filler.pid());
    let ended = restored.filler.wait_complete(soon(10)).await;
    assert!(matches!(ended, Err(FillError::Lost { .. })), "{ended:?}");
    wait_until("the holder knows", || {
        matches!(restored.holder.lock().unwrap().memory(), Memory::Lost(_))
    });
    // The process waits for a page that does not come; as long as the descriptor is held it is not given zeros.
    std::thread::sleep(Duration::from_millis(300));
    assert!(restored.holder.lock().unwrap().held() > 0);
    assert_eq!(bed.result_now(), None);
    process_tree::kill(&bed.side.cgroup, soon(10)).await.unwrap();
    drop(restored);
    assert_eq!(bed.result_now(), None, "it went on with what was not its memory");
    assert_eq!(filling(&bed.mark()).unwrap(), None, "a mark that is stale counts");
}

#[tokio::test]
async fn a_page_that_never_arrived_fails_the_restore_and_not_the_container() {
    let mut bed = Lazy::dumped("verify", 16, Namespaces::User).await;
    bed.lose_a_page();
    let missing = bed.verify().unwrap_err();
    println!("{missing}");
    let failed = bed.try_start().await;
    assert!(failed.is_err(), "it was restored without a page");
}

/// Figures for the notes: run alone with `--ignored --nocapture`.
#[tokio::test]
#[ignore = "a measurement, and 4 GiB of memory"]
async fn how_long_a_gibibyte_takes() {
    for megabytes in [64, 1024] {
        let bed = Lazy::dumped("probe", megabytes, Namespaces::User).await;
        let begun = Instant::now();
        let mut restored = bed.restore().await;
        println!("{megabytes} MiB: {:?} from start to release", begun.elapsed());
        let memory = restored.watch_memory();
        let figures = restored.complete().await;
        println!("{megabytes} MiB: {figures:?}");
        println!(
            "{megabytes} MiB: {:.2} GB/s",
            figures.filled_bytes as f64 / figures.fill_us as f64 / 1e3
        );
        let seen = memory.join().unwrap();
        println!(
            "{megabytes} MiB: ms, MiB of the container, of the filler, of the store, CPU ms of the filler"
        );
        for line in seen.iter().step_by(seen.len() / 8 + 1).chain(seen.last()) {
            println!("{line:?}");
        }
        println!("{megabytes} MiB: {}", bed.result());
    }
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}
