//! A CRIU that is killed from outside at any moment of a dump, and its relay with it or alone: the container goes on, every
//! thread with its own registers, signals and text, and no process of the dump is left. Needs root, runc, CRIU and busybox.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use serde_json::{Value, json};
use support::{Side, criu, end_of, soon, wait_until};
use tranship_checkpoint::criu::{Dump, Operation, Relay, RequestSeen, journal_of};
use tranship_checkpoint::freeze::Freezer;
use tranship_checkpoint::process_tree;

/// The variable by which a program knows that it is the workload, and which process of it.
const PROCESS: &str = "TRANSHIP_TEST_WORKLOAD";
const PROCESSES: u32 = 3;
/// Threads of each process: two that compute, one that sleeps, one that talks to itself over TCP.
const THREADS: [&str; 4] = ["compute-a", "compute-b", "sleep", "talk"];

/// Kills over the length of a dump.
const KILLS: u32 = 60;

/// Longer than any dump takes.
const NEVER: Duration = Duration::from_secs(60);

/// Not a test: the program in the container, which is this very file.
#[test]
fn workload() {
    let Some(number) = std::env::var_os(PROCESS) else {
        return;
    };
    let others = if number == "0" { 1..PROCESSES } else { 0..0 };
    let others: Vec<Child> = others.map(start_process).collect();
    let process = number.into_string().unwrap();
    let threads = THREADS.map(|kind| {
        let name = format!("{process}-{kind}");
        std::thread::spawn(move || live(kind, &name))
    });
    for thread in threads {
        thread.join().unwrap();
    }
    for mut other in others {
        other.wait().unwrap();
    }
}

fn start_process(number: u32) -> Child {
    let mut program = Command::new(std::env::current_exe().unwrap());
    program.args(["--exact", "workload", "--nocapture"]);
    program.env(PROCESS, number.to_string()).spawn().unwrap()
}

/// A thread of the workload: says how often it has done its work, and when something of it is wrong.
fn live(kind: &str, name: &str) {
    let (mut server, mut client) = connected();
    let blocked = blocked_signals();
    let expected = digest();
    for beat in 1_u64.. {
        match kind {
            "sleep" => std::thread::sleep(Duration::from_millis(1)),
            "talk" => {
                client.write_all(&beat.to_ne_bytes()).unwrap();
                let mut heard = [0; 8];
                server.read_exact(&mut heard).unwrap();
                check(heard == beat.to_ne_bytes(), name, "its connection");
            }
            _ => check(digest() == expected, name, "what it computes"),
        }
        check(blocked_signals() == blocked, name, "its signal mask");
        fs::write(format!("/vol/beat-{name}"), beat.to_ne_bytes()).unwrap();
    }
}

fn check(right: bool, name: &str, what: &str) {
    if !right {
        fs::write(format!("/vol/wrong-{name}"), what).unwrap();
    }
}

fn connected() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, client)
}

fn blocked_signals() -> String {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("SigBlk")).unwrap();
    line.to_owned()
}

/// A number that depends on every step, in general and in floating point registers.
fn digest() -> u64 {
    let (mut whole, mut parts) = (black_box(0x9e37_79b9_u64), black_box([0.5_f64, 1.5, 2.5, 3.5]));
    for step in 0..60_000_u64 {
        whole = whole.rotate_left(7) ^ step.wrapping_mul(0x1000_0000_01b3);
        for part in &mut parts {
            *part = (*part * 1.000_001 + 0.25).fract() + 0.5;
        }
    }
    parts.iter().fold(whole, |sum, part| sum ^ part.to_bits())
}

/// A running container with this file as its program.
fn several_threads() -> Side {
    let side = Side::new();
    let program = std::env::current_exe().unwrap();
    fs::write(side.path("rootfs/program"), "").unwrap();
    let path = side.path("config.json");
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config["process"]["args"] = json!(["/program", "--exact", "workload", "--nocapture"]);
    config["process"]["env"] = json!([format!("{PROCESS}=0")]);
    let mounts = config["mounts"].as_array_mut().unwrap();
    let mut bind = |source: &str, target: &str| {
        mounts.push(
            json!({"destination": target, "type": "bind", "source": source, "options": ["rbind", "ro"]}),
        );
    };
    bind(program.to_str().unwrap(), "/program");
    for directory in ["/lib", "/lib64", "/usr/lib"] {
        fs::create_dir_all(side.path("rootfs").join(&directory[1..])).unwrap();
        bind(directory, directory);
    }
    fs::write(&path, config.to_string()).unwrap();
    side.start(side.output());
    wait_until("every thread works", || beats(&side).iter().all(|beat| *beat > 2));
    side
}

fn beats(side: &Side) -> Vec<u64> {
    let mut beats = Vec::new();
    for process in 0..PROCESSES {
        for kind in THREADS {
            let path = side.path(&format!("vol/beat-{process}-{kind}"));
            let bytes = fs::read(path).unwrap_or_default();
            // Empty for a moment whenever it is written.
            beats.push(bytes.try_into().map_or(0, u64::from_ne_bytes));
        }
    }
    beats
}

fn assert_every_thread_goes_on(side: &Side, told: &str) {
    let before = beats(side);
    let mut ahead = vec![false; before.len()];
    let end = Instant::now() + Duration::from_secs(10);
    while ahead.contains(&false) {
        for (ahead, (before, now)) in ahead.iter_mut().zip(before.iter().zip(beats(side))) {
            *ahead |= now > before + 2;
        }
        assert!(
            Instant::now() < end,
            "{told}: threads stand still: {ahead:?}\n{}",
            condition(side)
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    for entry in fs::read_dir(side.path("vol")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            !name.starts_with("wrong"),
            "{told}: {name}: {}",
            fs::read_to_string(side.path("vol").join(&name)).unwrap()
        );
    }
}

/// What the threads do, and what they have complained of.
fn condition(side: &Side) -> String {
    let mut told = String::new();
    for pid in process_tree::pids(&side.cgroup).unwrap() {
        for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
            for name in ["stat", "syscall"] {
                told += &fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            }
        }
    }
    told + &fs::read_to_string(side.path("output")).unwrap_or_default()
}

/// How a dump ended.
#[derive(Debug, PartialEq)]
enum End {
    Killed,
    Complete,
}

/// Who is killed.
#[derive(Clone, Copy, Debug)]
enum Who {
    Criu,
    Relay,
    CriuThenRelay,
    RelayThenCriu,
}

impl Who {
    fn pids(self, seen: &RequestSeen) -> Vec<i32> {
        match self {
            Self::Criu => vec![seen.criu_pid],
            Self::Relay => vec![seen.relay_pid],
            Self::CriuThenRelay => vec![seen.criu_pid, seen.relay_pid],
            Self::RelayThenCriu => vec![seen.relay_pid, seen.criu_pid],
        }
    }
}

/// Dumps the container and kills after `delay`; recovers, and returns what happened to the dump, how long it took, and
/// how many threads had to be put right.
async fn kill_in_a_dump(side: &Side, freezer: &Freezer, who: Who, delay: Duration) -> (End, Duration, usize) {
    for directory in ["images", "work"] {
        fs::remove_dir_all(side.path(directory)).unwrap();
        fs::create_dir(side.path(directory)).unwrap();
    }
    let mut relay = Relay::bind(&side.path("relay"), &criu(), Operation::Dump).unwrap();
    relay.freeze_at_end(&side.cgroup);
    let runc = side.start_dump(relay.environment());
    let seen = relay.wait_request(soon(60)).await.unwrap();
    freezer.freeze(soon(5)).await.unwrap();
    let begin = Instant::now();
    relay.release_request().await.unwrap();
    let (done, dump_is_over) = mpsc::channel::<()>();
    let killer = std::thread::spawn(move || {
        if dump_is_over.recv_timeout(delay) == Ok(()) {
            return;
        }
        for pid in who.pids(&seen) {
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    });
    let ended = relay.wait_barrier(soon(60)).await;
    let took = begin.elapsed();
    // One that has killed already does not listen any more.
    let _ = done.send(());
    killer.join().unwrap();
    let end = if ended.is_ok() { End::Complete } else { End::Killed };
    // One that was killed has nothing to answer.
    let _ = relay.abort().await;
    end_of(runc);
    drop(relay);
    freezer.freeze(soon(5)).await.unwrap();
    let journal = journal_of(&side.path("relay"));
    let recovered = process_tree::recover(&side.cgroup, &journal);
    let recovered = recovered.unwrap_or_else(|error| panic!("after {delay:?}: {error}"));
    forget_the_dump(side);
    freezer.thaw().unwrap();
    assert_no_process_is_left(side, who, &format!("{who:?} killed after {delay:?}"));
    (end, took, recovered.threads)
}

/// Processes of the dump, of any state: those that know the directory of this test, and whatever this process has inherited.
fn assert_no_process_is_left(side: &Side, who: Who, told: &str) {
    let container = process_tree::pids(&side.cgroup).unwrap();
    let ours = |pid: &i32| !container.contains(pid) && *pid != std::process::id().cast_signed();
    let directory = side.directory.path().to_str().unwrap();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let left: Vec<String> = processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| ours(pid) && knows(*pid, directory))
        .map(state)
        .collect();
    assert!(left.is_empty(), "{told}: {left:?} are left");
    if !matches!(who, Who::Criu) {
        // What a killed relay leaves has ended. Elsewhere process 1 waits for it; here this process does.
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {
        }
    }
    let inherited: Vec<String> = children().into_iter().filter(ours).map(state).collect();
    assert!(inherited.is_empty(), "{told}: {inherited:?} are left");
}

/// Whether a process has a file open or mapped, or a variable, with `directory` in its name.
fn knows(pid: i32, directory: &str) -> bool {
    let named = |name: &str| {
        let text = fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        String::from_utf8_lossy(&text).contains(directory)
    };
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    named("environ")
        || named("maps")
        || open
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|file| file.to_string_lossy().contains(directory))
}

fn children() -> Vec<i32> {
    let threads = fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = threads.map(|thread| fs::read_to_string(thread.path().join("children")).unwrap_or_default());
    let all: String = lists.collect();
    all.split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect()
}

fn state(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()
}

/// While it lives this process inherits whatever a killed program has left.
struct Heir;

impl Heir {
    fn new() -> Self {
        set_child_subreaper(true).unwrap();
        Self
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        set_child_subreaper(false).unwrap();
    }
}

/// runc's note that there is a dump.
fn forget_the_dump(side: &Side) {
    let _ = fs::remove_file(side.path("runc").join(side.id.as_str()).join("checkpoint"));
}

#[tokio::test]
async fn a_criu_that_is_killed_at_any_moment_leaves_every_thread_as_it_was() {
    kill_at_any_moment(&[Who::Criu]).await;
}

#[tokio::test]
async fn a_relay_that_is_killed_at_any_moment_alone_or_with_its_criu_leaves_every_thread_as_it_was() {
    kill_at_any_moment(&[Who::CriuThenRelay, Who::RelayThenCriu, Who::Relay]).await;
}

/// Kills one of `victims` after the other, at moments over the length of a dump.
async fn kill_at_any_moment(victims: &[Who]) {
    let side = several_threads();
    // Begins now: the container is not to be inherited.
    let _heir = Heir::new();
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    let (end, mut length, _) = kill_in_a_dump(&side, &freezer, Who::Criu, NEVER).await;
    assert_eq!(end, End::Complete);
    let mut threads = [0; 4];
    let mut journal = fs::File::open(journal_of(&side.path("relay"))).unwrap();
    journal.read_exact(&mut threads).unwrap();
    let threads = u32::from_ne_bytes(threads);
    assert!(
        threads as usize >= beats(&side).len(),
        "the library is not at work in this CRIU"
    );
    assert_every_thread_goes_on(&side, "after a dump that was complete");
    let (mut killed, mut astray) = (0, 0);
    for (number, who) in (0..KILLS).zip(victims.iter().cycle()) {
        let delay = length * number / KILLS;
        let (end, took, threads) = kill_in_a_dump(&side, &freezer, *who, delay).await;
        if end == End::Complete {
            length = length.min(took);
        } else {
            killed += 1;
        }
        astray += threads;
        assert_every_thread_goes_on(&side, &format!("{who:?} killed after {delay:?} of {length:?}"));
    }
    println!(
        "{killed} of {KILLS} dumps of {length:?} were killed by {victims:?}; {astray} threads were put right"
    );
    assert!(
        killed > KILLS / 2,
        "only {killed} dumps were killed before their end"
    );
    // What it has been through does not keep it from being dumped.
    let (end, ..) = kill_in_a_dump(&side, &freezer, Who::Criu, NEVER).await;
    assert_eq!(end, End::Complete);
}

#[tokio::test]
async fn a_dump_that_is_given_up_before_it_began_leaves_the_container_running() {
    let side = several_threads();
    let prepared = Dump::prepare(side.dump_request(), soon(60)).await.unwrap();
    drop(prepared);
    assert_every_thread_goes_on(&side, "given up before the freeze");
    std::thread::sleep(Duration::from_millis(500));
    assert_every_thread_goes_on(&side, "a little later");
}
