//! Layers: there after a commit, gone when nothing stands on them.

use std::fs;

use tranship_storage_drivers::driver::{DriverError, Outcome};
use tranship_storage_drivers::tree::{TreeReader, TreeWriter};

use crate::bench::{Bench, Open, container, layer};
use crate::common::{directory, fill_with_everything, same_trees};

pub fn a_layer_is_there_after_its_commit_and_not_before(open: Open) {
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

pub fn a_dropped_stage_leaves_nothing(open: Open) {
    let bench = Bench::new(open);
    let staged = bench.driver.stage_layer(&layer(1)).unwrap();
    fill_with_everything(staged.path());
    let path = staged.path().to_owned();
    drop(staged);
    assert!(!path.exists());
    assert!(!bench.driver.has_layer(&layer(1)).unwrap());
}

pub fn of_two_commits_of_one_layer_the_first_stays(open: Open) {
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

pub fn a_layer_from_a_stream_is_the_tree_that_was_read(open: Open) {
    let bench = Bench::new(open);
    let from = directory(&bench.place, "from");
    fill_with_everything(&from);
    let staged = bench.driver.stage_layer(&layer(1)).unwrap();
    let mut writer = TreeWriter::create(staged.open().unwrap()).unwrap();
    for part in TreeReader::open(&from).unwrap() {
        writer.apply(part.unwrap()).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(staged.commit().unwrap(), Outcome::Changed);
    let there = bench.driver.layer_path(&layer(1)).unwrap();
    same_trees(&there, &from);
}

pub fn a_layer_goes_when_nothing_stands_on_it(open: Open) {
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
