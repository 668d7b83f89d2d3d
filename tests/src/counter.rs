//! The client of the demo: increments a counter on one connection and judges the answers.
//!
//! A move may not lose an increment that was answered, nor do one twice. On one connection that shows at once: the
//! answers are then no longer 1, 2, 3... The client runs inside the testbed's client namespace as `tb-client`; this
//! module holds both its body and the handle that a test has on it.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::programs;
use crate::resp::{Answer, Connection};
use crate::testbed::Host;

/// Longer than any move takes, also one that is in doubt for a while.
const PATIENCE: Duration = Duration::from_secs(180);

/// Stalls that are kept.
const STALLS: usize = 8;

/// What a counting client saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterReport {
    /// The key's value before the first increment.
    pub before: i64,
    /// Increments that were answered.
    pub answers: i64,
    /// The last answer.
    pub last: i64,
    /// Answers that were not one more than the one before: (expected, got), the first few.
    pub wrong: Vec<(i64, i64)>,
    /// The longest times between asking and having the answer, longest first: (microseconds, microseconds since the
    /// first question).
    pub stalls: Vec<(u64, u64)>,
    /// Half of the answers took less than this.
    pub median_us: u64,
    /// How long the client counted.
    pub total_us: u64,
    /// Why the connection ended early; empty when it did not.
    pub error: String,
}

impl CounterReport {
    /// The longest time without an answer, in microseconds.
    #[must_use]
    pub fn longest_stall_us(&self) -> u64 {
        self.stalls.first().map_or(0, |(length, _)| *length)
    }

    /// The report, if every increment was answered once and in order, on one connection.
    ///
    /// # Errors
    /// What went wrong.
    pub fn checked(self) -> Result<Self> {
        if !self.error.is_empty() {
            bail!(
                "the client's connection broke after {} answers: {}",
                self.answers,
                self.error
            );
        }
        if !self.wrong.is_empty() {
            bail!(
                "increments were lost or repeated (expected, got): {:?}",
                self.wrong
            );
        }
        if self.last - self.before != self.answers {
            bail!(
                "{} answers took the counter from {} to {}",
                self.answers,
                self.before,
                self.last
            );
        }
        Ok(self)
    }
}

/// Counts until `stop`, then tells what happened.
///
/// # Errors
/// It cannot connect at all; whatever happens later is in the report.
pub fn count(
    address: SocketAddr,
    key: &str,
    pause: Duration,
    patience: Duration,
    stop: &AtomicBool,
    ready: impl FnOnce(),
) -> Result<CounterReport> {
    let mut connection = Connection::open(address, patience)?;
    let before = match connection.ask(&["GET", key])? {
        Answer::Nothing => 0,
        Answer::Bytes(bytes) => String::from_utf8_lossy(&bytes)
            .parse()
            .context("the key holds no number")?,
        Answer::Number(number) => number,
    };
    ready();
    let mut report = CounterReport {
        before,
        last: before,
        ..CounterReport::default()
    };
    let mut latencies = Vec::new();
    let begun = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        match connection.ask(&["INCR", key]) {
            Ok(Answer::Number(got)) => report.note(got),
            Ok(other) => report.error = format!("{other:?} is no answer to INCR"),
            Err(error) => report.error = format!("{error:#}"),
        }
        let took = micros(asked.elapsed());
        latencies.push(u32::try_from(took).unwrap_or(u32::MAX));
        report.note_stall(took, micros(asked - begun));
        if !report.error.is_empty() {
            break;
        }
        std::thread::sleep(pause);
    }
    report.total_us = micros(begun.elapsed());
    latencies.sort_unstable();
    report.median_us = latencies.get(latencies.len() / 2).copied().unwrap_or(0).into();
    Ok(report)
}

impl CounterReport {
    fn note(&mut self, got: i64) {
        let expected = self.last + 1;
        if got != expected && self.wrong.len() < STALLS {
            self.wrong.push((expected, got));
        }
        self.answers += 1;
        self.last = got;
    }

    fn note_stall(&mut self, took: u64, at: u64) {
        if self.stalls.len() < STALLS || self.stalls.last().is_some_and(|(least, _)| *least < took) {
            let place = self.stalls.partition_point(|(length, _)| *length >= took);
            self.stalls.insert(place, (took, at));
            self.stalls.truncate(STALLS);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// A counting client that runs on a host of the testbed. It ends with its standard input, so also when we die.
#[derive(Debug)]
pub struct Counter {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Counter {
    /// Connects from `host` to a Redis and begins to count.
    ///
    /// # Errors
    /// The client cannot be started or does not get a connection.
    pub fn start(host: &Host, address: SocketAddr, key: &str) -> Result<Self> {
        Self::start_with(host, address, key, PATIENCE)
    }

    /// As [`Counter::start`]; gives up when there is no answer for so long.
    ///
    /// # Errors
    /// As [`Counter::start`].
    pub fn start_with(host: &Host, address: SocketAddr, key: &str, patience: Duration) -> Result<Self> {
        let program = programs::find("tb-client")?;
        let patience = format!("--patience-s={}", patience.as_secs());
        let mut command = host.command(program, ["count", &address.to_string(), key, &patience]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().context("cannot start the client")?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("the client's output is a pipe")?);
        let mut counter = Self { child, stdin, stdout };
        let line = counter.line()?;
        if line != "counting" {
            bail!("the client did not begin to count: {line:?}");
        }
        Ok(counter)
    }

    /// Ends it and takes its report.
    ///
    /// # Errors
    /// The client ended without one.
    pub fn stop(mut self) -> Result<CounterReport> {
        drop(self.stdin.take());
        let line = self.line()?;
        self.child.wait()?;
        serde_json::from_str(&line).with_context(|| format!("the client did not report: {line:?}"))
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout
            .read_line(&mut line)
            .context("cannot read from the client")?;
        Ok(line.trim().to_owned())
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // After a failed test it may wait for an answer that never comes. What entered the namespace is gone then, and
        // the client in there ends with the testbed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Body of `tb-client count`.
///
/// # Errors
/// It cannot connect, or nobody reads its report.
pub fn main(address: SocketAddr, key: &str, pause: Duration, patience: Duration) -> Result<()> {
    let stop = std::sync::Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    std::thread::spawn(move || {
        // The end of stdin is the sign; what comes before it means nothing.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        flag.store(true, Ordering::Relaxed);
    });
    let report = count(address, key, pause, patience, &stop, || println!("counting"))?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_and_a_repeated_increment_are_told() {
        let mut report = CounterReport::default();
        [1, 2, 4, 4].into_iter().for_each(|answer| report.note(answer));
        assert_eq!(report.wrong, [(3, 4), (5, 4)]);
        assert!(report.checked().is_err());
    }

    #[test]
    fn a_broken_connection_is_no_success() {
        let report = CounterReport {
            error: "reset".to_owned(),
            ..CounterReport::default()
        };
        assert!(report.checked().unwrap_err().to_string().contains("reset"));
    }

    #[test]
    fn answers_in_order_are_a_success() {
        let mut report = CounterReport {
            before: 7,
            last: 7,
            ..CounterReport::default()
        };
        [8, 9].into_iter().for_each(|answer| report.note(answer));
        assert_eq!(report.checked().unwrap().answers, 2);
    }

    #[test]
    fn the_longest_stalls_are_kept_in_order() {
        let mut report = CounterReport::default();
        (1..=20).for_each(|number| report.note_stall(number * 7 % 20, number));
        let lengths: Vec<_> = report.stalls.iter().map(|stall| stall.0).collect();
        assert_eq!(lengths, [19, 18, 17, 16, 15, 14, 13, 12]);
    }
}
