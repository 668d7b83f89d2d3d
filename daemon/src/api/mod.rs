//! The service on the daemon's socket: thin. Each call parses what it was given, calls the part that knows, and turns its
//! answer into a message or its error into a status. One file a noun; `service` is the list of all calls, `status` the
//! one place that chooses codes.

mod acl;
mod containers;
mod exec;
mod hosts;
mod images;
mod info;
mod logs;
mod migrations;
mod networks;
mod service;
mod socket;
mod status;
mod volumes;

pub use service::Api;
pub use socket::{SocketError, listen};
