//! A container with known memory, its dump, the store made of it, and a lazy restore of it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, poll};
use prost::Message;
use serde_json::{Value, json};
use tranship_checkpoint::criu::{Operation, Relay, RestoreError, dump};
use tranship_checkpoint::freeze::Freezer;
use tranship_checkpoint::memory::fill::{Figures, FillRequest, Filler, FillerHandle, Holder, Memory};
use tranship_checkpoint::memory::{MissingPage, PAGE_BYTES, PageRun, PageStore};
use tranship_checkpoint::process_tree;

use crate::support::{Side, criu, loopback_up, soon, wait_until};

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Namespaces {
    /// The container has a user namespace.
    User,
    /// It has the host's.
    Host,
}

/// Address and number of pages.
type Run = (u64, u64);

/// runc, which does not outlive the test.
struct Runc(Child);

/// A container that was dumped and killed, and whose pages are in a store.
pub struct Lazy {
    pub side: Side,
    missing: Option<(u32, u64)>,
}

/// A restore that is held before anything runs.
pub struct Held {
    pub relay: Relay,
    pub filler: FillerHandle,
    pub holder: Arc<Mutex<Holder>>,
    runc: Runc,
    pid: i32,
    store: PathBuf,
}

impl Lazy {
    /// Runs the workload's `task` with so much memory, dumps it and makes a store of its pages.
    pub async fn dumped(task: &str, megabytes: usize, namespaces: Namespaces) -> Self {
        let side = Side::new();
        install(&side, task, megabytes, namespaces);
        let mut runc = side.runc();
        runc.args(["run", "--detach", "--bundle"])
            .arg(side.directory.path())
            .arg(side.id.as_str());
        runc.stdin(Stdio::null())
            .stdout(side.output())
            .stderr(side.output());
        assert!(runc.status().unwrap().success(), "{}", output(&side));
        wait_until("the workload is ready", || side.path("vol/ready").exists());
        let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
        freezer.freeze(soon(5)).await.unwrap();
        dump(side.dump_request(), soon(60)).await.unwrap();
        process_tree::kill(&side.cgroup, soon(20)).await.unwrap();
        side.delete();
        let mut bed = Self { side, missing: None };
        bed.make_store();
        bed
    }

    fn store(&self) -> PathBuf {
        self.side.path("store")
    }

    pub fn mark(&self) -> PathBuf {
        self.side.path("filling")
    }

    /// Puts what CRIU has dumped into a store, a part of it in a later round.
    fn make_store(&mut self) {
        let _ = fs::remove_dir_all(self.store());
        let store = PageStore::create(&self.store(), 8 << 30).unwrap();
        for (process, pages, entries) in self.pagemaps() {
            let file = File::open(self.side.path("images").join(format!("pages-{pages}.img"))).unwrap();
            let mut offset = 0;
            for (start, count) in entries {
                for first in (0..count).step_by(256) {
                    let pages = 256.min(count - first);
                    let mut data = vec![0; usize::try_from(pages * PAGE_BYTES).unwrap()];
                    file.read_exact_at(&mut data, offset).unwrap();
                    offset += data.len() as u64;
                    let address = start + first * PAGE_BYTES;
                    if self.missing == Some((process, address)) {
                        continue;
                    }
                    let run = PageRun {
                        start: address,
                        pages: u32::try_from(pages).unwrap(),
                        zero: data.iter().all(|byte| *byte == 0),
                    };
                    let content = if run.zero { &[][..] } else { &data };
                    let round = u32::from((address / PAGE_BYTES).is_multiple_of(16));
                    store.put(round, process, &[run], content).unwrap();
                }
            }
        }
        store.seal().unwrap();
    }

    /// Makes the store anew, without the pages of one run.
    pub fn lose_a_page(&mut self) {
        let pagemaps = self.pagemaps();
        let (process, _, entries) = pagemaps.first().unwrap();
        let longest = entries.iter().max_by_key(|(_, pages)| *pages).unwrap();
        self.missing = Some((*process, longest.0));
        self.make_store();
    }

    /// Whether all that was dumped is in the store.
    pub fn verify(&self) -> Result<(), MissingPage> {
        let store = PageStore::reopen(&self.store()).unwrap();
        for (process, _, entries) in self.pagemaps() {
            store.verify(process, entries)?;
        }
        Ok(())
    }

    /// Process, number of its pages image, runs.
    fn pagemaps(&self) -> Vec<(u32, u32, Vec<Run>)> {
        let names = fs::read_dir(self.side.path("images")).unwrap();
        let mut found = Vec::new();
        for name in names {
            let name = name.unwrap().file_name().into_string().unwrap();
            let process = name
                .strip_prefix("pagemap-")
                .and_then(|name| name.strip_suffix(".img"));
            let Some(process) = process.and_then(|process| process.parse().ok()) else {
                continue;
            };
            let (pages, runs) = pagemap(&self.side.path("images").join(&name));
            found.push((process, pages, runs));
        }
        found
    }

    /// Starts filler, holder and restore, up to where tasks would run.
    pub async fn start(&self) -> Held {
        self.try_start().await.unwrap()
    }

    pub async fn try_start(&self) -> Result<Held, String> {
        let side = &self.side;
        let request = FillRequest {
            program: env!("CARGO_BIN_EXE_tranship-filler").into(),
            store_dir: self.store(),
            images_dir: side.path("images"),
            work_dir: side.path("work"),
            mark: self.mark(),
            cgroup: None,
            patience: Duration::from_secs(30),
        };
        let begun = Instant::now();
        let filler = Filler::start(&request, soon(10)).await.unwrap();
        println!("filler started in {:?}", begun.elapsed());
        let holder = hold(Holder::connect(&side.path("work")).unwrap());
        let mut relay = Relay::bind(&side.path("relay"), &criu(), Operation::Restore).unwrap();
        relay.set_lazy_pages();
        let runc = Runc(side.start_restore(relay.environment()));
        relay.wait_request(soon(60)).await.unwrap();
        relay.release_request().await.unwrap();
        loopback_up(relay.wait_namespaces(soon(60)).await.unwrap());
        relay.continue_namespaces().await.unwrap();
        let begun = Instant::now();
        let barrier = relay.wait_barrier(soon(60)).await.map_err(|error| {
            let explained = RestoreError::explain(&side.path("work"), None);
            format!("{error} {explained} {}", output(side))
        })?;
        println!("namespaces to post-restore: {:?}", begun.elapsed());
        Ok(Held {
            relay,
            filler,
            holder,
            runc,
            pid: barrier.pid,
            store: self.store(),
        })
    }

    /// Restores, and lets the workload begin.
    pub async fn restore(&self) -> Held {
        let _ = fs::remove_file(self.side.path("vol/result"));
        let mut held = self.start().await;
        self.release(&mut held).await;
        held
    }

    pub async fn release(&self, held: &mut Held) {
        fs::write(self.side.path("vol/go"), "").unwrap();
        held.relay.release().await.unwrap();
        let finished = held.relay.wait_finished(soon(60)).await.unwrap();
        assert!(finished.success, "{finished:?} {}", output(&self.side));
    }

    pub fn result_now(&self) -> Option<String> {
        fs::read_to_string(self.side.path("vol/result")).ok()
    }

    pub fn result(&self) -> String {
        wait_until("the workload says how it went", || self.result_now().is_some());
        self.result_now().unwrap()
    }
}

impl Held {
    pub async fn complete(&mut self) -> Figures {
        let figures = self.filler.wait_complete(soon(60)).await.unwrap();
        wait_until("the holder knows", || {
            *self.holder.lock().unwrap().memory() == Memory::Complete
        });
        figures
    }

    /// Waits until runc has cleaned up behind a restore that failed.
    pub fn give_up(mut self) {
        wait_until("runc gives up", || self.runc.0.try_wait().unwrap().is_some());
        assert!(!self.runc.0.wait().unwrap().success());
    }

    /// Looks every 20 ms at what memory is held, until the filler has ended.
    pub fn watch_memory(&self) -> JoinHandle<Vec<[u64; 5]>> {
        let (filler, container, store) = (self.filler.pid(), self.pid, self.store.join("pages"));
        std::thread::spawn(move || {
            let begun = Instant::now();
            let mut seen = Vec::new();
            while Path::new(&format!("/proc/{filler}/exe")).exists() {
                let ms = u64::try_from(begun.elapsed().as_millis()).unwrap();
                let blocks = fs::metadata(&store).map_or(0, |found| found.blocks());
                seen.push([
                    ms,
                    resident_mb(container),
                    resident_mb(filler),
                    (blocks * 512) >> 20,
                    cpu_ms(filler),
                ]);
                std::thread::sleep(Duration::from_millis(20));
            }
            seen
        })
    }
}

impl Drop for Runc {
    fn drop(&mut self) {
        // One whose restore has failed takes its mounts away before it ends.
        for _ in 0..500 {
            if matches!(self.0.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// CPU time that a process has taken.
fn cpu_ms(pid: i32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat
        .rsplit_once(')')
        .map_or("", |(_, rest)| rest)
        .split_ascii_whitespace();
    fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum::<u64>()
        * 10
}

fn resident_mb(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_ascii_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) >> 10
}

/// Serves a holder as a monitor does, until it has nothing more to say.
fn hold(holder: Holder) -> Arc<Mutex<Holder>> {
    let holder = Arc::new(Mutex::new(holder));
    let served = Arc::clone(&holder);
    std::thread::spawn(move || {
        while *served.lock().unwrap().memory() == Memory::Filling {
            let copy = {
                use std::os::fd::AsFd;
                served.lock().unwrap().as_fd().try_clone_to_owned().unwrap()
            };
            let mut watched = [PollFd::new(std::os::fd::AsFd::as_fd(&copy), PollFlags::POLLIN)];
            if poll(&mut watched, 100_u16).unwrap() > 0 {
                served.lock().unwrap().turn();
            }
        }
    });
    holder
}

/// Puts this program and what it is linked with into the container, and has it run.
fn install(side: &Side, task: &str, megabytes: usize, namespaces: Namespaces) {
    let program = std::env::current_exe().unwrap();
    let rootfs = side.path("rootfs");
    fs::copy(&program, rootfs.join("bin/workload")).unwrap();
    let linked = Command::new("ldd").arg(&program).output().unwrap();
    for word in String::from_utf8(linked.stdout).unwrap().split_ascii_whitespace() {
        if word.starts_with('/') {
            let inside = rootfs.join(word.trim_start_matches('/'));
            fs::create_dir_all(inside.parent().unwrap()).unwrap();
            fs::copy(word, inside).unwrap();
        }
    }
    let path = side.path("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["process"]["args"] = json!([
        "/bin/workload",
        "--exact",
        "workload::workload",
        "--nocapture",
        "--test-threads=1"
    ]);
    config["process"]["env"] = json!([
        "PATH=/bin",
        format!("TRANSHIP_WORKLOAD={task}"),
        format!("TRANSHIP_MEGABYTES={megabytes}")
    ]);
    config["linux"]["resources"]["memory"]["limit"] = json!(4_u64 << 30);
    if namespaces == Namespaces::Host {
        let linux = config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
        let kinds = linux["namespaces"].as_array_mut().unwrap();
        kinds.retain(|kind| kind["type"] != "user");
    }
    fs::write(&path, config.to_string()).unwrap();
}

fn output(side: &Side) -> String {
    fs::read_to_string(side.path("output")).unwrap_or_default()
}

#[derive(Clone, PartialEq, Message)]
struct Head {
    #[prost(uint32, tag = "1")]
    pages_id: u32,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(uint64, tag = "1")]
    start: u64,
    #[prost(uint32, tag = "4")]
    flags: u32,
    #[prost(uint64, tag = "5")]
    pages: u64,
}

/// The number of a process's pages image, and the runs whose content it holds in this order.
fn pagemap(path: &Path) -> (u32, Vec<Run>) {
    let bytes = fs::read(path).unwrap();
    let mut rest = &bytes[8..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        messages.push(&rest[4..4 + length]);
        rest = &rest[4 + length..];
    }
    let head = Head::decode(messages[0]).unwrap();
    let entries = messages[1..]
        .iter()
        .map(|message| Entry::decode(*message).unwrap());
    let runs = entries.map(|entry| {
        assert_ne!(entry.flags & 4, 0, "it is not a full dump");
        (entry.start, entry.pages)
    });
    (head.pages_id, runs.collect())
}
