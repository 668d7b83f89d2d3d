//! Power cuts: what the registry has acknowledged is there after one, whenever it comes, and so is what a program has synced.
//!
//! The disk is a file on an XFS that shares blocks between copies, used without the page cache. A copy made at some instant is
//! what the disk would hold if the power were cut then: what was synced, and what had reached it besides. It has neither torn
//! sectors nor writes out of order within the device.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;
use tranship_daemon::registry::{JournalStep, Registry};
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::MigrationRole;

const CUTS: u64 = 200;
/// Between two cuts: from none to so many milliseconds, one after the other.
const LATEST_MS: u64 = 17;
/// Smallest of what mkfs.xfs makes, and room for the copies' own blocks.
const GROUND_BYTES: u64 = 1 << 30;
const DISK_BYTES: u64 = 64 << 20;

#[test]
fn what_was_acknowledged_is_there_after_a_power_cut_at_any_moment() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let ground = Mounted::new(
        &dir,
        "ground",
        GROUND_BYTES,
        &["mkfs.xfs", "-q", "-m", "reflink=1"],
        &[],
    );
    let disk = ground.path.join("disk.img");
    let mounted = Mounted::of(
        &dir,
        "disk",
        &disk,
        DISK_BYTES,
        &["mkfs.ext4", "-q"],
        &["--direct-io=on"],
    );
    let id: MigrationId = "01J00000000000000000000000".parse().unwrap();
    let end = Arc::new(AtomicBool::new(false));
    let steps = Writer::start(&end, steps_into(&mounted.path.join("registry.db"), id));
    let lines = Writer::start(&end, lines_into(&mounted.path.join("lines")));
    let (mut newest, copy) = (0, ground.path.join("copy.img"));
    for cut in 0..CUTS {
        thread::sleep(Duration::from_millis(cut % (LATEST_MS + 1)));
        let acknowledged = (steps.count(), lines.count());
        run(&["cp", "--reflink=always", path(&disk), path(&copy)]);
        let after = Mounted::at(&dir, "copy", &copy, &[]);
        let found = journal(&after.path.join("registry.db"), id);
        let sequences: Vec<u64> = found.iter().map(|step| step.epoch).collect();
        assert_eq!(
            sequences,
            (1..=found.len() as u64).collect::<Vec<_>>(),
            "cut {cut}"
        );
        assert!(
            found.len() as u64 >= acknowledged.0,
            "cut {cut}: {} steps were acknowledged, {} are there",
            acknowledged.0,
            found.len()
        );
        let there = whole_lines(&after.path.join("lines"));
        assert!(
            there >= acknowledged.1,
            "cut {cut}: {} lines were synced, {there} are there",
            acknowledged.1
        );
        newest = found.len() as u64;
        drop(after);
        fs::remove_file(&copy).unwrap();
    }
    end.store(true, Ordering::Relaxed);
    let written = (steps.join(), lines.join());
    println!(
        "{CUTS} cuts; {newest} of {} steps in the last, {} lines written",
        written.0, written.1
    );
    assert!(newest > CUTS, "hardly anything was written meanwhile");
}

/// Appends steps of a journal, each of which has its number as its epoch.
fn steps_into(path: &Path, id: MigrationId) -> impl FnMut(u64) + Send + 'static {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let registry = Registry::open(path).unwrap();
    move |number| {
        let data = serde_json::Value::Null;
        let appending = async {
            registry
                .migrations()
                .append_step(id, MigrationRole::Source, "intent", number, data)
                .await
        };
        runtime.block_on(appending).unwrap();
    }
}

/// Appends numbered lines to a file, as a program in a container does in a volume.
fn lines_into(path: &Path) -> impl FnMut(u64) + Send + 'static {
    let mut file = File::create(path).unwrap();
    move |number| {
        writeln!(file, "{number}").unwrap();
        file.sync_all().unwrap();
    }
}

/// What a daemon would find that starts after the cut.
fn journal(path: &Path, id: MigrationId) -> Vec<JournalStep> {
    if !path.exists() {
        return Vec::new();
    }
    let registry = Registry::open(path).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(async { registry.migrations().steps(id, MigrationRole::Source).await })
        .unwrap()
}

/// Lines from the first on that hold their number.
fn whole_lines(path: &Path) -> u64 {
    let Ok(file) = File::open(path) else { return 0 };
    let lines = BufReader::new(file).lines().map_while(Result::ok);
    let whole = lines
        .zip(1_u64..)
        .take_while(|(line, number)| *line == number.to_string());
    whole.count() as u64
}

/// Writes one thing after the other, and counts what is on the disk for good.
struct Writer {
    durable: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Writer {
    fn start(end: &Arc<AtomicBool>, mut write: impl FnMut(u64) + Send + 'static) -> Self {
        let durable = Arc::new(AtomicU64::new(0));
        let (counted, end) = (Arc::clone(&durable), Arc::clone(end));
        let thread = thread::spawn(move || {
            for number in 1.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                write(number);
                counted.store(number, Ordering::Release);
            }
        });
        Self { durable, thread }
    }

    fn count(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    fn join(self) -> u64 {
        self.thread.join().unwrap();
        self.durable.load(Ordering::Acquire)
    }
}

/// A file system in a file, mounted until this is dropped.
struct Mounted {
    path: PathBuf,
    device: String,
}

impl Mounted {
    fn new(dir: &TempDir, name: &str, bytes: u64, make: &[&str], setup: &[&str]) -> Self {
        Self::of(
            dir,
            name,
            &dir.path().join(format!("{name}.img")),
            bytes,
            make,
            setup,
        )
    }

    fn of(dir: &TempDir, name: &str, image: &Path, bytes: u64, make: &[&str], setup: &[&str]) -> Self {
        File::create(image).unwrap().set_len(bytes).unwrap();
        run(&[make, &[path(image)]].concat());
        Self::at(dir, name, image, setup)
    }

    fn at(dir: &TempDir, name: &str, image: &Path, setup: &[&str]) -> Self {
        let at = dir.path().join(name);
        fs::create_dir_all(&at).unwrap();
        let device = run(&[&["losetup", "--find", "--show"], setup, &[path(image)]].concat());
        let mounted = Self { path: at, device };
        run(&["mount", &mounted.device, path(&mounted.path)]);
        mounted
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Also after a failed test: what is still open there must not keep the device.
        for words in [
            &["umount", "--lazy", path(&self.path)][..],
            &["losetup", "--detach", &self.device],
        ] {
            Command::new(words[0]).args(&words[1..]).status().unwrap();
        }
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(words: &[&str]) -> String {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
