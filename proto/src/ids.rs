//! Names that must not be mixed up, each a type of its own. Parsing is the only way in, so a value that exists is
//! well-formed and safe as a file name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::limits;

/// Why a text is not an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IdError {
    /// Not 64 lower-case hexadecimal digits.
    #[error("a container id is 64 hexadecimal digits, not {0:?}")]
    Container(String),
    /// Not a ULID.
    #[error("a migration id is 26 letters and digits, not {0:?}")]
    Migration(String),
    /// Not a name of Docker's form.
    #[error(
        "a name is a letter or digit followed by letters, digits, '_', '.' or '-', at most {max} bytes, not {text:?}"
    )]
    Name {
        /// What was given.
        text: String,
        /// Longest name in bytes.
        max: usize,
    },
    /// Not `sha256:` and 64 hexadecimal digits.
    #[error("a digest is 'sha256:' followed by 64 hexadecimal digits, not {0:?}")]
    Digest(String),
}

fn is_hex64(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// A container's id, the same on every host it moves to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

impl ContainerId {
    /// An id from 32 random bytes.
    #[must_use]
    pub fn from_random(random: [u8; 32]) -> Self {
        Self(random.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// All 64 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, for people.
    #[must_use]
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        if is_hex64(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Container(text.to_owned()))
        }
    }
}

/// A migration's id; sorts by the time it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MigrationId(Ulid);

impl MigrationId {
    /// A new id.
    #[must_use]
    pub fn generate() -> Self {
        Self(Ulid::generate())
    }
}

impl FromStr for MigrationId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        Ulid::from_string(text)
            .map(Self)
            .map_err(|_| IdError::Migration(text.to_owned()))
    }
}

/// The name of a host, volume, container or network: Docker's form, safe as a file name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

impl Name {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let mut bytes = text.bytes();
        let starts_well = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
        let goes_on_well = bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if starts_well && goes_on_well && text.len() <= limits::MAX_NAME_BYTES {
            Ok(Self(text.to_owned()))
        } else {
            Err(IdError::Name {
                text: text.to_owned(),
                max: limits::MAX_NAME_BYTES,
            })
        }
    }
}

/// `sha256:` and 64 hexadecimal digits: an image manifest, or the uncompressed content of a layer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    /// A digest from the 32 bytes of a SHA-256 hash.
    #[must_use]
    pub fn from_sha256(hash: &[u8; 32]) -> Self {
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        Self(format!("sha256:{hex}"))
    }

    /// With the `sha256:` in front.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The 64 digits alone: safe as a file name.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.get(7..).unwrap_or_default()
    }
}

impl FromStr for Digest {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix("sha256:") {
            Some(hex) if is_hex64(hex) => Ok(Self(text.to_owned())),
            _ => Err(IdError::Digest(text.to_owned())),
        }
    }
}

macro_rules! text_conversions {
    ($($id:ty),*) => {$(
        impl TryFrom<String> for $id {
            type Error = IdError;

            fn try_from(text: String) -> Result<Self, IdError> {
                text.parse()
            }
        }

        impl From<$id> for String {
            fn from(id: $id) -> Self {
                id.to_string()
            }
        }

        impl fmt::Display for $id {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}

text_conversions!(ContainerId, MigrationId, Name, Digest);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_could_leave_a_folder_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "-a", "a b", "a\0", &"x".repeat(200)] {
            assert!(bad.parse::<Name>().is_err(), "{bad:?} was taken for a name");
        }
        for good in ["a", "web-1", "db_2.main", "0"] {
            assert!(good.parse::<Name>().is_ok(), "{good:?} was refused");
        }
    }

    #[test]
    fn a_digest_keeps_its_algorithm_apart_from_its_digits() {
        let digest = Digest::from_sha256(&[0xab; 32]);
        assert_eq!(digest.hex(), "ab".repeat(32));
        assert_eq!(digest.as_str().parse::<Digest>(), Ok(digest));
        assert!("sha256:zz".parse::<Digest>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_as_it_was(text in ".{0,80}") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.to_string(), text);
            }
        }

        #[test]
        fn a_random_container_id_parses(random: [u8; 32]) {
            let id = ContainerId::from_random(random);
            prop_assert_eq!(id.as_str().parse::<ContainerId>(), Ok(id.clone()));
            prop_assert_eq!(id.short().len(), 12);
        }
    }
}
