//! Running containers: from a configuration to a process, and everything one does with it until it has ended.
//!
//! ```text
//!   spec      what was asked for  ->  config.json
//!   start     config.json         ->  a monitor, and by it a container in two steps (its network comes in between);
//!                                     also by restore
//!   monitor   outlives the daemon: stdio, exit status
//!   find      after a restart     ->  running, paused, ended, gone
//!   exec      a further process inside; its life is tied to the client that asked for it
//!   logs      what it wrote
//!   wait      how it ended
//! ```
//!
//! `runc` is always called as a program, and only here and in the monitor. What is known of a running container is in
//! its bundle (`monitor.json`, `exit`) and in the kernel, never in the daemon's memory: a daemon that was killed finds the
//! same as one that was not.

mod cgroup;
mod control;
mod error;
pub mod exec;
mod find;
mod image_config;
pub mod logs;
pub mod monitor;
mod paths;
mod process;
mod runc;
mod signal;
pub mod spec;
mod start;
mod sys;

pub use error::{ExecError, LogError, RuncError, StartError, WaitError};
pub use find::{Found, find, wait};
pub use image_config::{ImageConfig, ImageConfigError};
pub use monitor::ExitStatus;
pub use paths::ContainerPaths;
pub use runc::{RuncState, RuncStatus, Runtime};
pub use signal::{UnknownSignal, parse_signal, stop_signal};
pub use start::{Created, RestoreHandle, RestoreRequest, Started};
