//! Real processes whose memory is followed while they do their worst. Needs root and Linux 6.7.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod harness;
mod sys;
mod workload;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::{Store, Workload};
use tranship_checkpoint::memory::{Injector, PageBatch, PageSink, ResidentPages, SinkClosed, Tracker};
use tranship_checkpoint::process_tree;

/// Not a test: what the tests start as a process of its own.
#[test]
#[ignore = "the workload of the other tests"]
fn workload() {
    if let Ok(name) = std::env::var("WORKLOAD") {
        workload::run(&name);
    }
}

fn attach(cgroup: &str) -> Tracker {
    let injector = Injector::new(Path::new(env!("CARGO_BIN_EXE_tranship-injector")));
    Tracker::attach(cgroup, injector).unwrap()
}

/// Rounds while the workload runs, then the end while it stands still, and the comparison.
fn follow(name: &str, rounds: usize) {
    follow_workload(&Workload::start(name), rounds);
}

fn follow_workload(workload: &Workload, rounds: usize) {
    let mut store = Store::default();
    let mut tracker = attach(&workload.cgroup);
    for round in 0..rounds {
        // What is listed while it runs must hold until it stands still.
        if round == rounds / 2 {
            tracker.listing_round(store.next_round()).unwrap();
        } else {
            tracker.round(store.next_round()).unwrap();
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    finish(workload, &mut tracker, &mut store);
}

fn finish(workload: &Workload, tracker: &mut Tracker, store: &mut Store) {
    let lists = finish_once(workload, tracker, store);
    // A second look finds nothing that has changed, and reads only what nothing would tell of.
    let bytes = store.bytes;
    let (again, report) = tracker.finish(store.next_round()).unwrap();
    // Copies of a file's pages that were thrown away count the first time, and show as the file's own once they were read.
    assert!(pages(&again).is_subset(&pages(&lists)));
    let untouched = report.untracked > 0 || store.bytes - bytes <= lists.len() << 20;
    assert!(untouched, "{} bytes of {lists:?}", store.bytes - bytes);
}

fn pages(lists: &[ResidentPages]) -> BTreeSet<(u32, u64)> {
    let of = |list: &ResidentPages| {
        let process = list.process;
        let addresses = list
            .runs
            .iter()
            .flat_map(|run| (run.start..run.end()).step_by(4096));
        addresses
            .map(move |address| (process, address))
            .collect::<Vec<_>>()
    };
    lists.iter().flat_map(of).collect()
}

fn finish_once(workload: &Workload, tracker: &mut Tracker, store: &mut Store) -> Vec<ResidentPages> {
    workload.freeze();
    tracker.frozen_round(store.next_round()).unwrap();
    let (lists, _) = tracker.finish(store.next_round()).unwrap();
    store.check(workload, &lists);
    lists
}

#[test]
fn random_writes_are_all_seen() {
    follow("rewrite", 20);
}

#[test]
fn namespaces_are_no_hindrance() {
    let workload = Workload::start_in_namespaces("rewrite");
    let tracker = attach(&workload.cgroup);
    assert!(tracker.longest_stall() > Duration::ZERO);
    drop(tracker);
    follow_workload(&workload, 3);
}

#[test]
fn a_filter_that_refuses_or_kills_does_not_matter() {
    follow("refused", 5);
    follow("killed", 5);
}

#[test]
fn huge_pages_are_followed_page_by_page() {
    follow("huge", 10);
}

#[test]
fn areas_that_come_go_move_and_are_emptied_are_followed() {
    for _ in 0..5 {
        follow("churn", 10);
    }
}

#[test]
fn children_are_followed_as_they_come() {
    follow("fork", 10);
}

#[test]
fn threads_that_come_and_go_are_no_hindrance() {
    follow("threads", 10);
}

#[test]
fn memory_that_nobody_may_read_or_write_arrives_too() {
    follow("unreadable", 5);
}

#[test]
fn a_program_that_becomes_another_is_followed_anew() {
    let mut workload = Workload::start("exec");
    let mut store = Store::default();
    let mut tracker = attach(&workload.cgroup);
    tracker.round(store.next_round()).unwrap();
    workload.tell("g\n");
    let mut rounds = 0;
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| workload.hear());
        while !heard.is_finished() {
            tracker.round(store.next_round()).unwrap();
            rounds += 1;
        }
        assert_eq!(heard.join().unwrap(), "again");
    });
    assert!(rounds > 0);
    let report = tracker.round(store.next_round()).unwrap();
    assert_eq!((report.processes, report.untracked), (1, 0));
    finish(&workload, &mut tracker, &mut store);
}

#[test]
fn a_hundred_gibibytes_reserved_cost_nothing() {
    let workload = Workload::start("reserved");
    let mut store = Store::default();
    let mut tracker = attach(&workload.cgroup);
    let first = tracker.round(store.next_round()).unwrap();
    assert!(first.scanned_bytes > 100 << 30);
    assert!(store.bytes < 16 << 20, "{}", store.bytes);
    let start = Instant::now();
    tracker.round(store.next_round()).unwrap();
    println!("a round over 100 GiB reserved: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_millis(500));
    finish(&workload, &mut tracker, &mut store);
}

#[test]
fn ten_thousand_areas_are_followed() {
    let workload = Workload::start("areas");
    let mut store = Store::default();
    let mut tracker = attach(&workload.cgroup);
    let first = Instant::now();
    tracker.round(store.next_round()).unwrap();
    let (first, later) = (first.elapsed(), Instant::now());
    tracker.round(store.next_round()).unwrap();
    println!("20,000 areas: first round {first:?}, later {:?}", later.elapsed());
    assert!(later.elapsed() < Duration::from_secs(1));
    finish(&workload, &mut tracker, &mut store);
}

#[test]
fn calls_that_block_end_as_if_nothing_had_been() {
    let mut workload = Workload::start("blocked");
    let cgroup = workload.cgroup.clone();
    for _ in 0..2 {
        for wait in 0..4 {
            // In the middle of each call, several times.
            for _ in 0..5 {
                std::thread::sleep(Duration::from_millis(20));
                drop(attach(&cgroup));
            }
            if wait == 3 {
                workload.tell("x");
            }
            let heard = workload.hear();
            assert!(heard.starts_with("fine"), "{heard}");
        }
    }
}

#[test]
fn signals_are_neither_lost_nor_do_they_hurt() {
    let mut workload = Workload::start("alarms");
    let cgroup = workload.cgroup.clone();
    let mut taken = 0;
    std::thread::scope(|scope| {
        let heard = scope.spawn(|| workload.hear());
        while !heard.is_finished() {
            drop(attach(&cgroup));
            taken += 1;
        }
        assert_eq!(heard.join().unwrap(), "fine");
    });
    assert!(taken > 50, "{taken}");
}

#[test]
fn a_process_that_does_not_stop_in_time_is_let_go() {
    let mut workload = Workload::start("vforks");
    let mut tracker = attach(&workload.cgroup);
    assert_eq!(tracker.round(&mut Nothing).unwrap().untracked, 1);
    let goes_on = std::thread::scope(|scope| {
        let heard = scope.spawn(|| workload.hear());
        let end = Instant::now() + Duration::from_secs(5);
        while !heard.is_finished() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let goes_on = heard.is_finished();
        // The end of the injector lets go of everybody.
        drop(tracker);
        heard.join().unwrap();
        goes_on
    });
    assert!(goes_on, "it stands still as long as memory is followed");
}

#[test]
fn a_process_that_ends_in_the_middle_is_passed_over() {
    for delay in 0..20 {
        let workload = Workload::start("short");
        std::thread::sleep(Duration::from_millis(delay * 2));
        let mut store = Store::default();
        let mut tracker = attach(&workload.cgroup);
        let end = Instant::now() + Duration::from_millis(60);
        while Instant::now() < end {
            tracker.round(store.next_round()).unwrap();
            tracker.pending_bytes().unwrap();
        }
        assert_eq!(tracker.round(store.next_round()).unwrap().processes, 0);
    }
}

#[test]
fn what_a_disk_writes_into_memory_is_seen() {
    let workload = Workload::start("direct");
    let mut store = Store::default();
    let mut tracker = attach(&workload.cgroup);
    for _ in 0..100 {
        tracker.round(store.next_round()).unwrap();
    }
    finish_once(&workload, &mut tracker, &mut store);
}

/// Not a test: follows a workload anew again and again, until it is killed.
#[test]
#[ignore = "what another test kills"]
fn follower() {
    if let Ok(cgroup) = std::env::var("FOLLOWED") {
        loop {
            drop(attach(&cgroup));
        }
    }
}

/// Nearly all of a follower's time goes into the injected calls, so most of these kills come in the middle of one.
#[test]
fn a_follower_that_is_killed_at_any_moment_leaves_every_process_as_it_was() {
    let workload = Workload::start("calculators");
    let all = process_tree::pids(&workload.cgroup).unwrap();
    assert!(all.len() > 16, "{all:?}");
    for number in 0..60 {
        let mut follower = Command::new(std::env::current_exe().unwrap())
            .args(["follower", "--exact", "--ignored", "--nocapture"])
            .env("FOLLOWED", &workload.cgroup)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(40) + Duration::from_micros(137 * number));
        assert_eq!(follower.try_wait().unwrap(), None);
        follower.kill().unwrap();
        follower.wait().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        let left = process_tree::pids(&workload.cgroup).unwrap();
        assert_eq!(left, all, "after {number} that were killed");
    }
    for pid in &all {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
    }
    let report = attach(&workload.cgroup).round(&mut Nothing).unwrap();
    assert_eq!((report.processes, report.untracked), (all.len(), 0));
}

/// Throws everything away.
struct Nothing;

impl PageSink for Nothing {
    fn take(&mut self, _batch: PageBatch) -> Result<(), SinkClosed> {
        Ok(())
    }
}

/// What the workload says that it does in a second.
fn speed(workload: &mut Workload) -> u64 {
    // What it said meanwhile comes at once; after that it takes half a second for each.
    loop {
        let start = Instant::now();
        workload.hear();
        if start.elapsed() > Duration::from_millis(100) {
            break;
        }
    }
    let said: u64 = (0..4).map(|_| workload.hear().parse::<u64>().unwrap()).sum();
    said / 4
}

/// Time of this thread on a processor: others may use the machine.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// Not a test: what it costs on this machine. `cargo test --release --test tracker figures -- --ignored --nocapture`
#[test]
#[ignore = "prints figures"]
fn figures() {
    let mut workload = Workload::start("figures");
    println!("2 GiB, pages of random content");
    println!("writes a second, alone: {}", speed(&mut workload));
    let mut stalls = Vec::new();
    for _ in 0..100 {
        let tracker = attach(&workload.cgroup);
        stalls.push(tracker.longest_stall());
    }
    stalls.sort_unstable();
    println!(
        "injection: median {:?}, p95 {:?}, worst {:?}",
        stalls[50], stalls[95], stalls[99]
    );
    let mut tracker = attach(&workload.cgroup);
    for number in 0..6 {
        let start = busy();
        let report = tracker.round(&mut Nothing).unwrap();
        let took = busy() - start;
        let read = report.read.as_secs_f64() / (report.read + report.scan).as_secs_f64();
        let mib = report.pages / 256;
        println!("round {number}: {mib} MiB in {took:?} of a processor, {read:.2} of it for reading");
    }
    std::thread::scope(|scope| {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let tracker = &mut tracker;
        let rounds = scope.spawn(move || {
            let mut rounds = 0;
            while ended.recv_timeout(Duration::from_millis(200)).is_err() {
                tracker.round(&mut Nothing).unwrap();
                rounds += 1;
            }
            rounds
        });
        println!("writes a second, a round every 200 ms: {}", speed(&mut workload));
        end.send(()).unwrap();
        println!("{} rounds", rounds.join().unwrap());
    });
    workload.freeze();
    let measure = |name: &str, what: &mut dyn FnMut() -> u64| {
        let start = busy();
        let result = what();
        println!("{name}: {:?} of a processor, {result}", busy() - start);
    };
    for name in ["frozen, pages", "frozen again, pages"] {
        measure(name, &mut || tracker.frozen_round(&mut Nothing).unwrap().pages);
    }
    measure("pending bytes", &mut || tracker.pending_bytes().unwrap());
    measure("finish, pages", &mut || {
        tracker.finish(&mut Nothing).unwrap().1.pages
    });
    let mut tracker = Some(tracker);
    measure("letting go", &mut || {
        drop(tracker.take());
        0
    });
}
