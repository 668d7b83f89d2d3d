//! Filling the memory of a container that runs already: `tranship-filler`, who starts it, and who holds what it needs.
//!
//! ```text
//!   daemon                filler                       CRIU, then the tasks              monitor (holder)
//!     | -- job on stdin --> |                                                                |
//!     | <-- listening ----- | <--------------------------------------------- connects ------ |
//!     |                     | <-- connects ---------------- |                                |
//!     |                     | reads store and images        |                                |
//!     |                     | <-- pid, userfaultfd -------- | -- keep N, userfaultfd ------> |
//!     |                     | hot pages, faults ----------> |                                |
//!     | <-- restored ------ | <-- finished ---------------- | runs                           |
//!     |                     | faults first, then all -----> |                                |
//!     |                     |                                 -- release N, complete ------> |
//!     | <-- complete ------ | ends
//! ```
//! One thread answers ([`session`]), a few fill ([`crew`]). What is missing of a process is [`outstanding`]'s to know; where
//! its content is, [`content`]'s. Before "finished" nothing of the store is given back, so that a restore which is given up can
//! be tried again from it.

mod content;
mod crew;
mod holder;
mod lazy;
mod mark;
mod outstanding;
pub mod program;
mod session;
mod space;
mod start;
mod wire;

pub use holder::{Holder, Memory};
pub use mark::{FillerProcess, filling};
pub use start::{FillError, FillRequest, Filler, FillerHandle};
pub use wire::Figures;
