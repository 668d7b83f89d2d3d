//! Docker's words through the real command line, on one host: what a user types does what he is used to.

mod flags;
mod inside;
mod life;
mod show;
mod store;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use tranship_tests::command::Finished;
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::{Host, Options};

/// For something in a container to happen.
const SOON: Duration = Duration::from_secs(10);

/// One host, with the image busybox.
pub fn begin() -> Result<Scenario> {
    let options = Options {
        hosts: 1,
        ..Options::default()
    };
    Scenario::begin_with(&options, &["busybox"])
}

/// Runs a script in a container without a network.
fn start(host: &Host, name: &str, script: &str) -> Result<()> {
    let options = [
        "run",
        "-d",
        "--name",
        name,
        "--network",
        "none",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    host.tranship(&options)?;
    Ok(())
}

/// The words of a command line; behind an `@` everything is one word.
fn words<'a>(verb: &'a str, rest: &'a str) -> Vec<&'a str> {
    let verb = verb.split_whitespace();
    match rest.strip_prefix('@') {
        Some(script) => verb.chain([script]).collect(),
        None => verb.chain(rest.split_whitespace()).collect(),
    }
}

/// Starts a command with a pipe at each end.
pub fn piped(command: &mut Command) -> Result<Child> {
    let command = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    Ok(command.spawn()?)
}

/// A command ended with this exit code and said this.
fn failed(answer: &Finished, code: i32, word: &str) -> Result<()> {
    let said = answer.errors();
    ensure!(
        answer.status.code() == Some(code) && said.contains(word),
        "expected exit code {code} and {word:?}, got {} and {said:?}",
        answer.status
    );
    Ok(())
}
