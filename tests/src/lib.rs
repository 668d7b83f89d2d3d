//! What the end-to-end tests, the demo and the benchmarks share.
//!
//! [`testbed`] stands in for several machines on one, [`command`] and [`programs`] run things.

pub mod command;
pub mod programs;
pub mod testbed;
