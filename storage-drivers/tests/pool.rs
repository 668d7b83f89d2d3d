//! Where the overlay driver can have its pool, and what it says of other places.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

mod common;

use std::fs;
use std::path::Path;

use common::{directory, place};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tranship_storage_drivers::driver::DriverError;
use tranship_storage_drivers::overlay::OverlayDriver;
use tranship_storage_drivers::overlay::mount::OverlayMount;

fn reason_against(pool: &Path) -> String {
    match OverlayDriver::open(pool) {
        Err(DriverError::UnfitPool { reason, .. }) => reason.to_owned(),
        other => panic!("not refused as unfit: {:?}", other.map(|_| ())),
    }
}

#[test]
fn a_pool_on_an_overlay_is_refused() {
    let place = place();
    let [lower, upper, work, target] =
        ["lower", "upper", "work", "target"].map(|name| directory(&place, name));
    OverlayMount {
        lower: &[lower],
        upper: &upper,
        work: &work,
    }
    .attach(&target)
    .unwrap();
    let reason = reason_against(&target.join("pool"));
    unmount(&target, UnmountFlags::DETACH).unwrap();
    assert!(
        reason.contains("overlay file system") && reason.contains("ext4"),
        "{reason}"
    );
}

#[test]
fn a_pool_without_trusted_attributes_is_refused() {
    let place = place();
    let target = directory(&place, "target");
    mount("st-ramfs", &target, "ramfs", MountFlags::empty(), None).unwrap();
    let reason = reason_against(&target.join("pool"));
    unmount(&target, UnmountFlags::DETACH).unwrap();
    assert!(reason.contains("extended attributes"), "{reason}");
}

#[test]
fn a_pool_whose_path_cannot_be_an_option_is_refused() {
    let place = place();
    for name in ["a:b", "a,b", "a\\b"] {
        assert!(reason_against(&place.path().join(name)).contains("colon, comma, backslash"));
    }
}

#[test]
fn a_pool_may_be_reached_through_a_symlink_and_have_blanks_in_its_path() {
    let place = place();
    let (real, target) = (directory(&place, "real pool"), directory(&place, "target"));
    std::os::unix::fs::symlink(&real, place.path().join("link")).unwrap();
    let driver = OverlayDriver::open(&place.path().join("link")).unwrap();
    let id = tranship_proto::ids::ContainerId::from_random([7; 32]);
    use tranship_storage_drivers::driver::{Outcome, StorageDriver};
    assert_eq!(driver.create_rootfs(&id, &[]).unwrap(), Outcome::Changed);
    assert_eq!(driver.mount_rootfs(&id, &target).unwrap(), Outcome::Changed);
    assert_eq!(driver.mount_rootfs(&id, &target).unwrap(), Outcome::Unchanged);
    assert_eq!(driver.unmount_rootfs(&id, &target).unwrap(), Outcome::Changed);
}

#[test]
fn opening_leaves_nothing_in_staging() {
    let place = place();
    let pool = place.path().join("pool");
    drop(OverlayDriver::open(&pool).unwrap());
    assert_eq!(fs::read_dir(pool.join("staging")).unwrap().count(), 0);
}
