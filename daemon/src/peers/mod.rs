//! The other hosts of the cluster.

pub mod address;
pub mod names;
