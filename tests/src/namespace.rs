//! Lets a thread of a test or of the bench be on one of the testbed's hosts, as far as the network goes.
//!
//! A client that measures microseconds should not be started by another program, and sockets belong to the namespace
//! they were made in. So a thread moves there before it connects.

use std::fs::File;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::testbed::Host;

/// Moves the calling thread into the host's network namespace, for good: call it in a thread of its own.
///
/// # Errors
/// The host is gone.
pub fn enter_network(host: &Host) -> Result<()> {
    let path = format!("/proc/{}/ns/net", host.holder.pid);
    let namespace = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .with_context(|| format!("cannot enter the network of host {}", host.name()))
}
