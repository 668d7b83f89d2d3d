//! What every storage driver must keep to: each claim is a test, run for each driver.
//!
//! A driver joins by one line at the end of this file. The tests mount, make devices and set trusted attributes, so they
//! run as root, on a real disk.

#![allow(
    clippy::unwrap_used,
    reason = "the claims are tests, in functions that each driver's tests call"
)]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{
    copy, directory, fill, fill_with_everything, place, same_trees, set_mode, set_mtime, set_owner, writer,
};
use rustix::mount::{MountFlags, UnmountFlags};
use tempfile::TempDir;
use tranship_proto::ids::{ContainerId, Digest, Name};
use tranship_storage_drivers::digest::{tree_hash, tree_listing};
use tranship_storage_drivers::driver::{DriverError, Outcome, StorageDriver};
use tranship_storage_drivers::tree::TreeReader;

type Open = fn(&Path) -> Result<Box<dyn StorageDriver>, DriverError>;

/// Names the pool in the environment of a process that stages something there and dies.
const POOL_OF_THE_KILLED: &str = "ST_POOL_OF_THE_KILLED";

fn layer(number: u8) -> Digest {
    Digest::from_sha256(&[number; 32])
}

fn container(number: u8) -> ContainerId {
    ContainerId::from_random([number; 32])
}

fn volume(name: &str) -> Name {
    name.parse().unwrap()
}

/// A driver on a pool of its own, and a directory to mount on.
struct Bench {
    place: TempDir,
    driver: Box<dyn StorageDriver>,
    target: PathBuf,
}

impl Bench {
    fn new(open: Open) -> Self {
        let place = place();
        let driver = open(&place.path().join("pool")).unwrap();
        let target = directory(&place, "target");
        Self {
            place,
            driver,
            target,
        }
    }

    fn add_layer(&self, number: u8, fill: impl FnOnce(&Path)) {
        let staged = self.driver.stage_layer(&layer(number)).unwrap();
        fill(staged.path());
        assert_eq!(staged.commit().unwrap(), Outcome::Changed);
    }

    /// Container 1 on layers 1 (below) and 2, mounted.
    fn with_container(open: Open) -> Self {
        let bench = Self::new(open);
        bench.add_layer(1, |root| {
            fs::write(root.join("low"), "of layer 1").unwrap();
            fs::write(root.join("both"), "of layer 1").unwrap();
            fs::create_dir(root.join("dir")).unwrap();
            fs::write(root.join("dir/one"), "1").unwrap();
            fs::write(root.join("dir/two"), "2").unwrap();
            symlink("low", root.join("link")).unwrap();
            // Both ends of a move have the same layers, to the nanosecond.
            for name in ["low", "both", "dir/one", "dir/two", "dir", "link"] {
                set_mtime(&root.join(name), 1_500_000_000, 5);
            }
        });
        bench.add_layer(2, |root| {
            fs::write(root.join("both"), "of layer 2").unwrap();
            set_mode(root, 0o751);
            set_owner(root, 12, 34);
        });
        assert_eq!(
            bench
                .driver
                .create_rootfs(&container(1), &[layer(1), layer(2)])
                .unwrap(),
            Outcome::Changed
        );
        assert_eq!(
            bench.driver.mount_rootfs(&container(1), &bench.target).unwrap(),
            Outcome::Changed
        );
        bench
    }

    fn remount(&self) {
        assert_eq!(
            self.driver.unmount_rootfs(&container(1), &self.target).unwrap(),
            Outcome::Changed
        );
        assert_eq!(
            self.driver.mount_rootfs(&container(1), &self.target).unwrap(),
            Outcome::Changed
        );
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.target.join(name)).unwrap()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.place.path()).unwrap() {
            while rustix::mount::unmount(entry.as_ref().unwrap().path(), UnmountFlags::DETACH).is_ok() {}
        }
    }
}

fn write_and_remove(root: &Path) {
    fs::write(root.join("low"), "changed").unwrap();
    fs::remove_file(root.join("both")).unwrap();
    fs::remove_dir_all(root.join("dir")).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/three"), "3").unwrap();
    fs::create_dir(root.join("new")).unwrap();
    fill(&root.join("new"));
}

/// One module of tests per driver.
macro_rules! contract {
    ($driver:ident, $open:expr, [$($claim:ident),* $(,)?]) => {
        mod $driver {
            $(#[test]
            fn $claim() {
                super::$claim($open);
            })*
        }
    };
}

fn a_new_pool_is_empty_and_has_room(open: Open) {
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

fn a_pool_is_for_one_process(open: Open) {
    let bench = Bench::new(open);
    let pool = bench.place.path().join("pool");
    assert!(matches!(
        open(&pool).map(|_| ()),
        Err(DriverError::PoolBusy { .. })
    ));
}

fn a_layer_is_there_after_its_commit_and_not_before(open: Open) {
    let bench = Bench::new(open);
    let staged = bench.driver.stage_layer(&layer(1)).unwrap();
    fs::write(staged.path().join("file"), "content").unwrap();
    assert!(!bench.driver.has_layer(&layer(1)).unwrap());
    assert!(matches!(
        bench.driver.layer_path(&layer(1)),
        Err(DriverError::NoLayer(_))
    ));
    assert_eq!(staged.commit().unwrap(), Outcome::Changed);
    assert!(bench.driver.has_layer(&layer(1)).unwrap());
    assert_eq!(bench.driver.layers().unwrap(), [layer(1)]);
    assert_eq!(
        fs::read(bench.driver.layer_path(&layer(1)).unwrap().join("file")).unwrap(),
        b"content"
    );
}

fn a_dropped_stage_leaves_nothing(open: Open) {
    let bench = Bench::new(open);
    let staged = bench.driver.stage_layer(&layer(1)).unwrap();
    fill_with_everything(staged.path());
    let path = staged.path().to_owned();
    drop(staged);
    assert!(!path.exists());
    assert!(!bench.driver.has_layer(&layer(1)).unwrap());
}

fn of_two_commits_of_one_layer_the_first_stays(open: Open) {
    let bench = Bench::new(open);
    let (first, second) = (
        bench.driver.stage_layer(&layer(1)).unwrap(),
        bench.driver.stage_layer(&layer(1)).unwrap(),
    );
    fs::write(first.path().join("file"), "first").unwrap();
    fs::write(second.path().join("file"), "second").unwrap();
    let path = second.path().to_owned();
    assert_eq!(first.commit().unwrap(), Outcome::Changed);
    assert_eq!(second.commit().unwrap(), Outcome::Unchanged);
    assert!(!path.exists());
    assert_eq!(
        fs::read(bench.driver.layer_path(&layer(1)).unwrap().join("file")).unwrap(),
        b"first"
    );
}

fn a_layer_from_a_stream_is_the_tree_that_was_read(open: Open) {
    let bench = Bench::new(open);
    let from = directory(&bench.place, "from");
    fill_with_everything(&from);
    let staged = bench.driver.stage_layer(&layer(1)).unwrap();
    let mut writer = tranship_storage_drivers::tree::TreeWriter::create(staged.open().unwrap()).unwrap();
    for part in TreeReader::open(&from).unwrap() {
        writer.apply(part.unwrap()).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(staged.commit().unwrap(), Outcome::Changed);
    let there = bench.driver.layer_path(&layer(1)).unwrap();
    same_trees(&there, &from);
}

fn a_layer_goes_when_nothing_stands_on_it(open: Open) {
    let bench = Bench::new(open);
    bench.add_layer(1, fill_with_everything);
    bench.driver.create_rootfs(&container(1), &[layer(1)]).unwrap();
    let refused = bench.driver.remove_layer(&layer(1));
    assert!(
        matches!(&refused, Err(DriverError::LayerInUse { container: user, .. }) if *user == container(1)),
        "{refused:?}"
    );
    assert_eq!(
        bench.driver.remove_rootfs(&container(1)).unwrap(),
        Outcome::Changed
    );
    assert_eq!(bench.driver.remove_layer(&layer(1)).unwrap(), Outcome::Changed);
    assert_eq!(bench.driver.remove_layer(&layer(1)).unwrap(), Outcome::Unchanged);
    assert_eq!(bench.driver.layers().unwrap(), []);
}

fn a_rootfs_needs_its_layers(open: Open) {
    let bench = Bench::new(open);
    bench.add_layer(1, |_| {});
    let refused = bench.driver.create_rootfs(&container(1), &[layer(1), layer(2)]);
    assert!(
        matches!(&refused, Err(DriverError::NoLayer(missing)) if *missing == layer(2)),
        "{refused:?}"
    );
    assert!(matches!(
        bench.driver.writable_path(&container(1)),
        Err(DriverError::NoRootfs(_))
    ));
}

fn a_rootfs_is_created_once(open: Open) {
    let bench = Bench::new(open);
    bench.add_layer(1, |_| {});
    bench.add_layer(2, |_| {});
    let create = |layers: &[Digest]| bench.driver.create_rootfs(&container(1), layers);
    assert_eq!(create(&[layer(1), layer(2)]).unwrap(), Outcome::Changed);
    assert_eq!(create(&[layer(1), layer(2)]).unwrap(), Outcome::Unchanged);
    assert!(matches!(
        create(&[layer(2), layer(1)]),
        Err(DriverError::OtherLayers(_))
    ));
    assert_eq!(
        bench.driver.remove_rootfs(&container(1)).unwrap(),
        Outcome::Changed
    );
    assert_eq!(
        bench.driver.remove_rootfs(&container(1)).unwrap(),
        Outcome::Unchanged
    );
}

fn a_rootfs_shows_its_layers_the_highest_first(open: Open) {
    let bench = Bench::with_container(open);
    assert_eq!(bench.read("both"), "of layer 2");
    assert_eq!(bench.read("link"), "of layer 1");
    assert_eq!(bench.read("dir/two"), "2");
    let root = fs::metadata(&bench.target).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o751, 12, 34));
}

fn a_rootfs_without_layers_is_an_empty_one(open: Open) {
    let bench = Bench::new(open);
    bench.driver.create_rootfs(&container(1), &[]).unwrap();
    bench.driver.mount_rootfs(&container(1), &bench.target).unwrap();
    assert_eq!(fs::read_dir(&bench.target).unwrap().count(), 0);
    fs::write(bench.target.join("file"), "x").unwrap();
    bench.remount();
    assert_eq!(bench.read("file"), "x");
}

fn a_layer_may_come_twice(open: Open) {
    let bench = Bench::new(open);
    for number in [1, 2] {
        bench.add_layer(number, |root| {
            fs::write(root.join("file"), [b'0' + number]).unwrap()
        });
    }
    bench
        .driver
        .create_rootfs(&container(1), &[layer(1), layer(2), layer(1)])
        .unwrap();
    bench.driver.mount_rootfs(&container(1), &bench.target).unwrap();
    assert_eq!(bench.read("file"), "1");
}

fn a_rootfs_takes_many_layers(open: Open) {
    let bench = Bench::new(open);
    let layers: Vec<_> = (0..120).map(layer).collect();
    for number in 0..120 {
        bench.add_layer(number, |root| {
            fs::write(root.join(format!("of-{number}")), "").unwrap()
        });
    }
    bench.driver.create_rootfs(&container(1), &layers).unwrap();
    bench.driver.mount_rootfs(&container(1), &bench.target).unwrap();
    assert_eq!(fs::read_dir(&bench.target).unwrap().count(), 120);
}

fn what_is_written_stays_out_of_the_layers_and_of_other_containers(open: Open) {
    let bench = Bench::with_container(open);
    let before: Vec<_> = [1, 2]
        .map(|number| tree_hash(&bench.driver.layer_path(&layer(number)).unwrap()).unwrap())
        .into();
    let other = directory(&bench.place, "other");
    bench
        .driver
        .create_rootfs(&container(2), &[layer(1), layer(2)])
        .unwrap();
    bench.driver.mount_rootfs(&container(2), &other).unwrap();
    let untouched = tree_listing(&other).unwrap();
    write_and_remove(&bench.target);
    assert_eq!(tree_listing(&other).unwrap(), untouched);
    let after: Vec<_> = [1, 2]
        .map(|number| tree_hash(&bench.driver.layer_path(&layer(number)).unwrap()).unwrap())
        .into();
    assert_eq!(before, after);
}

fn what_is_written_and_removed_outlives_a_mount(open: Open) {
    let bench = Bench::with_container(open);
    write_and_remove(&bench.target);
    let before = tree_listing(&bench.target).unwrap();
    bench.remount();
    assert_eq!(tree_listing(&bench.target).unwrap(), before);
    assert!(!bench.target.join("both").exists() && !bench.target.join("dir/one").exists());
    assert_eq!(
        (bench.read("low"), bench.read("dir/three")),
        ("changed".to_owned(), "3".to_owned())
    );
}

fn the_writable_tree_means_the_same_in_another_pool(open: Open) {
    let (source, destination) = (Bench::with_container(open), Bench::with_container(open));
    write_and_remove(&source.target);
    assert_eq!(
        source
            .driver
            .unmount_rootfs(&container(1), &source.target)
            .unwrap(),
        Outcome::Changed
    );
    assert_eq!(
        destination
            .driver
            .unmount_rootfs(&container(1), &destination.target)
            .unwrap(),
        Outcome::Changed
    );
    assert_eq!(
        destination.driver.remove_rootfs(&container(1)).unwrap(),
        Outcome::Changed
    );
    assert_eq!(
        destination
            .driver
            .create_rootfs(&container(1), &[layer(1), layer(2)])
            .unwrap(),
        Outcome::Changed
    );
    let (from, to) = (
        source.driver.writable_path(&container(1)).unwrap(),
        destination.driver.writable_path(&container(1)).unwrap(),
    );
    copy(&from, &to);
    same_trees(&from, &to);
    source.driver.mount_rootfs(&container(1), &source.target).unwrap();
    destination
        .driver
        .mount_rootfs(&container(1), &destination.target)
        .unwrap();
    same_trees(&source.target, &destination.target);
    fs::write(destination.target.join("low"), "changed again").unwrap();
    destination.remount();
    assert_eq!(destination.read("low"), "changed again");
}

fn mounting_is_idempotent(open: Open) {
    let bench = Bench::with_container(open);
    assert_eq!(
        bench.driver.mount_rootfs(&container(1), &bench.target).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(
        bench.driver.unmount_rootfs(&container(1), &bench.target).unwrap(),
        Outcome::Changed
    );
    assert_eq!(
        bench.driver.unmount_rootfs(&container(1), &bench.target).unwrap(),
        Outcome::Unchanged
    );
    assert_eq!(fs::read_dir(&bench.target).unwrap().count(), 0);
    assert_eq!(
        bench
            .driver
            .unmount_rootfs(&container(1), &bench.place.path().join("missing"))
            .unwrap(),
        Outcome::Unchanged
    );
}

fn a_rootfs_is_mounted_in_one_place(open: Open) {
    let bench = Bench::with_container(open);
    let elsewhere = directory(&bench.place, "elsewhere");
    let refused = bench.driver.mount_rootfs(&container(1), &elsewhere);
    assert!(
        matches!(&refused, Err(DriverError::Mounted { target, .. }) if *target == bench.target),
        "{refused:?}"
    );
}

fn a_target_with_something_else_on_it_is_left_alone(open: Open) {
    let bench = Bench::with_container(open);
    let taken = directory(&bench.place, "taken");
    rustix::mount::mount("st-tmpfs", &taken, "tmpfs", MountFlags::empty(), None).unwrap();
    let mounted = bench.driver.mount_rootfs(&container(1), &taken);
    assert!(
        matches!(&mounted, Err(DriverError::TargetTaken { what, .. }) if what.contains("st-tmpfs")),
        "{mounted:?}"
    );
    let unmounted = bench.driver.unmount_rootfs(&container(1), &taken);
    assert!(
        matches!(unmounted, Err(DriverError::TargetTaken { .. })),
        "{unmounted:?}"
    );
    let missing = bench
        .driver
        .mount_rootfs(&container(1), &bench.place.path().join("missing"));
    assert!(matches!(missing, Err(DriverError::Io { .. })), "{missing:?}");
}

fn a_mounted_rootfs_is_not_removed(open: Open) {
    let bench = Bench::with_container(open);
    assert!(matches!(
        bench.driver.remove_rootfs(&container(1)),
        Err(DriverError::Mounted { .. })
    ));
    bench.driver.unmount_rootfs(&container(1), &bench.target).unwrap();
    let writable = bench.driver.writable_path(&container(1)).unwrap();
    assert_eq!(
        bench.driver.remove_rootfs(&container(1)).unwrap(),
        Outcome::Changed
    );
    assert!(!writable.exists());
    assert!(matches!(
        bench.driver.mount_rootfs(&container(1), &bench.target),
        Err(DriverError::NoRootfs(_))
    ));
}

fn an_open_file_outlives_an_unmount(open: Open) {
    let bench = Bench::with_container(open);
    let held = File::open(bench.target.join("low")).unwrap();
    assert_eq!(
        bench.driver.unmount_rootfs(&container(1), &bench.target).unwrap(),
        Outcome::Changed
    );
    assert_eq!(std::io::read_to_string(held).unwrap(), "of layer 1");
}

fn a_volume_is_made_once_and_keeps_its_data(open: Open) {
    let bench = Bench::new(open);
    assert!(matches!(
        bench.driver.volume_path(&volume("data")),
        Err(DriverError::NoVolume(_))
    ));
    assert_eq!(
        bench.driver.create_volume(&volume("data")).unwrap(),
        Outcome::Changed
    );
    let path = bench.driver.volume_path(&volume("data")).unwrap();
    let made = fs::metadata(&path).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o755, 0, 0));
    writer(&path).finish().unwrap();
    fill_with_everything(&path);
    assert_eq!(
        bench.driver.create_volume(&volume("data")).unwrap(),
        Outcome::Unchanged
    );
    assert!(
        fs::symlink_metadata(path.join("fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    bench.driver.create_volume(&volume("a")).unwrap();
    assert_eq!(bench.driver.volumes().unwrap(), [volume("a"), volume("data")]);
    assert_eq!(
        bench.driver.remove_volume(&volume("data")).unwrap(),
        Outcome::Changed
    );
    assert_eq!(
        bench.driver.remove_volume(&volume("data")).unwrap(),
        Outcome::Unchanged
    );
    assert!(!path.exists());
    assert_eq!(bench.driver.volumes().unwrap(), [volume("a")]);
}

fn everything_is_found_again_by_the_next_process(open: Open) {
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

fn what_a_killed_process_left_is_swept(open: Open) {
    let bench = Bench::new(open);
    let pool = bench.place.path().join("killed");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dies_while_it_stages", "--ignored"])
        .env(POOL_OF_THE_KILLED, &pool)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
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

impl Bench {
    fn reopened(self, open: Open) -> Self {
        let mut bench = self;
        let pool = bench.place.path().join("pool");
        // The pool is locked until the first driver is gone.
        bench.driver = open(&bench.place.path().join("meanwhile")).unwrap();
        bench.driver = open(&pool).unwrap();
        bench
    }
}

#[test]
#[ignore = "the child of what_a_killed_process_left_is_swept"]
fn dies_while_it_stages() {
    let Some(pool) = std::env::var_os(POOL_OF_THE_KILLED) else {
        return;
    };
    let driver = tranship_storage_drivers::overlay::OverlayDriver::open(Path::new(&pool)).unwrap();
    let staged = driver.stage_layer(&layer(1)).unwrap();
    fs::create_dir(staged.path().join("below")).unwrap();
    fs::write(staged.path().join("below/half-made"), "x").unwrap();
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

contract!(
    overlay,
    |pool| Ok(Box::new(tranship_storage_drivers::overlay::OverlayDriver::open(
        pool
    )?)),
    [
        a_new_pool_is_empty_and_has_room,
        a_pool_is_for_one_process,
        a_layer_is_there_after_its_commit_and_not_before,
        a_dropped_stage_leaves_nothing,
        of_two_commits_of_one_layer_the_first_stays,
        a_layer_from_a_stream_is_the_tree_that_was_read,
        a_layer_goes_when_nothing_stands_on_it,
        a_rootfs_needs_its_layers,
        a_rootfs_is_created_once,
        a_rootfs_shows_its_layers_the_highest_first,
        a_rootfs_without_layers_is_an_empty_one,
        a_layer_may_come_twice,
        a_rootfs_takes_many_layers,
        what_is_written_stays_out_of_the_layers_and_of_other_containers,
        what_is_written_and_removed_outlives_a_mount,
        the_writable_tree_means_the_same_in_another_pool,
        mounting_is_idempotent,
        a_rootfs_is_mounted_in_one_place,
        a_target_with_something_else_on_it_is_left_alone,
        a_mounted_rootfs_is_not_removed,
        an_open_file_outlives_an_unmount,
        a_volume_is_made_once_and_keeps_its_data,
        everything_is_found_again_by_the_next_process,
        what_a_killed_process_left_is_swept,
    ]
);
