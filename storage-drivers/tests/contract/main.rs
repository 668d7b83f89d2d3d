//! What every storage driver must keep to: each claim is a test, run for each driver.
//!
//! A driver joins by one line at the end of this file. The tests mount, make devices and set trusted attributes, so they
//! run as root, on a real disk.

#![allow(
    clippy::unwrap_used,
    reason = "the claims are tests, in functions that each driver's tests call"
)]

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod layers;
mod mounts;
mod pools;
mod rootfs;
mod volumes;

/// One module of tests per driver.
macro_rules! contract {
    ($driver:ident, $open:expr, [$($part:ident::$claim:ident),* $(,)?]) => {
        mod $driver {
            $(#[test]
            fn $claim() {
                crate::$part::$claim($open);
            })*
        }
    };
}

contract!(
    overlay,
    |pool| Ok(Box::new(tranship_storage_drivers::overlay::OverlayDriver::open(
        pool
    )?)),
    [
        pools::a_new_pool_is_empty_and_has_room,
        pools::a_pool_is_for_one_process,
        layers::a_layer_is_there_after_its_commit_and_not_before,
        layers::a_dropped_stage_leaves_nothing,
        layers::of_two_commits_of_one_layer_the_first_stays,
        layers::a_layer_from_a_stream_is_the_tree_that_was_read,
        layers::a_layer_goes_when_nothing_stands_on_it,
        rootfs::a_rootfs_needs_its_layers,
        rootfs::a_rootfs_is_created_once,
        rootfs::a_rootfs_shows_its_layers_the_highest_first,
        rootfs::a_rootfs_without_layers_is_an_empty_one,
        rootfs::a_layer_may_come_twice,
        rootfs::a_rootfs_takes_many_layers,
        rootfs::what_is_written_stays_out_of_the_layers_and_of_other_containers,
        rootfs::what_is_written_and_removed_outlives_a_mount,
        rootfs::the_writable_tree_means_the_same_in_another_pool,
        mounts::mounting_is_idempotent,
        mounts::a_rootfs_is_mounted_in_one_place,
        mounts::a_target_with_something_else_on_it_is_left_alone,
        mounts::a_mounted_rootfs_is_not_removed,
        mounts::an_open_file_outlives_an_unmount,
        volumes::a_volume_is_made_once_and_keeps_its_data,
        pools::everything_is_found_again_by_the_next_process,
        pools::what_a_killed_process_left_is_swept,
    ]
);
