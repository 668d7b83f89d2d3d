//! A driver on a pool of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;
use tempfile::TempDir;
use tranship_proto::ids::{ContainerId, Digest, Name};
use tranship_storage_drivers::driver::{DriverError, Outcome, StorageDriver};

use crate::common::{directory, fill, place, set_mode, set_mtime, set_owner};

pub type Open = fn(&Path) -> Result<Box<dyn StorageDriver>, DriverError>;

pub fn layer(number: u8) -> Digest {
    Digest::from_sha256(&[number; 32])
}

pub fn container(number: u8) -> ContainerId {
    ContainerId::from_random([number; 32])
}

pub fn volume(name: &str) -> Name {
    name.parse().unwrap()
}

/// A driver on a pool of its own, and a directory to mount on.
pub struct Bench {
    pub place: TempDir,
    pub driver: Box<dyn StorageDriver>,
    pub target: PathBuf,
}

impl Bench {
    pub fn new(open: Open) -> Self {
        let place = place();
        let driver = open(&place.path().join("pool")).unwrap();
        let target = directory(&place, "target");
        Self {
            place,
            driver,
            target,
        }
    }

    pub fn add_layer(&self, number: u8, fill: impl FnOnce(&Path)) {
        let staged = self.driver.stage_layer(&layer(number)).unwrap();
        fill(staged.path());
        assert_eq!(staged.commit().unwrap(), Outcome::Changed);
    }

    /// Container 1 on layers 1 (below) and 2, mounted.
    pub fn with_container(open: Open) -> Self {
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

    pub fn remount(&self) {
        assert_eq!(
            self.driver.unmount_rootfs(&container(1), &self.target).unwrap(),
            Outcome::Changed
        );
        assert_eq!(
            self.driver.mount_rootfs(&container(1), &self.target).unwrap(),
            Outcome::Changed
        );
    }

    pub fn read(&self, name: &str) -> String {
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

pub fn write_and_remove(root: &Path) {
    fs::write(root.join("low"), "changed").unwrap();
    fs::remove_file(root.join("both")).unwrap();
    fs::remove_dir_all(root.join("dir")).unwrap();
    fs::create_dir(root.join("dir")).unwrap();
    fs::write(root.join("dir/three"), "3").unwrap();
    fs::create_dir(root.join("new")).unwrap();
    fill(&root.join("new"));
}

impl Bench {
    pub fn reopened(self, open: Open) -> Self {
        let mut bench = self;
        let pool = bench.place.path().join("pool");
        // The pool is locked until the first driver is gone.
        bench.driver = open(&bench.place.path().join("meanwhile")).unwrap();
        bench.driver = open(&pool).unwrap();
        bench
    }
}
