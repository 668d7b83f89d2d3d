//! Pages that Tranship finds and pages that CRIU would have dumped: the same ones, with the same bytes. And what comes of
//! them when CRIU restores. Needs root, runc and CRIU.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
mod workload;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost::Message;
use serde_json::{Value, json};
use support::{Side, criu, end_of, loopback_up, soon, wait_until};
use tranship_checkpoint::criu::{Dump, Memory, Operation, Relay, RestoreError};
use tranship_checkpoint::freeze::Freezer;
use tranship_checkpoint::memory::images::{all_present, read_pagemap, write_pagemaps, write_present};
use tranship_checkpoint::memory::{
    Injector, PAGE_BYTES, PageBatch, PageSink, ResidentPages, SinkClosed, Tracker,
};

/// The pages of all processes.
type Pages = BTreeMap<(u32, u64), Vec<u8>>;

#[test]
#[ignore = "this is what runs in the containers of the other tests"]
fn workload() {
    if let Ok(words) = std::env::var("WORKLOAD") {
        workload::run(&words);
    }
}

/// A bundle that runs the workload: this binary, with the host's libraries.
fn bundle(words: &str) -> impl FnOnce(&mut Value) {
    move |config| {
        let program = std::env::current_exe().unwrap();
        let process = &mut config["process"];
        process["args"] = json!(["/program", "--exact", "workload", "--ignored", "--test-threads=1"]);
        process["env"] = json!(["PATH=/bin", format!("WORKLOAD={words}"), "RUST_BACKTRACE=0"]);
        process["rlimits"] = json!([{"type": "RLIMIT_MEMLOCK", "soft": 1 << 20, "hard": 1 << 20}]);
        let mounts = config["mounts"].as_array_mut().unwrap();
        let bind = |from: &Path, to: &str| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "ro", "rprivate"]});
        mounts.push(bind(&program, "/program"));
        mounts.push(bind(Path::new("/usr"), "/usr"));
        let rootfs = PathBuf::from(config["root"]["path"].as_str().unwrap());
        for directory in ["lib", "lib64"] {
            // Debian's and most others' are links into /usr.
            let target = fs::read_link(Path::new("/").join(directory)).unwrap();
            std::os::unix::fs::symlink(target, rootfs.join(directory)).unwrap();
        }
        let linux = &mut config["linux"];
        linux["resources"]["memory"]["limit"] = json!(6_u64 << 30);
        // A filter of its own, as every container of Tranship's has: CRIU must be able to lift it.
        linux["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"],
            "syscalls": [{"names": ["vmsplice"], "action": "SCMP_ACT_ERRNO"}]});
    }
}

fn running(words: &str) -> Side {
    let side = Side::with(bundle(words));
    side.start(side.output());
    for name in names(words) {
        wait_until("the workload counts", || count(&side, name) > 2);
    }
    side
}

/// The processes of a workload.
fn names(words: &str) -> std::ops::Range<u64> {
    if words.contains("forks") { 0..4 } else { 0..1 }
}

fn count(side: &Side, name: u64) -> u64 {
    assert_fine(side);
    let text = fs::read_to_string(side.path("vol").join(format!("count-{name}")));
    text.map_or(0, |text| text.parse().unwrap())
}

fn assert_fine(side: &Side) {
    let bad = fs::read_to_string(side.path("vol/bad"));
    assert!(bad.is_err(), "{bad:?}");
}

/// The pages of a full dump.
async fn pages_of_full_dump(side: &Side) -> Pages {
    let mut request = side.dump_request();
    request.images_dir = side.path("full");
    fs::create_dir(&request.images_dir).unwrap();
    let mut dump = Dump::prepare(request, soon(60)).await.unwrap();
    assert_eq!(dump.memory(), Memory::Full);
    dump.write(soon(60)).await.unwrap();
    let pages = without_cpu_numbers(pages_in(&side.path("full")), &side.path("full"));
    assert_eq!(dump.complete(soon(60)).await.unwrap().memory, Memory::Full);
    pages
}

fn pages_in(images: &Path) -> Pages {
    let mut pages = Pages::new();
    for file in fs::read_dir(images).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let process = name
            .strip_prefix("pagemap-")
            .and_then(|name| name.strip_suffix(".img"));
        let Some(Ok(process)) = process.map(str::parse) else {
            continue;
        };
        let image = read_pagemap(&images.join(&name)).unwrap();
        let content = fs::read(images.join(format!("pages-{}.img", image.pages_id))).unwrap();
        let addresses = image.entries.iter().flat_map(|entry| {
            assert!(entry.flags.is_present());
            (0..entry.pages).map(|page| entry.start + page * PAGE_BYTES)
        });
        let found = addresses.zip(content.chunks(workload::PAGE));
        let before = pages.len();
        pages.extend(found.map(|(address, bytes)| ((process, address), bytes.to_vec())));
        assert_eq!((pages.len() - before) * workload::PAGE, content.len());
    }
    pages
}

/// The fields of a thread's image that lead to its restartable sequences.
#[derive(Clone, PartialEq, prost::Message)]
struct Core {
    #[prost(message, optional, tag = "5")]
    thread: Option<ThreadCore>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ThreadCore {
    #[prost(message, optional, tag = "15")]
    sequences: Option<Sequences>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sequences {
    #[prost(uint64, tag = "1")]
    address: u64,
    #[prost(uint32, tag = "2")]
    size: u32,
}

/// Takes out what is not the processes' own: into its area for restartable sequences the kernel writes on which CPU a thread
/// is, each time CRIU makes it run code of CRIU's.
fn without_cpu_numbers(mut pages: Pages, images: &Path) -> Pages {
    for file in fs::read_dir(images).unwrap() {
        let path = file.unwrap().path();
        if !path.file_name().unwrap().to_str().unwrap().starts_with("core-") {
            continue;
        }
        // Two magic numbers and a length come before the message.
        let core = Core::decode(&fs::read(path).unwrap()[12..]).unwrap();
        let sequences = core.thread.unwrap().sequences.unwrap_or_default();
        let first = usize::try_from(sequences.address % PAGE_BYTES).unwrap();
        for ((_, address), bytes) in &mut pages {
            if *address == sequences.address - sequences.address % PAGE_BYTES && sequences.size > 0 {
                bytes[first..first + sequences.size as usize].fill(0);
            }
        }
    }
    pages
}

/// What has been sent, the last version of each page.
#[derive(Default)]
struct Sent(Pages);

impl PageSink for Sent {
    fn take(&mut self, batch: PageBatch) -> Result<(), SinkClosed> {
        let mut content = batch.data.chunks(workload::PAGE);
        for run in &batch.runs {
            for page in 0..u64::from(run.pages) {
                let bytes = if run.zero {
                    vec![0; workload::PAGE]
                } else {
                    content.next().unwrap().to_vec()
                };
                self.0
                    .insert((batch.process, run.start + page * PAGE_BYTES), bytes);
            }
        }
        assert_eq!(content.next(), None);
        Ok(())
    }
}

impl Sent {
    /// The pages of the list; one that has not been sent is missing.
    fn of(&self, resident: &[ResidentPages]) -> Pages {
        let mut pages = Pages::new();
        for list in resident {
            for run in &list.runs {
                for page in 0..u64::from(run.pages) {
                    let place = (list.process, run.start + page * PAGE_BYTES);
                    let bytes = self.0.get(&place);
                    assert!(bytes.is_some(), "{place:x?} is resident and was not sent");
                    pages.insert(place, bytes.unwrap().clone());
                }
            }
        }
        pages
    }
}

/// Follows a container for some rounds, freezes it, dumps it in full and as state alone, and compares what CRIU has found
/// with what has been sent.
async fn compared(words: &str) -> Side {
    let side = running(words);
    let freezer = Freezer::of_cgroup(&side.cgroup).unwrap();
    let mut sent = Sent::default();
    let mut tracker = Tracker::attach(
        &side.cgroup,
        Injector::new(Path::new(env!("CARGO_BIN_EXE_tranship-injector"))),
    )
    .unwrap();
    for round in 0..4 {
        match round {
            2 => tracker.listing_round(&mut sent).unwrap(),
            _ => tracker.round(&mut sent).unwrap(),
        };
        std::thread::sleep(Duration::from_millis(30));
    }
    freezer.freeze(soon(5)).await.unwrap();
    tracker.frozen_round(&mut sent).unwrap();
    let full = pages_of_full_dump(&side).await;

    let mut request = side.dump_request();
    request.memory = Memory::StateOnly;
    let mut dump = Dump::prepare(request, soon(60)).await.unwrap();
    assert_eq!(dump.memory(), Memory::StateOnly);
    let barrier = dump.write(soon(60)).await.unwrap();
    assert_eq!(barrier.memory, Memory::StateOnly);
    // Of large processes CRIU gets the areas without asking the kernel.
    let large = if words.contains("24") { names(words).end } else { 0 };
    assert_eq!(u64::from(barrier.areas_taken), large);
    let (resident, _) = tracker.finish(&mut sent).unwrap();
    write_pagemaps(&side.path("images"), &resident).unwrap();
    let report = dump.complete(soon(60)).await.unwrap();
    assert_eq!(report.memory, Memory::StateOnly);
    println!(
        "{words}: {} pages, images of {} bytes",
        full.len(),
        report.images_bytes
    );

    let pages = without_cpu_numbers(sent.of(&resident), &side.path("images"));
    // CRIU has the vDSO in every dump; it may be listed or not.
    all_present(&side.path("images")).unwrap();
    write_present(&side.path("images"), 1 << 32, |process, address, into| {
        let bytes = pages.get(&(process, address));
        bytes.inspect(|bytes| into.copy_from_slice(bytes));
        Ok(bytes.is_some())
    })
    .unwrap();
    let written = pages_in(&side.path("images"));
    same(&full, &without_cpu_numbers(written, &side.path("images")));
    same_areas(&side);
    side
}

/// The areas of each process are the same in both dumps, to the byte.
fn same_areas(side: &Side) {
    let mut compared = 0;
    for file in fs::read_dir(side.path("full")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if name.starts_with("mm-") {
            let read = |dump: &str| fs::read(side.path(dump).join(&name)).unwrap();
            assert!(read("full") == read("images"), "{name} differs");
            compared += 1;
        }
    }
    assert!(compared > 0);
}

fn same(full: &Pages, ours: &Pages) {
    let missing: Vec<_> = full.keys().filter(|page| !ours.contains_key(page)).collect();
    let extra: Vec<_> = ours.keys().filter(|page| !full.contains_key(page)).collect();
    let differ: Vec<_> = full
        .iter()
        .filter(|(page, bytes)| ours.get(page).is_some_and(|other| other != *bytes))
        .map(|(page, _)| page)
        .collect();
    assert!(
        missing.is_empty() && extra.is_empty() && differ.is_empty(),
        "of {} pages {} are missing: {:x?}\n{} are not CRIU's: {:x?}\n{} differ: {:x?}",
        full.len(),
        missing.len(),
        &missing[..missing.len().min(9)],
        extra.len(),
        &extra[..extra.len().min(9)],
        differ.len(),
        &differ[..differ.len().min(9)],
    );
}

/// Restores what [`compared`] has made, and waits until every process has counted on.
async fn goes_on(source: &Side, words: &str) {
    let target = Side::beside_with(source, bundle(words));
    let before: Vec<u64> = names(words).map(|name| count(&target, name)).collect();
    let mut relay = Relay::bind(&target.path("relay"), &criu(), Operation::Restore).unwrap();
    let runc = target.start_restore(relay.environment());
    relay.wait_request(soon(60)).await.unwrap();
    relay.release_request().await.unwrap();
    loopback_up(relay.wait_namespaces(soon(60)).await.unwrap());
    relay.continue_namespaces().await.unwrap();
    let held = relay.wait_barrier(soon(60)).await;
    assert!(
        held.is_ok(),
        "{held:?} {}",
        RestoreError::explain(&target.path("work"), None)
    );
    relay.release().await.unwrap();
    assert!(relay.wait_finished(soon(60)).await.unwrap().success);
    assert!(end_of(runc).success());
    for (name, before) in names(words).zip(before) {
        wait_until("the workload goes on", || count(&target, name) > before + 10);
    }
    std::thread::sleep(Duration::from_millis(100));
    assert_fine(&target);
}

async fn compared_and_moved(words: &str) {
    let source = compared(words).await;
    goes_on(&source, words).await;
}

#[tokio::test]
async fn a_single_process_has_the_pages_that_criu_finds() {
    compared_and_moved("plain").await;
}

#[tokio::test]
async fn a_forked_tree_has_its_shared_pages_once_for_each_process() {
    compared_and_moved("plain,forks").await;
}

#[tokio::test]
async fn of_a_private_file_only_what_was_written_is_kept() {
    compared_and_moved("files").await;
}

#[tokio::test]
async fn locked_memory_is_like_any_other() {
    compared_and_moved("locked").await;
}

#[tokio::test]
async fn guard_pages_are_still_there_afterwards() {
    compared_and_moved("guards").await;
}

#[tokio::test]
async fn a_stack_that_grows_is_whole() {
    compared_and_moved("stack").await;
}

#[tokio::test]
async fn what_was_advised_about_memory_is_not_forgotten() {
    compared_and_moved("advice,24").await;
}

#[tokio::test]
async fn everything_together_is_whole() {
    compared_and_moved("plain,files,locked,guards,stack,advice,24,forks,restless").await;
}
