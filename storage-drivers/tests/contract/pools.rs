//! Pools: one process each, found again by the next, swept.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Signal, getpid, kill_process};
use tranship_storage_drivers::driver::{DriverError, Outcome, StorageDriver};
use tranship_storage_drivers::overlay::OverlayDriver;

use crate::bench::{Bench, Open, container, layer, volume};

/// Names the pool in the environment of a process that stages something there and dies.
const POOL_OF_THE_KILLED: &str = "TRANSHIP_TEST_POOL_OF_THE_KILLED";

pub fn a_new_pool_is_empty_and_has_room(open: Open) {
    let bench = Bench::new(open);
    assert_eq!(bench.driver.layers().unwrap(), []);
    assert_eq!(bench.driver.volumes().unwrap(), []);
    let space = bench.driver.space().unwrap();
    assert!(
        0 < space.free_bytes && space.free_bytes <= space.total_bytes,
        "{space:?}"
    );
    bench.driver.sync().unwrap();
}

pub fn a_pool_is_for_one_process(open: Open) {
    let bench = Bench::new(open);
    let pool = bench.place.path().join("pool");
    assert!(matches!(
        open(&pool).map(|_| ()),
        Err(DriverError::PoolBusy { .. })
    ));
}

pub fn everything_is_found_again_by_the_next_process(open: Open) {
    let bench = Bench::with_container(open);
    fs::write(bench.target.join("written"), "x").unwrap();
    bench.driver.create_volume(&volume("data")).unwrap();
    let Bench { place, .. } = &bench;
    let pool = place.path().join("pool");
    let bench = bench.reopened(open);
    assert_eq!(bench.driver.layers().unwrap(), [layer(1), layer(2)]);
    assert_eq!(bench.driver.volumes().unwrap(), [volume("data")]);
    assert_eq!(
        bench
            .driver
            .create_rootfs(&container(1), &[layer(1), layer(2)])
            .unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(
        bench.driver.mount_rootfs(&container(1), &bench.target).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(bench.read("written"), "x");
    assert!(
        bench
            .driver
            .writable_path(&container(1))
            .unwrap()
            .starts_with(pool)
    );
}

pub fn what_a_killed_process_left_is_swept(open: Open) {
    let bench = Bench::new(open);
    let pool = bench.place.path().join("killed");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "pools::dies_while_it_stages", "--ignored"])
        .env(POOL_OF_THE_KILLED, &pool)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(9));
    let names = || walk(&pool);
    assert!(
        names().iter().any(|path| path.ends_with("half-made")),
        "nothing was left behind to sweep"
    );
    let driver = open(&pool).unwrap();
    assert_eq!(driver.layers().unwrap(), []);
    assert!(!names().iter().any(|path| path.ends_with("half-made")));
}

fn walk(root: &Path) -> Vec<PathBuf> {
    let mut found = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = found.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path).unwrap().is_dir() {
            found.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found
}

#[test]
#[ignore = "the child of what_a_killed_process_left_is_swept"]
fn dies_while_it_stages() {
    let Some(pool) = std::env::var_os(POOL_OF_THE_KILLED) else {
        return;
    };
    let driver = OverlayDriver::open(Path::new(&pool)).unwrap();
    let staged = driver.stage_layer(&layer(1)).unwrap();
    fs::create_dir(staged.path().join("below")).unwrap();
    fs::write(staged.path().join("below/half-made"), "x").unwrap();
    kill_process(getpid(), Signal::KILL).unwrap();
}
