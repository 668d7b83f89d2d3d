//! The parts of `transhipd`, one host's daemon.
//!
//! In reading order: [`config`] is what an operator decides, [`observe`] the log, [`registry`] what must survive a
//! restart, [`peers`] the cluster: certificates, the listener, the hosts that may connect, [`arbiter`] who decides a handoff.

pub mod api;
pub mod arbiter;
pub mod blocking;
pub mod boot;
pub mod clock;
pub mod config;
pub mod containers;
pub mod daemon;
pub mod etcd;
pub mod guard;
pub mod image;
pub mod lock;
pub mod migration;
pub mod network;
pub mod notify;
pub mod observe;
pub mod paths;
pub mod peers;
pub mod program;
pub mod random;
pub mod registry;
pub mod runtime;
pub mod serve;
pub mod storage;
mod sys;
pub use sys::heap;
pub mod volumes;
