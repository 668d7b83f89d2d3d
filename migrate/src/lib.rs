//! The migration protocol: what a source and a destination do, phase by phase, and who owns the container when.
//!
//! In reading order: [`phase`] names the phases, [`trees`] what is moved, [`host`] what a daemon does for its role,
//! [`control`] the messages between the roles, [`transport`] the bulk streams, [`preflight`] the reasons to refuse,
//! [`handoff`] the journal's steps and what they mean after a crash, [`source`] and [`destination`] the two roles,
//! [`rounds`] memory that is sent while its owner runs, [`convergence`] when it is frozen, [`timings`] what was measured on
//! the way.
//!
//! This crate knows no gRPC, no database and no runtime of containers: a daemon hands all that in through the traits
//! of [`host`] and [`control`].

pub mod chain;
pub mod control;
pub mod convergence;
pub mod deadlines;
pub mod destination;
pub mod error;
pub mod handoff;
pub mod host;
pub mod phase;
pub mod preflight;
pub mod rounds;
pub mod source;
pub mod timings;
pub mod transport;
pub mod trees;
