//! Hardware addresses.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tranship_proto::ids::ContainerId;

use super::error::NetworkError;

/// A 48-bit hardware address of one interface, never a group's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The address that reaches everybody; only ever a destination.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// An address from its bytes as they are on the wire.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 6]) -> Self {
        Self(bytes)
    }

    /// The address a container has when nobody gave it one: locally administered, and the same whenever the same
    /// container asks.
    #[must_use]
    pub fn of_container(id: &ContainerId) -> Self {
        let hash: [u8; 32] = Sha256::digest(id.as_str()).into();
        let [first, b, c, d, e, f, ..] = hash;
        Self([(first & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// As on the wire.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl FromStr for MacAddr {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let bad = || NetworkError::BadMac {
            text: text.to_owned(),
        };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts
                .next()
                .filter(|part| part.len() == 2 && !part.starts_with('+'))
                .ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        let is_group = bytes[0] & 1 == 1;
        if parts.next().is_some() || is_group || bytes == [0; 6] {
            Err(bad())
        } else {
            Ok(Self(bytes))
        }
    }
}

impl TryFrom<String> for MacAddr {
    type Error = NetworkError;

    fn try_from(text: String) -> Result<Self, NetworkError> {
        text.parse()
    }
}

impl From<MacAddr> for String {
    fn from(mac: MacAddr) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_the_address_of_one_interface_is_refused() {
        for bad in [
            "",
            "02:00",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:00:00",
            "+2:00:00:00:00:01",
        ] {
            assert!(
                bad.parse::<MacAddr>().is_err(),
                "{bad:?} was taken for an address"
            );
        }
        for group in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            assert!(
                group.parse::<MacAddr>().is_err(),
                "{group} was taken for one interface's"
            );
        }
    }

    proptest! {
        #[test]
        fn a_containers_own_address_is_locally_administered_and_always_the_same(random: [u8; 32]) {
            let id = ContainerId::from_random(random);
            let mac = MacAddr::of_container(&id);
            prop_assert_eq!(mac.bytes()[0] & 0x03, 0x02);
            prop_assert_eq!(mac, MacAddr::of_container(&id));
            prop_assert_eq!(mac.to_string().parse::<MacAddr>().ok(), Some(mac));
        }
    }
}
