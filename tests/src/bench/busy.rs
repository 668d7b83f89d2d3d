//! redis-benchmark as the one who waits: how many requests it gets through, before a move and while memory travels.
//!
//! It has one connection, so that it and Redis keep one core busy between them: both hosts are on the same machine, and what
//! migrates a container has a core too on any machine that is not worn out.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::client;
use super::load;
use super::watcher::{Course, Noticed, Watcher};
use crate::command;
use crate::namespace::enter_network;
use crate::testbed::Host;

/// redis-benchmark tells its rate of the last quarter of a second.
const WINDOW: Duration = Duration::from_millis(250);
/// How long it is watched before a move.
const BEFORE: Duration = Duration::from_secs(3);
/// What it needs to be under way.
const WARM_UP: Duration = Duration::from_millis(750);

/// redis-benchmark, started anew for each move.
#[derive(Debug)]
pub struct Busy {
    host: Host,
    address: SocketAddr,
    run: Option<Run>,
    _awake: File,
}

#[derive(Debug)]
struct Run {
    child: Child,
    begun: Instant,
    samples: Arc<Mutex<Vec<Sample>>>,
}

/// A rate of the window that ended then.
#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    per_second: u64,
}

impl Busy {
    /// Fills Redis.
    ///
    /// # Errors
    /// It does not answer or does not take the data.
    pub fn start(host: &Host, address: SocketAddr, mib: usize) -> Result<Self> {
        let inside = host.clone();
        let filled = std::thread::spawn(move || {
            enter_network(&inside)?;
            load::fill(&mut client::connect(address)?, mib)
        });
        filled.join().ok().context("filling redis panicked")??;
        Ok(Self {
            host: host.clone(),
            address,
            run: None,
            _awake: keep_awake()?,
        })
    }
}

/// Processors do not sleep as long as this is open. Between a client and a server who answer each other one of the two always
/// waits for the other, and a virtual machine's processor that has gone to sleep takes longer to wake than Redis to answer: as soon as
/// anything else keeps them awake, a copy for example, both are twice as fast.
fn keep_awake() -> Result<File> {
    let device = "/dev/cpu_dma_latency";
    let held = File::options().write(true).open(device).and_then(|mut file| {
        file.write_all(&0_i32.to_ne_bytes())?;
        Ok(file)
    });
    held.with_context(|| format!("cannot keep the processors awake through {device}"))
}

impl Watcher for Busy {
    fn begin(&mut self) -> Result<()> {
        let (ip, port) = (self.address.ip().to_string(), self.address.port().to_string());
        let line = "-t set -c 1 -d 64 -r 100000 -n 1000000000";
        let mut command = command::command("redis-benchmark", ["-h", &ip, "-p", &port]);
        command
            .args(line.split(' '))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let inside = self.host.clone();
        // A child of this process, not of one that would have to pass on that it is to end.
        let spawned = std::thread::spawn(move || {
            enter_network(&inside)?;
            command.spawn().context("cannot start redis-benchmark")
        });
        let mut child = spawned
            .join()
            .ok()
            .context("starting redis-benchmark panicked")??;
        let output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        let samples = Arc::new(Mutex::new(Vec::new()));
        let theirs = samples.clone();
        std::thread::spawn(move || {
            for line in output.split(b'\r').map_while(Result::ok) {
                if let Some(per_second) = rate(&String::from_utf8_lossy(&line)) {
                    let at = Instant::now();
                    theirs
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(Sample { at, per_second });
                }
            }
        });
        self.run = Some(Run {
            child,
            begun: Instant::now(),
            samples,
        });
        std::thread::sleep(WARM_UP + BEFORE);
        Ok(())
    }

    fn finish(&mut self, course: &Course) -> Result<Noticed> {
        let mut run = self.run.take().context("redis-benchmark runs")?;
        // It is still at it, on the connection that it had before.
        std::thread::sleep(2 * WINDOW);
        ensure!(
            run.child.try_wait()?.is_none(),
            "redis-benchmark lost its connection"
        );
        let samples = run.samples.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(
            samples.last().is_some_and(|last| last.per_second > 0),
            "redis-benchmark got no more answers after the move"
        );
        let freeze = course.begun + Duration::from_micros(course.before_freeze_us);
        Ok(Noticed {
            stall_us: None,
            rate_before: mean(&samples, run.begun + WARM_UP, course.begun),
            rate_meanwhile: mean(&samples, course.begun, freeze),
        })
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The rate that a line tells: `SET: rps=81234.5 (overall: ...`.
fn rate(line: &str) -> Option<u64> {
    let (_, rest) = line.split_once("rps=")?;
    rest.split(['.', ' ']).next()?.parse().ok()
}

/// Of the windows that lie between two moments.
fn mean(samples: &[Sample], from: Instant, until: Instant) -> Option<u64> {
    let inside = samples
        .iter()
        .filter(|sample| sample.at >= from + WINDOW && sample.at <= until);
    let rates: Vec<u64> = inside.map(|sample| sample.per_second).collect();
    let sum: u64 = rates.iter().sum();
    sum.checked_div(rates.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_its_rate() {
        assert_eq!(rate("SET: rps=81234.5 (overall: 1.0) avg_msec=0.1"), Some(81234));
        assert_eq!(rate("   "), None);
    }

    #[test]
    fn only_whole_windows_count() {
        let begun = Instant::now();
        let sample = |ms, per_second| Sample {
            at: begun + Duration::from_millis(ms),
            per_second,
        };
        let samples = [sample(100, 1), sample(300, 10), sample(600, 20), sample(900, 1)];
        let until = begun + Duration::from_millis(800);
        assert_eq!(mean(&samples, begun, until), Some(15));
        assert_eq!(mean(&samples, until, until), None);
    }
}
