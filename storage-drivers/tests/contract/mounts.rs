//! Mounting and unmounting.

use std::fs::{self, File};

use rustix::mount::MountFlags;
use tranship_storage_drivers::driver::{DriverError, Outcome};

use crate::bench::{Bench, Open, container};
use crate::common::directory;

pub fn mounting_is_idempotent(open: Open) {
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

pub fn a_rootfs_is_mounted_in_one_place(open: Open) {
    let bench = Bench::with_container(open);
    let elsewhere = directory(&bench.place, "elsewhere");
    let refused = bench.driver.mount_rootfs(&container(1), &elsewhere);
    assert!(
        matches!(&refused, Err(DriverError::Mounted { target, .. }) if *target == bench.target),
        "{refused:?}"
    );
}

pub fn a_target_with_something_else_on_it_is_left_alone(open: Open) {
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

pub fn a_mounted_rootfs_is_not_removed(open: Open) {
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

pub fn an_open_file_outlives_an_unmount(open: Open) {
    let bench = Bench::with_container(open);
    let held = File::open(bench.target.join("low")).unwrap();
    assert_eq!(
        bench.driver.unmount_rootfs(&container(1), &bench.target).unwrap(),
        Outcome::Changed
    );
    assert_eq!(std::io::read_to_string(held).unwrap(), "of layer 1");
}
