//! A process tree as one thing: freeze it, dump its state with CRIU, restore it and hold it before it runs.
//!
//! CRIU is driven through runc, which keeps its own books right, and through [`criu::Relay`], which lets the daemon
//! hold a dump or a restore at the points where a migration has to decide. Everything that waits has a deadline.

pub mod cgroup;
pub mod criu;
pub mod freeze;
pub mod memory;
mod packet;
pub mod process_tree;
mod sys;
pub mod throttle;
pub mod version;

pub use sys::clock::monotonic_us;
