//! The monitor of one container, and what it and the daemon say to each other.
//!
//! `tranship-monitor` is a small program that outlives the daemon. It is the reaper of the container's first process,
//! holds the reading ends of its standard output and error, writes the log and, at the end, how the container ended.
//!
//! ```text
//!   daemon                     monitor                                     runc                container
//!     | -- Job on stdin ----------> |
//!     |                             | -- create --------------------------> | -- fork ----------> | waits
//!     | <-- Report::RuncStarted --- |                                       | exits 0             |
//!     |                             | <- - - - - - becomes the monitor's child - - - - - - - - - -|
//!     | <-- Report::Created ------- |
//!     |  (attaches the network)     |
//!     | -- START on stdin --------> | writes the pid to monitor.json
//!     |                             | -- start ---------------------------> | ------------------> | runs
//!     | <-- Report::Running ------- |                                                             | writes, ends
//!     |  (may end, may come back)   | reaps it, drains the pipes, runc delete, writes `exit`, ends
//! ```
//!
//! A restore is `runc restore` in place of create and start; who holds it in the middle is not the monitor's business. If
//! the daemon goes away before it has said START, the monitor sees its standard input end and removes what was created.
//!
//! `job` and `record` are the words, `program` what the binary does: `program::run` reads from top to bottom as above.
//!
//! If the monitor itself is killed, the container goes on: nothing ties its life to the monitor's. It has lost its reader,
//! so what it writes from then on fails with EPIPE, and nobody learns its exit status: `find` says that it runs
//! unmonitored, and `wait` answers without a code. Deliberately absent: a parent-death signal, which would turn the loss of a log
//! into the loss of a workload.

mod job;
pub mod program;
mod record;

pub use job::{Action, Job, Report};
pub(super) use job::{MAX_REPORT_BYTES, START};
pub(super) use record::read_record;
#[cfg(test)]
pub(super) use record::write_record;
pub use record::{ExitStatus, MonitorRecord, ProcessId};
