//! A cgroup with a workload in it, and a place for what the tracker hands on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tranship_checkpoint::freeze::Freezer;
use tranship_checkpoint::memory::{PageBatch, PageSink, ResidentPages, SinkClosed};

const PAGE: usize = 4096;
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A workload in a cgroup of its own.
pub struct Workload {
    pub cgroup: String,
    pub child: Child,
    output: BufReader<ChildStdout>,
    freezer: Freezer,
}

impl Workload {
    /// Starts it, and waits until it says that it is ready.
    pub fn start(name: &str) -> Self {
        Self::start_with(name, "")
    }

    /// Starts it as root of a user namespace that is nobody outside, and as first process of a pid namespace.
    pub fn start_in_namespaces(name: &str) -> Self {
        Self::start_with(name, "unshare --user --map-root-user --pid --fork --kill-child")
    }

    fn start_with(name: &str, wrapper: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("/tracker-{}-{number}", std::process::id());
        let directory = hierarchy().join(&cgroup[1..]);
        fs::create_dir(&directory).unwrap();
        let freezer = Freezer::of_cgroup(&cgroup).unwrap();
        // The shell goes into the cgroup first, and so all that comes of it is there.
        let script = format!("echo $$ > \"$0\"; exec {wrapper} \"$@\"");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .arg(directory.join("cgroup.procs"))
            .arg(std::env::current_exe().unwrap())
            .args([
                "workload",
                "--exact",
                "--ignored",
                "--nocapture",
                "--test-threads=1",
            ])
            .env("WORKLOAD", name)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut workload = Self {
            cgroup,
            child,
            output,
            freezer,
        };
        assert_eq!(workload.hear(), "ready");
        workload
    }

    /// The next thing that the workload says.
    pub fn hear(&mut self) -> String {
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).unwrap();
            assert!(length > 0, "the workload has ended: {:?}", self.child.try_wait());
            // Between what the test framework of the child says.
            if let Some((_, said)) = line.split_once("> ") {
                return said.trim().to_owned();
            }
        }
    }

    pub fn tell(&mut self, text: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    pub fn freeze(&self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        runtime().block_on(self.freezer.freeze(deadline)).unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Where the freezer's cgroups are.
fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| {
        let mut words = line.split(' ').skip(2);
        let (kind, options) = (words.next().unwrap(), words.next().unwrap());
        kind == "cgroup" && options.split(',').any(|option| option == "freezer")
    });
    line.map_or_else(
        || "/sys/fs/cgroup".into(),
        |line| line.split(' ').nth(1).unwrap().into(),
    )
}

impl Drop for Workload {
    fn drop(&mut self) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let cgroup = self.cgroup.clone();
        let kill = tranship_checkpoint::process_tree::kill(&cgroup, deadline);
        // The child has to be waited for before its cgroup is empty.
        let killed = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| self.child.wait());
            let killed = runtime().block_on(kill);
            // The tracker may have heard of its end in the place of its parent: both are this process here.
            let waited = waiter.join().unwrap();
            assert!(waited.is_ok() || waited.unwrap_err().raw_os_error() == Some(libc::ECHILD));
            killed
        });
        let removed = runtime().block_on(tranship_checkpoint::cgroup::remove(&cgroup, deadline));
        if !std::thread::panicking() {
            killed.unwrap();
            removed.unwrap();
        }
    }
}

/// What the destination would have.
#[derive(Default)]
pub struct Store {
    pub pages: BTreeMap<(u32, u64), Option<Box<[u8]>>>,
    pub batches: usize,
    pub bytes: usize,
    round: BTreeSet<(u32, u64)>,
}

impl PageSink for Store {
    fn take(&mut self, batch: PageBatch) -> Result<(), SinkClosed> {
        assert!(batch.data.len() <= 1 << 20 && !batch.runs.is_empty() && batch.runs.len() <= 4096);
        assert!(batch.runs.windows(2).all(|pair| pair[0].end() <= pair[1].start));
        self.batches += 1;
        self.bytes += batch.data.len();
        let mut content = batch.data.chunks_exact(PAGE);
        for run in &batch.runs {
            for address in (run.start..run.end()).step_by(PAGE) {
                let page = (!run.zero).then(|| content.next().unwrap().into());
                self.pages.insert((batch.process, address), page);
                assert!(
                    self.round.insert((batch.process, address)),
                    "{address:#x} twice in a round"
                );
            }
        }
        assert!(content.next().is_none() && content.remainder().is_empty());
        Ok(())
    }
}

impl Store {
    /// Begins a round, in which no page may come twice.
    pub fn next_round(&mut self) -> &mut Self {
        self.round.clear();
        self
    }

    /// Checks, while everything stands still, that every page of the list is here as it is in the process, and that every
    /// page that holds something is in the list, by what the kernel's old interface says.
    pub fn check(&self, workload: &Workload, lists: &[ResidentPages]) {
        let mut checked = 0;
        let pids = tranship_checkpoint::process_tree::pids(&workload.cgroup).unwrap();
        for pid in pids {
            let id = innermost(pid);
            let list = lists.iter().find(|list| list.process == id).unwrap();
            assert!(list.runs.windows(2).all(|pair| pair[0].end() <= pair[1].start));
            let listed: BTreeSet<u64> = list
                .runs
                .iter()
                .flat_map(|run| (run.start..run.end()).step_by(PAGE))
                .collect();
            let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
            let mut page = [0; PAGE];
            for address in &listed {
                memory.read_exact_at(&mut page, *address).unwrap();
                let stored = self.pages.get(&(id, *address));
                let stored = stored.unwrap_or_else(|| panic!("{pid}: {address:#x} was never sent"));
                let same = match stored {
                    Some(stored) => stored[..] == page,
                    None => page == [0; PAGE],
                };
                assert!(same, "{pid}: {address:#x} is not what was sent");
                checked += 1;
            }
            for address in private_pages(pid) {
                memory.read_exact_at(&mut page, address).unwrap();
                assert!(
                    listed.contains(&address) || page == [0; PAGE],
                    "{pid}: {address:#x} is not in the list"
                );
            }
        }
        assert!(checked > 20, "{checked}");
    }
}

fn innermost(pid: i32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("NSpid:")).unwrap();
    line.split_whitespace().next_back().unwrap().parse().unwrap()
}

/// Pages in memory that belong to the process alone, by `/proc/PID/pagemap`.
fn private_pages(pid: i32) -> Vec<u64> {
    const PRESENT: u64 = 1 << 63;
    const FILE: u64 = 1 << 61;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let pagemap = File::open(format!("/proc/{pid}/pagemap")).unwrap();
    let mut found = Vec::new();
    for line in maps
        .lines()
        .filter(|line| line.split(' ').nth(1).unwrap().ends_with('p'))
    {
        if line.contains("[v") {
            continue;
        }
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = (number(start), number(end));
        // A reservation of 100 GiB has 200 MiB of entries: a few at a time.
        let mut entries = vec![0; 1 << 20];
        let mut at = start;
        while at < end {
            let pages = ((end - at) / PAGE as u64).min(1 << 17);
            let bytes = usize::try_from(pages * 8).unwrap();
            pagemap
                .read_exact_at(&mut entries[..bytes], at / PAGE as u64 * 8)
                .unwrap();
            for (number, entry) in entries[..bytes].chunks_exact(8).enumerate() {
                let entry = u64::from_le_bytes(entry.try_into().unwrap());
                if entry & PRESENT != 0 && entry & FILE == 0 {
                    found.push(at + (number * PAGE) as u64);
                }
            }
            at += pages * PAGE as u64;
        }
    }
    found
}
