//! Migrations on this host: `migrate`'s roles, played with this daemon's containers, networks, peers and registry.
//!
//! In reading order: [`conductor`] starts and follows migrations for the API, [`preflight`] collects what both hosts
//! must know before anything is touched, [`source_host`] and [`destination_host`] do what the roles ask for, [`standby`] is a restore that
//! waits for its images, [`sink`] is where received trees go, [`memory`] both ends of a container's memory, [`mode`] how it leaves this host, [`rounds`] the images of its pre-dumps, [`cpu`] slows a container down, [`awake`] keeps processors from sleeping, [`log`] takes a container's log along,
//! [`control`] carries their messages, [`service`] answers other hosts, [`recover`] finishes what a daemon before this one
//! left, [`settle`] the source's part of it, [`decider`] knows who decides, [`questions`] is what hosts ask each other then, [`doubts`] what neither can answer, [`resolve`] a person's decision, [`obey`] who was decided against, [`faults`] has it fail in tests, [`plan`] is what was asked for and what is known beforehand, [`board`] shows what is under way, [`outcome`] says it in words.

mod awake;
pub mod board;
pub mod conductor;
pub mod control;
mod cpu;
mod decider;
mod destination_host;
mod doubts;
mod faults;
mod held;
mod history;
pub mod journal;
mod log;
mod memory;
pub mod mode;
mod obey;
mod outcome;
mod plan;
mod preflight;
mod questions;
mod records;
mod recover;
mod resolve;
mod rounds;
mod service;
mod settle;
mod sink;
mod source_host;
mod standby;
mod usage;

pub use conductor::{Conductor, ConductorError};
#[cfg(feature = "fault-points")]
pub use faults::obey_plans;
pub(crate) use faults::told_boot_id;
