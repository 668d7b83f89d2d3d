//! Volumes.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use tranship_storage_drivers::driver::{DriverError, Outcome};

use crate::bench::{Bench, Open, volume};
use crate::common::{fill_with_everything, writer};

pub fn a_volume_is_made_once_and_keeps_its_data(open: Open) {
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
