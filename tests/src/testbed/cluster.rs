//! Makes the hosts one cluster, by the commands an operator would type.

use anyhow::{Context, Result};

use super::daemon;
use super::host::Host;
use super::layout::{self, PEER_PORT};
use crate::command;

/// `host init` on the first host, and `host token` there and `host join` on each other one.
///
/// # Errors
/// A daemon refuses; the message is the command line's own.
pub fn form(hosts: &[Host]) -> Result<()> {
    let Some((first, others)) = hosts.split_first() else {
        return Ok(());
    };
    let tranship = |host: &Host, arguments: &[&str]| {
        let finished = command::succeed(&mut daemon::cli(host, arguments)?, command::SHORT);
        finished.with_context(|| format!("on host {}", host.name()))
    };
    tranship(
        first,
        &[
            "host",
            "init",
            "--name",
            first.name(),
            "--advertise",
            &advertised(first)?,
        ],
    )?;
    for host in others {
        let token = tranship(first, &["-q", "host", "token"])?.text();
        tranship(
            host,
            &[
                "host",
                "join",
                "--name",
                host.name(),
                "--advertise",
                &advertised(host)?,
                &token,
            ],
        )?;
    }
    Ok(())
}

fn advertised(host: &Host) -> Result<String> {
    let address = layout::address(host.name()).context("a host has an address")?;
    Ok(format!("{address}:{PEER_PORT}"))
}
