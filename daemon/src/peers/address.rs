//! Where a host's peer listener is reached: an IP address or a DNS name, and a port.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// The peers' port.
pub const DEFAULT_PORT: u16 = 7077;

/// Longest DNS name, by RFC 1035.
const MAX_HOST_BYTES: usize = 253;

/// An address that another host can connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PeerAddress {
    host: String,
    port: u16,
}

/// Why a text is not an address to connect to.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PeerAddressError {
    /// Not of the form.
    #[error("must be ADDRESS or ADDRESS:PORT, an IPv6 address in brackets, not {0:?}")]
    Form(String),
    /// An address of "any", which is nowhere.
    #[error("{0} is no address that another host can connect to")]
    Unspecified(IpAddr),
}

impl PeerAddress {
    /// The IP address (IPv6 without brackets) or DNS name.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl From<std::net::SocketAddr> for PeerAddress {
    fn from(address: std::net::SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for PeerAddress {
    type Err = PeerAddressError;

    fn from_str(text: &str) -> Result<Self, PeerAddressError> {
        let form = || PeerAddressError::Form(text.to_owned());
        let (host, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(form)?;
                host.parse::<Ipv6Addr>().map_err(|_| form())?;
                (
                    host,
                    if after.is_empty() {
                        None
                    } else {
                        Some(after.strip_prefix(':').ok_or_else(form)?)
                    },
                )
            }
            None => text
                .split_once(':')
                .map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = port.map_or(Some(DEFAULT_PORT), parse_port).ok_or_else(form)?;
        match host.parse::<IpAddr>() {
            Ok(ip) if ip.is_unspecified() => return Err(PeerAddressError::Unspecified(ip)),
            Ok(_) => {}
            Err(_) if is_dns_name(host) => {}
            Err(_) => return Err(form()),
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port != 0)
}

fn is_dns_name(host: &str) -> bool {
    let label = |part: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&part.len()) && part.bytes().all(inner) && !part.starts_with('-')
    };
    let numeric = host
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    host.len() <= MAX_HOST_BYTES && !numeric && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn addresses_of_each_kind_are_read() {
        for (text, shown) in [
            ("10.77.0.1", "10.77.0.1:7077"),
            ("10.77.0.1:80", "10.77.0.1:80"),
            ("[fd00::1]", "[fd00::1]:7077"),
            ("[fd00::1]:80", "[fd00::1]:80"),
            ("a.example.org", "a.example.org:7077"),
        ] {
            assert_eq!(
                text.parse::<PeerAddress>()
                    .map(|address| address.to_string())
                    .as_deref(),
                Ok(shown)
            );
        }
    }

    #[test]
    fn nowhere_is_not_an_address() {
        for bad in [
            "", ":80", "a:", "a:0", "a:99999", "a:+1", "0.0.0.0", "[::]:1", "fd00::1", "1.2.3", "a b", "[a]",
        ] {
            assert!(bad.parse::<PeerAddress>().is_err(), "{bad:?} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_as_the_same(text in "[a-f0-9.:\\[\\]-]{1,24}") {
            if let Ok(address) = text.parse::<PeerAddress>() {
                prop_assert_eq!(address.to_string().parse::<PeerAddress>(), Ok(address));
            }
        }
    }
}
