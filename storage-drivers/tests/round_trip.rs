//! What a reader reads, a writer writes again: nothing of it is lost, and holes stay holes.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;

use common::{copy, directory, fill_with_everything, place, same_trees};
use tranship_storage_drivers::digest::{tree_hash, tree_state};
use tranship_storage_drivers::tree::TreeReader;

#[test]
fn one_of_everything_survives() {
    let place = place();
    let (from, to) = (directory(&place, "from"), directory(&place, "to"));
    fill_with_everything(&from);
    let summary = copy(&from, &to);
    same_trees(&from, &to);
    assert_eq!(tree_hash(&from).unwrap(), tree_hash(&to).unwrap());
    assert_eq!(summary.entries, tree_state(&from).unwrap().entries);
    assert_eq!(
        fs::metadata(from.join("sparse")).unwrap().blocks(),
        fs::metadata(to.join("sparse")).unwrap().blocks()
    );
}

#[test]
fn reading_twice_gives_the_same_stream() {
    let place = place();
    let from = directory(&place, "from");
    fill_with_everything(&from);
    let read = || {
        TreeReader::open(&from)
            .unwrap()
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
    };
    assert_eq!(read(), read());
}
