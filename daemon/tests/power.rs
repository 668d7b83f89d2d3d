//! Power cuts: what the registry has acknowledged is there after one, whenever it comes, and so is what a program has synced.
//!
//! The disk is a file on an XFS that shares blocks between copies, used without the page cache. A copy made at some instant is
//! what the disk would hold if the power were cut then: what was synced, and what had reached it besides. It has neither torn
//! sectors nor writes out of order within the device.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tempfile::TempDir;
use tranship_daemon::registry::{JournalStep, Registry};
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::MigrationRole;

const MIGRATION: &str = "01J00000000000000000000000";
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
    let id: MigrationId = MIGRATION.parse().unwrap();
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

/// Room below the disk that fails; its file system's own parts are there from the beginning.
const SCARCE_BYTES: &str = "160m";
/// How much of it is taken away.
const BEHIND_BYTES: u64 = 256 << 10;
/// Names the registry that [`writer`] writes.
const REGISTRY: &str = "REGISTRY";

/// The disk is a file with holes where the registry's log goes on, and there is no room left to fill them: every write there fails, the
/// kernel keeps the page as if it had not, and says so once.
#[test]
fn what_is_read_after_a_sync_has_failed_is_there_after_a_power_cut() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let ground = Tmpfs::new(&dir, "scarce", SCARCE_BYTES);
    let disk = ground.path.join("disk.img");
    File::create(&disk).unwrap().set_len(DISK_BYTES).unwrap();
    run(&["mkfs.ext4", "-q", path(&disk)]);
    // No holes yet.
    fs::write(&disk, fs::read(&disk).unwrap()).unwrap();
    let mounted = Mounted::at(&dir, "disk", &disk, &[]);
    let registry = mounted.path.join("registry.db");
    let mut daemon = Command::new(std::env::current_exe().unwrap())
        .args(["writer", "--exact", "--ignored", "--nocapture"])
        .env(REGISTRY, &registry)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(daemon.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut hear = || {
        said.find_map(|line| line.strip_prefix("> ").map(str::to_owned))
            .unwrap()
    };
    assert_eq!(hear(), "3 steps");
    punch(&disk, &mounted.path.join("registry.db-wal"));
    let ballast = ground.path.join("ballast");
    let mut filled = File::create(&ballast).unwrap();
    while filled.write_all(&[1; 4096]).is_ok() {}
    drop(filled);
    daemon.stdin.take().unwrap().write_all(b"\n").unwrap();
    let acknowledged: usize = hear().parse().unwrap();
    daemon.wait().unwrap();
    fs::remove_file(&ballast).unwrap();
    let id = MIGRATION.parse().unwrap();
    let read = journal(&registry, id).len();
    println!("{acknowledged} steps were acknowledged, {read} are read");
    assert!(
        read > acknowledged,
        "the kernel keeps nothing that is not on the disk"
    );
    let copy = ground.path.join("copy.img");
    run(&["cp", "--sparse=always", path(&disk), path(&copy)]);
    let after = Mounted::at(&dir, "copy", &copy, &[]);
    let there = journal(&after.path.join("registry.db"), id).len();
    assert_eq!(there, read);
}

/// Takes away what lies on the disk behind the end of a file, which is given room there.
fn punch(disk: &Path, file: &Path) {
    const BLOCK: u64 = 4096;
    let from = fs::metadata(file).unwrap().len().next_multiple_of(BLOCK);
    let (offset, length) = (from.to_string(), BEHIND_BYTES.to_string());
    run(&[
        "fallocate",
        "--keep-size",
        "--offset",
        &offset,
        "--length",
        &length,
        path(file),
    ]);
    run(&["sync", "--file-system", path(file)]);
    let mut taken = 0;
    // EXTENT: FIRST..LAST: PHYSICAL..PHYSICAL: LENGTH: FLAGS
    for line in run(&["filefrag", "-v", "-b4096", path(file)]).lines() {
        let numbers: Vec<u64> = line
            .split(|byte: char| !byte.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        let [_, first, last, physical, ..] = numbers[..] else {
            continue;
        };
        if !line.contains("..") || last < from / BLOCK {
            continue;
        }
        let skipped = (from / BLOCK).saturating_sub(first);
        let blocks = last - first + 1 - skipped;
        let (offset, length) = (
            ((physical + skipped) * BLOCK).to_string(),
            (blocks * BLOCK).to_string(),
        );
        run(&[
            "fallocate",
            "--punch-hole",
            "--offset",
            &offset,
            "--length",
            &length,
            path(disk),
        ]);
        taken += blocks * BLOCK;
    }
    assert_eq!(taken, BEHIND_BYTES);
}

/// Not a test: a daemon that appends steps until that fails, and ends then as one that is killed.
#[test]
#[ignore = "what another test starts"]
fn writer() {
    let Some(path) = std::env::var_os(REGISTRY) else {
        return;
    };
    let mut append = steps_into(Path::new(&path), MIGRATION.parse().unwrap());
    for number in 1..=3 {
        assert!(append(number));
    }
    println!("\n> 3 steps");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let acknowledged = (4..).find(|number| !append(*number)).unwrap() - 1;
    println!("> {acknowledged}");
    std::process::exit(1);
}

/// Appends steps of a journal, each of which has its number as its epoch.
fn steps_into(path: &Path, id: MigrationId) -> impl FnMut(u64) -> bool + Send + 'static {
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
        runtime.block_on(appending).is_ok()
    }
}

/// Appends numbered lines to a file, as a program in a container does in a volume.
fn lines_into(path: &Path) -> impl FnMut(u64) -> bool + Send + 'static {
    let mut file = File::create(path).unwrap();
    move |number| writeln!(file, "{number}").and_then(|()| file.sync_all()).is_ok()
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
    fn start(end: &Arc<AtomicBool>, mut write: impl FnMut(u64) -> bool + Send + 'static) -> Self {
        let durable = Arc::new(AtomicU64::new(0));
        let (counted, end) = (Arc::clone(&durable), Arc::clone(end));
        let thread = thread::spawn(move || {
            for number in 1.. {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                assert!(write(number), "{number} cannot be written");
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

/// Memory of a certain size as a file system, mounted until this is dropped.
struct Tmpfs {
    path: PathBuf,
}

impl Tmpfs {
    fn new(dir: &TempDir, name: &str, size: &str) -> Self {
        let at = dir.path().join(name);
        fs::create_dir(&at).unwrap();
        run(&[
            "mount",
            "-t",
            "tmpfs",
            "-o",
            &format!("size={size}"),
            name,
            path(&at),
        ]);
        Self { path: at }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        Command::new("umount")
            .arg("--lazy")
            .arg(&self.path)
            .status()
            .unwrap();
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
