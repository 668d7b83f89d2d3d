//! What `make bench` measures: the same container moved by Tranship and by the tools that were there before it.
//!
//! ```text
//!   scenario ──> for each of its movers: a container of its own, filled, with clients who wait for its answers
//!   moves    ──> one of the one, one of the other, one of the one... in the same minutes on the same machine
//!   figures  ──> median, p95, p99 of each, and the ratio of the medians
//! ```
//!
//! In reading order: [`scenario`] says what is moved and by whom, [`load`] what runs in the container, [`subject`] what a
//! mover has to offer, [`tranship`], [`baseline`] and [`tls`] are the three, [`watcher`] what those have to offer who wait
//! meanwhile, [`client`] and [`busy`] are two of them, [`course`] lets the movers take turns, [`figures`] makes numbers of it,
//! [`goals`] holds them against what is wanted, [`machine`] describes where it was, [`report`] writes it down. [`timed`]
//! and [`memory`] are tools.

pub mod baseline;
pub mod busy;
pub mod client;
pub mod course;
pub mod figures;
pub mod goals;
pub mod load;
pub mod machine;
pub mod memory;
pub mod report;
pub mod scenario;
pub mod subject;
pub mod timed;
pub mod tls;
pub mod tranship;
pub mod watcher;
