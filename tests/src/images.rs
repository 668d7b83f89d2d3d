//! The images that `make setup` builds, and the containers that tests make of them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use crate::command::{self, command};
use crate::programs;
use crate::testbed::Host;
use crate::tranship::wait_for;

/// Where `make setup` puts things unless told otherwise.
const DEFAULT_PREFIX: &str = "/opt/tranship";

/// Port of Redis.
pub const REDIS_PORT: u16 = 6379;

/// The image of the program `workload`, which is made here.
pub const WORKLOAD: &str = "workload";

/// Port at which a workload can be asked.
pub const QUESTION_PORT: u16 = 7001;

/// Port at which a workload counts requests.
pub const COUNT_PORT: u16 = 7002;

/// Path of an image's archive, such as that of `redis`.
///
/// # Errors
/// It has not been built.
pub fn archive(name: &str) -> Result<PathBuf> {
    if name == WORKLOAD {
        workload_archive()
    } else {
        built(name)
    }
}

fn built(name: &str) -> Result<PathBuf> {
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

/// The image of busybox with the program `workload` and its libraries, beside that program; made again when one of the
/// two is newer.
fn workload_archive() -> Result<PathBuf> {
    let (program, base) = (programs::find(WORKLOAD)?, built("busybox")?);
    let archive = program.with_extension("image.tar");
    let is_newer = |than: &Path| Ok::<_, anyhow::Error>(modified(&archive)? > modified(than)?);
    if archive.exists() && is_newer(&program)? && is_newer(&base)? {
        return Ok(archive);
    }
    let folder = tempfile::tempdir().context("cannot make a temporary directory")?;
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    let run = |line: &mut std::process::Command| command::succeed(line, command::SHORT);
    run(command("tar", ["-xf"]).arg(&base).arg("-C").arg(&root))?;
    fs::copy(&program, root.join("usr/bin").join(WORKLOAD)).context("cannot copy the workload")?;
    let libraries = run(command("ldd", [&program]).env("LC_ALL", "C"))?.text();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let copy = root.join(library.trim_start_matches('/'));
        let parent = copy.parent().context("a library is in a directory")?;
        fs::create_dir_all(parent)?;
        fs::copy(library, &copy).with_context(|| format!("cannot copy {library}"))?;
    }
    let made = folder.path().join("image.tar");
    run(command("tar", ["-c", "--numeric-owner", "-f"])
        .arg(&made)
        .arg("-C")
        .arg(&root)
        .arg("."))?;
    // Beside the place where it goes, so that it appears there whole.
    let aside = program.with_extension(format!("image.{}", std::process::id()));
    fs::copy(&made, &aside).with_context(|| format!("cannot write {}", aside.display()))?;
    fs::rename(&aside, &archive)?;
    Ok(archive)
}

fn modified(path: &Path) -> Result<SystemTime> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    Ok(metadata.modified()?)
}

/// Runs a job of the program `workload`, whose image the host has.
///
/// # Errors
/// The daemon refuses it.
pub fn run_workload(host: &Host, name: &str, job: &[&str]) -> Result<()> {
    run_workload_with(host, name, &[], job)
}

/// The same, with more options of `tranship run`.
///
/// # Errors
/// The daemon refuses it.
pub fn run_workload_with(host: &Host, name: &str, options: &[&str], job: &[&str]) -> Result<()> {
    let run = ["run", "-d", "--name", name, "--network", "l2"];
    host.tranship(&[&run, options, &[WORKLOAD, WORKLOAD], job].concat())?;
    Ok(())
}

/// Asks a job from another host, and answers what it says after `ok`.
///
/// # Errors
/// It has found something wrong, or does not answer within `patience`.
pub fn ask_workload(from: &Host, address: SocketAddr, patience: Duration) -> Result<String> {
    let program = programs::find("tb-client")?;
    let arguments = [
        "ask".to_owned(),
        address.to_string(),
        patience.as_secs().to_string(),
    ];
    let answer = from.finish(program, arguments, patience + command::SHORT)?;
    match answer.text().strip_prefix("ok ") {
        Some(rest) => Ok(rest.to_owned()),
        None => bail!("the workload says {:?} {}", answer.text(), answer.errors()),
    }
}

/// Runs a Redis that writes every change to a volume, and waits until it answers.
///
/// # Errors
/// The daemon refuses it, or it does not answer within 10 s.
pub fn run_redis(host: &Host, name: &str, volume: &str, client: &Host) -> Result<()> {
    run_redis_with(host, name, volume, client, &[])
}

/// The same, with more words on Redis's command line.
///
/// # Errors
/// As [`run_redis`].
pub fn run_redis_with(host: &Host, name: &str, volume: &str, client: &Host, more: &[&str]) -> Result<()> {
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
    host.tranship(&[&options[..], &command[..], more].concat())?;
    let address = host.address_of(name, REDIS_PORT)?;
    wait_for("Redis to answer", Duration::from_secs(10), || {
        Ok(ask_redis(client, address, "PING")? == "PONG")
    })
}

/// Asks a Redis something from another host, and answers what it says; nothing where it does not answer.
///
/// # Errors
/// The program that asks cannot be started or does not end.
pub fn ask_redis(from: &Host, address: SocketAddr, words: &str) -> Result<String> {
    let program = programs::find("tb-client")?;
    let mut arguments = vec!["redis".to_owned(), address.to_string()];
    arguments.extend(words.split(' ').map(str::to_owned));
    Ok(from.finish(program, arguments, command::SHORT)?.text())
}
