//! Any bytes as a bulk stream: refused, or trees below the directory they were given, and nothing beside it.

#![no_main]

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use tranship_migrate::error::HostError;
use tranship_migrate::transport::{TreeSink, receive_trees};
use tranship_migrate::trees::{TreeName, TreeReport};

struct Below(PathBuf);

impl TreeSink for Below {
    fn open(&self, name: &TreeName) -> Result<OwnedFd, HostError> {
        let path = self.0.join(name.to_string());
        std::fs::create_dir(&path).map_err(|error| HostError::new("make a tree", error))?;
        let dir = std::fs::File::open(&path).map_err(|error| HostError::new("open a tree", error))?;
        Ok(dir.into())
    }

    fn close(&self, _report: &TreeReport) -> Result<(), HostError> {
        Ok(())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let around = tempfile::tempdir().expect("a temporary directory");
    let inside = around.path().join("inside");
    std::fs::create_dir(&inside).expect("a directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut stream = bytes;
    let _outcome = runtime.block_on(receive_trees(&mut stream, Arc::new(Below(inside))));
    let beside = std::fs::read_dir(around.path()).expect("the directory").count();
    assert_eq!(beside, 1, "something was written beside the tree");
});
