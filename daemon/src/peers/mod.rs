//! The other hosts of the cluster.

pub mod address;
pub mod generation;
pub mod identity;
pub mod names;
pub mod pki;
pub mod store;

pub use store::{Admission, Admitted, HostStore, HostStoreError};
