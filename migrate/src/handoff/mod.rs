//! The ownership change: who may run the container, decided without sockets, clocks or files.
//!
//! ```text
//! source:       intent -> freezing -> COMMITTED -> done          destination:  reserved -> prepared -> ready -> resuming -> running
//!                 |          |                                                    |           |          |
//!                 v          v                                                    v           v          v
//!               aborted   rolled back                                          dropped     dropped    in doubt: ask the source
//! ```
//!
//! There is one durable record that decides, `committed` at the source. Before it only the source may run the
//! container; after it only the destination may. A destination that is ready and has not heard does not know which,
//! and must not guess: it asks.
//!
//! Where a cluster has an arbiter, the record is there, and either side may ask for it to be made, the source for both answers:
//! whoever is first has decided. A source that may have been handed to a destination that is ready does not let the
//! container run before the arbiter has said that it is the source's; a destination whose source is silent asks for it.
//!
//! Behind the commit there are two ways back, each with a record of its own. A destination that cannot bring the container to run, and
//! has certainly not run it, gives it back (`given_back`, then `taken_back` at the source, under a further epoch). And
//! where a host is gone for ever a person decides ([`Resolution`]): `taken_back` at the source, `taken_over` or `given_back` at the
//! destination. The other host is told when it comes back, and obeys ([`obedience`]), also for those it has handed the container on to.
//!
//! [`SourceHandoff`] and [`DestinationHandoff`] are the two roles as machines: what they are told is an event, what they
//! answer is a list of effects, to be carried out in that order. What comes of the last one is told to them as the next event;
//! nothing comes of those before it. The roles of this crate and the daemon's recovery do nothing about ownership that a
//! machine has not told them to; the model in `migrate/tests/model.rs` explores what two or three of these same machines do
//! to each other when everything fails.
//!
//! [`journal`] has the steps, [`rules`] what a host answers when it is asked, [`history`] what both journals may say together.

pub mod destination;
pub mod history;
pub mod journal;
pub mod rules;
pub mod source;

pub use destination::{
    DestinationEffect, DestinationEvent, DestinationHandoff, DestinationOutcome, Inspection,
};
pub use history::{Contradiction, History, Owner};
pub use journal::{DestinationStep, SourceStep};
pub use rules::{
    DestinationSays, Obedience, Refusal, Resolution, Stay, Verdict, admit, destination_says, is_handed_over,
    obedience, verdict,
};
pub use source::{Found, SourceEffect, SourceEvent, SourceHandoff, SourceOutcome};

/// Names everything that is handed over: only what has this digest at both ends may be resumed.
pub type Digest = [u8; 32];

/// What the roles say to each other about ownership. What else their messages carry decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Message {
    /// To the destination: take this container's name and address; it would own this epoch.
    Reserve {
        /// The container's epoch here, plus one.
        epoch: u64,
    },
    /// To the source: they are taken.
    Reserved,
    /// To the destination: everything was sent.
    Drained {
        /// What it adds up to.
        digest: Digest,
    },
    /// To the source: everything has arrived and was verified.
    Prepared {
        /// What it adds up to.
        digest: Digest,
    },
    /// To the source: the tasks are restored and held.
    Ready,
    /// To the destination: the commit is on record.
    Go {
        /// The epoch the destination owns.
        epoch: u64,
        /// What may be resumed.
        digest: Digest,
    },
    /// To the source: the container runs, and its copy may go.
    Running,
    /// To the destination: forget it. The source has not committed, and never will.
    Abort,
    /// To the source: it failed here.
    Failed,
    /// To the source: it was handed over, has not run here, and never will.
    GivenBack,
}
