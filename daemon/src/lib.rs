//! The parts of `transhipd`, one host's daemon.
//!
//! In reading order: [`config`] is what an operator decides, [`observe`] the log, [`registry`] what must survive a
//! restart, [`peers`] the cluster: certificates, the listener, the hosts that may connect.

pub mod clock;
pub mod config;
pub mod image;
pub mod network;
pub mod observe;
pub mod peers;
pub mod registry;
mod sys;
