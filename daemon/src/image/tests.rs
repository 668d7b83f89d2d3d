//! Real archives through a real overlay driver. Root only.

mod archives;
mod hostile;
mod layouts;
mod rootfs;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use tranship_proto::ids::{ContainerId, Digest};
use tranship_proto::v1;
use tranship_storage_drivers::driver::StorageDriver;
use tranship_storage_drivers::overlay::OverlayDriver;

use super::{ImportError, ImportOptions, import};

/// A pool and a place to spool.
struct Store {
    directory: TempDir,
    driver: OverlayDriver,
}

impl Store {
    fn new() -> Self {
        // Not /tmp, which may be a tmpfs.
        let directory = tempfile::Builder::new()
            .prefix("im-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let driver = OverlayDriver::open(&directory.path().join("pool")).unwrap();
        fs::create_dir(directory.path().join("spool")).unwrap();
        Self { directory, driver }
    }

    fn import(&self, archive: &[u8]) -> Result<v1::Image, ImportError> {
        self.import_as(archive, "", &[])
    }

    fn import_as(&self, archive: &[u8], name: &str, changes: &[&str]) -> Result<v1::Image, ImportError> {
        let changes: Vec<String> = changes.iter().map(|text| (*text).to_owned()).collect();
        let options = ImportOptions::parse(name, &changes)?;
        let result = import(
            archive,
            &options,
            &self.driver,
            &self.directory.path().join("spool"),
        );
        for place in ["spool", "pool/staging"] {
            let left = fs::read_dir(self.directory.path().join(place)).unwrap().count();
            assert_eq!(left, 0, "something is left in {place}");
        }
        result
    }

    /// Why an archive is refused; nothing may have become a layer.
    fn refusal(&self, archive: &[u8]) -> String {
        let error = self.import(archive).unwrap_err();
        assert_eq!(
            self.driver.layers().unwrap(),
            [],
            "a refused archive left a layer: {error}"
        );
        chain(&error)
    }

    /// The tree of an image's only layer.
    fn tree(&self, image: &v1::Image) -> PathBuf {
        let [layer] = image.layers.as_slice() else {
            panic!("{:?} is not one layer", image.layers)
        };
        self.driver.layer_path(&layer.parse().unwrap()).unwrap()
    }

    /// What a container of the image sees, as long as `work` runs.
    fn in_rootfs<T: Send>(&self, image: &v1::Image, work: impl FnOnce(&Path) -> T + Send) -> T {
        let id = ContainerId::from_random([7; 32]);
        let layers: Vec<Digest> = image.layers.iter().map(|layer| layer.parse().unwrap()).collect();
        let target = self.directory.path().join("rootfs");
        fs::create_dir_all(&target).unwrap();
        let seen = std::thread::scope(|scope| {
            let mounted = scope.spawn(|| {
                // The mount is this thread's alone and goes with it.
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("these tests need root");
                let private =
                    rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).unwrap();
                let _ = self.driver.create_rootfs(&id, &layers).unwrap();
                let _ = self.driver.mount_rootfs(&id, &target).unwrap();
                let seen = work(&target);
                let _ = self.driver.unmount_rootfs(&id, &target).unwrap();
                seen
            });
            mounted.join().unwrap()
        });
        let _ = self.driver.remove_rootfs(&id).unwrap();
        seen
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
