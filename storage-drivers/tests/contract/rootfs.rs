//! Root file systems: what they show, what writing to them changes, what travels.

use std::fs;
use std::os::unix::fs::MetadataExt;

use tranship_proto::ids::Digest;
use tranship_storage_drivers::digest::{tree_hash, tree_listing};
use tranship_storage_drivers::driver::{DriverError, Outcome};

use crate::bench::{Bench, Open, container, layer, write_and_remove};
use crate::common::{copy, directory, same_trees};

pub fn a_rootfs_needs_its_layers(open: Open) {
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

pub fn a_rootfs_is_created_once(open: Open) {
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

pub fn a_rootfs_shows_its_layers_the_highest_first(open: Open) {
    let bench = Bench::with_container(open);
    assert_eq!(bench.read("both"), "of layer 2");
    assert_eq!(bench.read("link"), "of layer 1");
    assert_eq!(bench.read("dir/two"), "2");
    let root = fs::metadata(&bench.target).unwrap();
    assert_eq!((root.mode() & 0o7777, root.uid(), root.gid()), (0o751, 12, 34));
}

pub fn a_rootfs_without_layers_is_an_empty_one(open: Open) {
    let bench = Bench::new(open);
    bench.driver.create_rootfs(&container(1), &[]).unwrap();
    bench.driver.mount_rootfs(&container(1), &bench.target).unwrap();
    assert_eq!(fs::read_dir(&bench.target).unwrap().count(), 0);
    fs::write(bench.target.join("file"), "x").unwrap();
    bench.remount();
    assert_eq!(bench.read("file"), "x");
}

pub fn a_layer_may_come_twice(open: Open) {
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

pub fn a_rootfs_takes_many_layers(open: Open) {
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

pub fn what_is_written_stays_out_of_the_layers_and_of_other_containers(open: Open) {
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

pub fn what_is_written_and_removed_outlives_a_mount(open: Open) {
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

pub fn the_writable_tree_means_the_same_in_another_pool(open: Open) {
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
