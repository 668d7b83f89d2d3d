//! The images that `make setup` builds, and the containers that tests make of them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::testbed::Host;
use crate::tranship::wait_for;

/// Where `make setup` puts things unless told otherwise.
const DEFAULT_PREFIX: &str = "/opt/tranship";

/// Port of Redis.
pub const REDIS_PORT: u16 = 6379;

/// Path of an image's archive, such as that of `redis`.
///
/// # Errors
/// It has not been built.
pub fn archive(name: &str) -> Result<PathBuf> {
    let prefix = std::env::var_os("TRANSHIP_PREFIX").unwrap_or_else(|| DEFAULT_PREFIX.into());
    let path = PathBuf::from(prefix).join("images").join(format!("{name}.tar"));
    if !path.is_file() {
        bail!("{} is not there: run `make setup`", path.display());
    }
    Ok(path)
}

/// Imports an image by its own name.
///
/// # Errors
/// It has not been built, or the daemon refuses it.
pub fn import(host: &Host, name: &str) -> Result<()> {
    let archive = archive(name)?;
    host.tranship(&["-q", "image", "import", &archive.to_string_lossy(), name])?;
    Ok(())
}

/// Runs a Redis that writes every change to a volume, and waits until it answers.
///
/// # Errors
/// The daemon refuses it, or it does not answer within 10 s.
pub fn run_redis(host: &Host, name: &str, volume: &str, client: &Host) -> Result<()> {
    let mount = format!("{volume}:/var/lib/redis");
    let options = [
        "run",
        "-d",
        "--name",
        name,
        "--network",
        "l2",
        "--user",
        "redis",
        "-v",
        &mount,
        "redis",
    ];
    let command = [
        "redis-server",
        "--dir",
        "/var/lib/redis",
        "--appendonly",
        "yes",
        "--protected-mode",
        "no",
    ];
    host.tranship(&[&options[..], &command[..]].concat())?;
    let address = host.address_of(name, REDIS_PORT)?.to_string();
    let program = crate::programs::find("tb-client")?;
    wait_for("Redis to answer", Duration::from_secs(10), || {
        let asked = client.finish(&program, ["redis", &address, "PING"], Duration::from_secs(5))?;
        Ok(asked.text() == "PONG")
    })
}
