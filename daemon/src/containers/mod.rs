//! The life cycle of containers on this host.
//!
//! In reading order: `spec` checks what a user asks for, `run` makes it, `verbs` is what users do to it then, `output` what
//! they see of it, `watch` what happens when it ends, `dismantle` how it is taken apart, `recover` how everything is found again when
//! the daemon starts. `handover` and `adopt` are for migrations: what is done at the source and at the destination.
//! `allowed` says which verb is allowed in which state. `engine` holds the parts together.
//!
//! Verbs take a container's lock and look at its state under it; a container's end is recorded without the lock, in one
//! transaction that changes nothing unless the container was running. A future that is dropped in the middle of a verb
//! leaves the container half-way: run verbs to their end on a task of their own.

mod adopt;
mod allowed;
mod bundle;
mod dismantle;
mod engine;
mod error;
mod handover;
mod locks;
mod lookup;
mod recover;
mod run;
mod seed;
mod spec;
mod verbs;
mod watch;

pub use allowed::{Answer, Verb};
pub use bundle::FileError;
pub use engine::{Containers, Found, Parts};
pub use error::{ContainerError, Leftovers, PartError, StepFailure, chain, state_word};
pub use handover::{Anatomy, MountedVolume, VolumeFate};
pub use recover::Recovered;
pub use seed::SeedError;
pub use spec::SpecError;
