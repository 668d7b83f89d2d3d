//! Words both ends of Tranship share: messages, data-plane frames, ids, units and limits. No I/O.
//!
//! In reading order: [`v1`] holds the protobuf messages (and, with the feature `grpc`, the generated clients and
//! servers), [`ids`] the types that keep names apart, [`limits`] every bound a peer is held to, [`frame`] the header
//! of the bulk data streams, [`pages`] memory on them, [`version`] which protocol two hosts speak, [`points`] names of steps for tests of faults.

pub mod frame;
pub mod ids;
pub mod limits;
pub mod pages;
pub mod points;
pub mod v1;
pub mod version;
