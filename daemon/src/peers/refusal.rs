//! Connections that were not let in: why, and how many.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::hosts::NotAdmitted;
use super::identity::IdentityError;
use super::streams::HelloError;

/// Why a connection was closed before anybody was asked to serve it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// More handshakes or new hosts at once than are served.
    #[error("too many connections at once")]
    Busy,
    /// The client took too long.
    #[error("nothing came of the connection within {} s", .0.as_secs())]
    Slow(Duration),
    /// No TLS 1.3, none of our protocols, or a certificate that is not genuine.
    #[error("the TLS handshake failed")]
    Handshake(#[source] io::Error),
    /// TLS, but the client did not say for what.
    #[error("the client chose none of our protocols")]
    Protocol,
    /// A genuine certificate that names no host.
    #[error("the certificate names no host")]
    Certificate(#[from] IdentityError),
    /// A genuine certificate of a host that does not belong to the cluster.
    #[error(transparent)]
    Host(#[from] NotAdmitted),
    /// A data stream needs a certificate.
    #[error("a data stream without a certificate")]
    Anonymous,
    /// A data stream that nobody expects.
    #[error("the data stream was refused")]
    Greeting(#[from] HelloError),
}

/// Names of the counters, one per variant of [`Refusal`].
const LABELS: [&str; 8] = [
    "busy",
    "slow",
    "handshake",
    "protocol",
    "certificate",
    "host",
    "anonymous",
    "greeting",
];

impl Refusal {
    fn index(&self) -> usize {
        match self {
            Self::Busy => 0,
            Self::Slow(_) => 1,
            Self::Handshake(_) => 2,
            Self::Protocol => 3,
            Self::Certificate(_) => 4,
            Self::Host(_) => 5,
            Self::Anonymous => 6,
            Self::Greeting(_) => 7,
        }
    }

    /// The name it is counted under.
    #[must_use]
    pub fn label(&self) -> &'static str {
        LABELS[self.index()]
    }
}

/// How many connections were refused since the daemon started, by reason.
#[derive(Debug, Default)]
pub struct Refusals([AtomicU64; LABELS.len()]);

impl Refusals {
    /// Counts and logs one.
    pub fn record(&self, remote: SocketAddr, refusal: &Refusal) {
        self.0[refusal.index()].fetch_add(1, Ordering::Relaxed);
        let error = chain(refusal);
        tracing::warn!(peer = %remote, reason = refusal.label(), error, "peer connection refused");
    }

    /// How many were refused for the reason of that name.
    #[must_use]
    pub fn count(&self, label: &str) -> u64 {
        self.snapshot()
            .find(|(known, _)| *known == label)
            .map_or(0, |(_, count)| count)
    }

    /// All reasons with their counts.
    pub fn snapshot(&self) -> impl Iterator<Item = (&'static str, u64)> {
        LABELS
            .iter()
            .copied()
            .zip(self.0.iter().map(|count| count.load(Ordering::Relaxed)))
    }
}

/// An error and its sources in one line. A source that only repeats what was said is left out.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    for source in std::iter::successors(error.source(), |error| error.source()) {
        let part = source.to_string();
        if !text.contains(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_counted_under_its_own_name() {
        let refusals = Refusals::default();
        let remote = "127.0.0.1:1".parse().unwrap();
        refusals.record(remote, &Refusal::Anonymous);
        refusals.record(remote, &Refusal::Anonymous);
        refusals.record(remote, &Refusal::Handshake(io::Error::other("no")));
        let counted: Vec<_> = refusals.snapshot().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [("handshake", 1), ("anonymous", 2)]);
    }

    #[test]
    fn a_chain_says_each_thing_once() {
        let error = Refusal::Handshake(io::Error::other("bad record"));
        assert_eq!(chain(&error), "the TLS handshake failed: bad record");
        let host = Refusal::Host(NotAdmitted::Unknown("z".parse().unwrap()));
        assert_eq!(chain(&host), "host z is not known here");
    }
}
