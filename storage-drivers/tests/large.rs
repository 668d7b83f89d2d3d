//! Trees with many files, many levels and large holes: in time, in order, within a fixed number of descriptors.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

use common::{copy, directory, place, same_trees, set_mtime, write_all};
use tranship_storage_drivers::tree::{TreePart, TreeReader};

/// Far above what it takes (see the figures it prints), so that only a real slowdown fails.
const ENOUGH: Duration = Duration::from_secs(5);

#[test]
fn ten_thousand_small_files_take_well_under_a_second_each_way() {
    // In memory: on a disk the time is the file system's, and ext4 alone takes ten times as long to make a file while it
    // steps around many that were deleted in the last minute.
    let place = tempfile::Builder::new()
        .prefix("st-")
        .tempdir_in("/dev/shm")
        .unwrap();
    let (from, to) = (directory(&place, "from"), directory(&place, "to"));
    for number in 0..10_000u32 {
        let folder = from.join(format!("d{}", number % 20));
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join(format!("file-{number}")),
            vec![number as u8; 100 + (number % 3000) as usize],
        )
        .unwrap();
    }
    let begin = Instant::now();
    let parts: Vec<TreePart> = TreeReader::open(&from).unwrap().map(Result::unwrap).collect();
    let reading = begin.elapsed();
    let begin = Instant::now();
    let summary = write_all(&to, parts).unwrap();
    let writing = begin.elapsed();
    println!(
        "10,000 files, {} bytes: read {reading:?}, written and synced {writing:?}",
        summary.bytes
    );
    same_trees(&from, &to);
    assert!(
        reading < ENOUGH && writing < ENOUGH,
        "read {reading:?}, written {writing:?}"
    );
}

#[test]
fn a_gibibyte_goes_through_at_the_speed_of_memory() {
    let place = tempfile::Builder::new()
        .prefix("st-")
        .tempdir_in("/dev/shm")
        .unwrap();
    let (from, to) = (directory(&place, "from"), directory(&place, "to"));
    let mut file = File::create(from.join("large")).unwrap();
    for number in 0..1024u32 {
        file.write_all(&vec![number as u8 | 1; 1 << 20]).unwrap();
    }
    let begin = Instant::now();
    let read: u64 = TreeReader::open(&from)
        .unwrap()
        .map(|part| part_bytes(&part.unwrap()))
        .sum();
    let reading = begin.elapsed();
    let begin = Instant::now();
    assert_eq!(copy(&from, &to).bytes, read);
    println!(
        "1 GiB in one file: read {reading:?}, read and written {:?}",
        begin.elapsed()
    );
    assert!(reading < ENOUGH, "read {reading:?}");
}

fn part_bytes(part: &TreePart) -> u64 {
    match part {
        TreePart::Entry(_) => 0,
        TreePart::Data { bytes, .. } => bytes.len() as u64,
    }
}

#[test]
fn a_deep_tree_needs_no_more_descriptors_than_a_flat_one() {
    let place = place();
    let (from, to) = (directory(&place, "from"), directory(&place, "to"));
    let mut path = from.clone();
    let mut directories = vec![from.clone()];
    for level in 0..900 {
        // A name before and one after the way down: both sides come back to each level.
        fs::write(path.join("a"), level.to_string()).unwrap();
        fs::hard_link(path.join("a"), path.join("z")).unwrap();
        path.push("d");
        fs::create_dir(&path).unwrap();
        directories.push(path.clone());
    }
    for (level, directory) in directories.iter().enumerate().rev() {
        set_mtime(directory, 1_000_000 + level as i64, 7);
    }
    let before = fs::read_dir("/proc/self/fd").unwrap().count();
    let mut reader = TreeReader::open(&from).unwrap();
    let mut writer = common::writer(&to);
    let mut most = 0;
    for part in &mut reader {
        writer.apply(part.unwrap()).unwrap();
        most = most.max(fs::read_dir("/proc/self/fd").unwrap().count());
    }
    writer.finish().unwrap();
    // Other tests of this program run beside this one and hold a few.
    assert!(
        most < before + 160,
        "{most} descriptors at the deepest, {before} before"
    );
    same_trees(&from, &to);
}

#[test]
fn a_path_longer_than_a_message_takes_is_an_error() {
    let place = place();
    let from = directory(&place, "from");
    let mut path = from.clone();
    std::env::set_current_dir(&from).unwrap();
    for _ in 0..17 {
        // Each level by a relative path: the whole one is beyond what a call takes.
        path.push("n".repeat(250));
        fs::create_dir("n".repeat(250)).unwrap();
        std::env::set_current_dir("n".repeat(250)).unwrap();
    }
    std::env::set_current_dir("/").unwrap();
    let last = TreeReader::open(&from).unwrap().last();
    let too_long = matches!(
        last,
        Some(Err(tranship_storage_drivers::tree::TreeError::PathTooLong { .. }))
    );
    assert!(too_long, "{last:?}");
    // The standard library cannot remove so long a path by name.
    std::env::set_current_dir(&from).unwrap();
    assert!(
        std::process::Command::new("rm")
            .args(["-rf", &"n".repeat(250)])
            .status()
            .unwrap()
            .success()
    );
    std::env::set_current_dir("/").unwrap();
}

#[test]
fn a_sparse_gibibyte_is_a_few_kibibytes() {
    let place = place();
    let (from, to) = (directory(&place, "from"), directory(&place, "to"));
    let file = File::create(from.join("sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    for offset in [0, (300 << 20) + 5, (1 << 30) - 1] {
        file.write_all_at(b"x", offset).unwrap();
    }
    fs::write(from.join("empty"), "").unwrap();
    File::create(from.join("only a hole"))
        .unwrap()
        .set_len(123_456_789)
        .unwrap();
    let summary = copy(&from, &to);
    assert!(summary.bytes <= 3 * 4096, "{summary:?}");
    same_trees(&from, &to);
    let blocks = |root: &std::path::Path, name| fs::metadata(root.join(name)).unwrap().blocks();
    assert_eq!(blocks(&from, "sparse"), blocks(&to, "sparse"));
    assert_eq!(blocks(&to, "only a hole"), 0);
}
