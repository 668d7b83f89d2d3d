//! A CRIU that is killed from outside at any moment of a dump: the container goes on, every thread with its own registers,
//! signals and text. Needs root, runc, CRIU and busybox.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs;
use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Side, criu, end_of, soon, wait_until};
use tranship_checkpoint::criu::{Dump, Operation, Relay, journal_of};
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
        assert!(Instant::now() < end, "{told}: threads stand still: {ahead:?}");
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

/// How a dump ended.
#[derive(Debug, PartialEq)]
enum End {
    Killed,
    Complete,
}

/// Dumps the container and kills CRIU after `delay`; recovers, and returns what happened to the dump, how long it took, and
/// how many threads had to be put right.
async fn kill_criu(side: &Side, freezer: &Freezer, delay: Duration) -> (End, Duration, usize) {
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
        let criu = rustix::process::Pid::from_raw(seen.criu_pid).unwrap();
        let _ = rustix::process::kill_process(criu, rustix::process::Signal::KILL);
    });
    let ended = relay.wait_barrier(soon(60)).await;
    let took = begin.elapsed();
    // One that has killed already does not listen any more.
    let _ = done.send(());
    killer.join().unwrap();
    let end = if ended.is_ok() { End::Complete } else { End::Killed };
    drop(relay);
    end_of(runc);
    freezer.freeze(soon(5)).await.unwrap();
    let journal = journal_of(&side.path("relay"));
    let recovered = process_tree::recover(&side.cgroup, &journal);
    let recovered = recovered.unwrap_or_else(|error| panic!("after {delay:?}: {error}"));
    forget_the_dump(side);
    freezer.thaw().unwrap();
    (end, took, recovered.threads)
}

/// runc's note that there is a dump.
fn forget_the_dump(side: &Side) {
    let _ = fs::remove_file(side.path("runc").join(side.id.as_str()).join("checkpoint"));
}

#[tokio::test]
async fn a_criu_that_is_killed_at_any_moment_leaves_every_thread_as_it_was() {
    let side = several_threads();
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    let (end, length, _) = kill_criu(&side, &freezer, NEVER).await;
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
    for number in 0..KILLS {
        let delay = length * number / KILLS;
        let (end, _, threads) = kill_criu(&side, &freezer, delay).await;
        killed += u32::from(end == End::Killed);
        astray += threads;
        assert_every_thread_goes_on(&side, &format!("killed after {delay:?} of {length:?}"));
    }
    println!("{killed} of {KILLS} dumps of {length:?} were killed; {astray} threads were put right");
    assert!(
        killed > KILLS / 2,
        "only {killed} dumps were killed before their end"
    );
    // What it has been through does not keep it from being dumped.
    let (end, ..) = kill_criu(&side, &freezer, NEVER).await;
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
