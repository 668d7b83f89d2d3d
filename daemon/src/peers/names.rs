//! What a host may be called: a name that stands in its certificate as a DNS name, so it must be one.

use tranship_proto::ids::Name;

/// Longest label of a DNS name, by RFC 1035.
const MAX_LABEL_BYTES: usize = 63;

/// Why a text cannot name a host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "a host name is lower-case letters, digits and '-' (with '.' between parts), begins with a letter or digit and \
     is not all digits, not {0:?}"
)]
pub struct HostNameError(String);

/// Reads the name of a host.
///
/// # Errors
/// The text is no name that a certificate can carry exactly.
pub fn host_name(text: &str) -> Result<Name, HostNameError> {
    let refuse = || HostNameError(text.to_owned());
    let name: Name = text.parse().map_err(|_| refuse())?;
    let last_is_a_number = text
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if text.split('.').all(is_label) && !last_is_a_number {
        Ok(name)
    } else {
        Err(refuse())
    }
}

fn is_label(label: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_LABEL_BYTES).contains(&label.len())
        && label.bytes().all(plain)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

/// The machine's own name, made to fit: its first part in lower case.
///
/// # Errors
/// The kernel's host name has no part that can name a host.
pub fn machine_name() -> Result<Name, HostNameError> {
    let full = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    host_name(
        full.trim()
            .split('.')
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase()
            .as_str(),
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rustls::pki_types::DnsName;

    use super::*;

    #[test]
    fn names_that_dns_reads_differently_are_refused() {
        for bad in [
            "",
            "A",
            "a_b",
            "-a",
            "a-",
            "a..b",
            "10.0.0.1",
            "0",
            "*.x",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(host_name(bad).is_err(), "{bad:?} was taken");
        }
        for good in ["a", "db-1", "db-1.rack2", "3com"] {
            assert!(host_name(good).is_ok(), "{good:?} was refused");
        }
    }

    proptest! {
        #[test]
        fn every_host_name_is_a_dns_name(text in "[a-z0-9.-]{1,70}") {
            if host_name(&text).is_ok() {
                prop_assert!(DnsName::try_from(text.as_str()).is_ok());
            }
        }
    }
}
