//! What `make bench` measures: the same container moved by Tranship and by the tools that were there before it.
//!
//! ```text
//!   scenario ──> for each of [tranship, runc+rsync]: a container of its own, filled, one client on one connection
//!   moves    ──> one of the one, one of the other, one of the one... in the same minutes on the same machine
//!   figures  ──> median, p95, max of each, and the ratio of the medians
//! ```
//!
//! In reading order: [`scenario`] says what is moved, [`subject`] what a mover has to offer, [`tranship`] and
//! [`baseline`] are the two, [`client`] is the one who waits meanwhile, [`course`] lets them take turns, [`figures`] makes
//! numbers of it, [`machine`] describes where it was, [`report`] writes it down. [`timed`]
//! is a tool.

pub mod baseline;
pub mod client;
pub mod course;
pub mod figures;
pub mod machine;
pub mod report;
pub mod scenario;
pub mod subject;
pub mod timed;
pub mod tranship;
