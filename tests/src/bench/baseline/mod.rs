//! The other mover: `runc checkpoint`, `rsync` and `runc restore`, as an operator would string them together.
//!
//! It is given what helps it: everything at the destination is there before the container stops (root file system, network
//! namespace, link), images lie on a tmpfs on both sides, rsync talks to a daemon without encryption, its network
//! namespace is one that CRIU need not dump, and there is no user namespace. The container keeps its address and its MAC,
//! so that its client's connection survives here too.

mod config;
mod mover;
mod steps;

pub use mover::Baseline;
