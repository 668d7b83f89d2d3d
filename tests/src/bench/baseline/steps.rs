//! The steps of the baseline are shell scripts, as an operator would have them. Each prints what it has done and when;
//! rsync's own statistics are among it.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::bench::subject::Stretch;

/// In front of every script.
pub const COMMON: &str = include_str!("common.sh");
/// Once on each host.
pub const SETUP: &str = include_str!("setup.sh");
/// Before the container comes, and after it has gone.
pub const READY: &str = include_str!("ready.sh");
/// The container begins.
pub const START: &str = include_str!("start.sh");
/// The container leaves.
pub const LEAVE: &str = include_str!("leave.sh");
/// The container arrives.
pub const ARRIVE: &str = include_str!("arrive.sh");

/// For one script: the longest holds a dump and two copies of a few GiB.
pub const DEADLINE: Duration = Duration::from_secs(150);

/// What a script told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// When it began and ended, in microseconds since the epoch.
    pub begin_us: u64,
    /// As `begin_us`.
    pub end_us: u64,
    /// What lies between its stamps.
    pub spans: Vec<Stretch>,
    /// What rsync sent.
    pub bytes: u64,
}

/// Reads the stamps (`stamp WHAT SECONDS.MICROSECONDS`) and rsync's statistics.
///
/// # Errors
/// There are no stamps, or they are no numbers.
pub fn read(output: &str) -> Result<Told> {
    let mut stamps = Vec::new();
    let mut bytes = 0;
    for line in output.lines() {
        if let Some(stamp) = line.strip_prefix("stamp ") {
            let (what, time) = stamp.rsplit_once(' ').context("a stamp has a time")?;
            stamps.push((
                what,
                micros(time).with_context(|| format!("{time:?} is no time"))?,
            ));
        } else if let Some(number) = line.strip_prefix("Total bytes sent: ") {
            bytes += number.parse::<u64>().context("rsync's number of bytes")?;
        }
    }
    let (Some((_, begin_us)), Some((_, end_us))) = (stamps.first(), stamps.last()) else {
        anyhow::bail!("the script told nothing: {output:?}");
    };
    let spans = stamps.windows(2).map(|pair| Stretch {
        name: pair[1].0.to_owned(),
        duration_us: pair[1].1.saturating_sub(pair[0].1),
    });
    Ok(Told {
        begin_us: *begin_us,
        end_us: *end_us,
        spans: spans.collect(),
        bytes,
    })
}

fn micros(time: &str) -> Option<u64> {
    let (seconds, fraction) = time.split_once('.')?;
    if fraction.len() != 6 {
        return None;
    }
    format!("{seconds}{fraction}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_lie_between_stamps_and_bytes_add_up() {
        let output = "stamp begin 100.000001\nstamp cut 100.000011\nTotal bytes sent: 70\n\
                      stamp copy images 102.000011\nTotal bytes sent: 5\n";
        let told = read(output).unwrap();
        let spans: Vec<_> = told
            .spans
            .iter()
            .map(|span| (span.name.as_str(), span.duration_us))
            .collect();
        assert_eq!(spans, [("cut", 10), ("copy images", 2_000_000)]);
        assert_eq!((told.bytes, told.end_us - told.begin_us), (75, 2_000_010));
    }

    #[test]
    fn a_script_without_stamps_is_an_error() {
        assert!(read("hello").is_err());
        assert!(read("stamp begin soon").is_err());
        assert!(read("stamp begin 1.5").is_err());
    }
}
