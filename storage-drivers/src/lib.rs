//! Volumes and root file systems behind one trait; directory trees as streams.
//!
//! In reading order: [`driver`] is the contract every storage driver keeps, [`overlay`] the driver on the kernel's
//! overlay file system, [`tree`] reads a directory tree as a stream of parts and writes one from such a stream,
//! [`digest`] says whether two trees are the same.
//!
//! The way of one file from host to host: the driver names a directory ([`driver::StorageDriver::writable_path`],
//! [`driver::StorageDriver::volume_path`]), [`tree::TreeReader`] turns it into parts, the parts travel as frames, and
//! [`tree::TreeWriter`] makes them a directory again below a path that the driver at the other end has named.

pub mod digest;
pub mod driver;
pub mod overlay;
pub mod tree;
