//! Names of images as people write them.

use std::fmt;
use std::str::FromStr;

/// What a name without a tag means.
const DEFAULT_TAG: &str = "latest";

/// Beginnings that mean the same as none.
const DEFAULT_PREFIXES: [&str; 3] = ["docker.io/library/", "index.docker.io/library/", "docker.io/"];

/// Longest repository and longest tag in bytes, as registries have them.
const MAX_REPOSITORY_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// Why a text is no name of an image.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Not `[HOST[:PORT]/]PATH[:TAG]`.
    #[error(
        "an image is named by lower-case letters, digits, '.', '_' and '-', parts divided by '/', and a tag after ':', \
         such as redis:7, not {0:?}"
    )]
    Form(String),
    /// A digest where a name is wanted.
    #[error("an image cannot be named by a digest: {0:?}")]
    Digest(String),
}

/// A name of an image with its tag; `redis` is `redis:latest`, and so is `docker.io/library/redis`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    repository: String,
    tag: String,
}

impl Reference {
    /// What is before the tag.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// What is behind the colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.contains('@') {
            return Err(ReferenceError::Digest(text.to_owned()));
        }
        let short = DEFAULT_PREFIXES
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix))
            .unwrap_or(text);
        // A colon before a slash is a host's port.
        let (repository, tag) = match short.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => (repository, tag),
            _ => (short, DEFAULT_TAG),
        };
        if is_repository(repository) && is_tag(tag) {
            Ok(Self {
                repository: repository.to_owned(),
                tag: tag.to_owned(),
            })
        } else {
            Err(ReferenceError::Form(text.to_owned()))
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

fn is_repository(text: &str) -> bool {
    let (host, path) = match text.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), rest),
        _ => (None, text),
    };
    text.len() <= MAX_REPOSITORY_BYTES && host.is_none_or(is_host) && path.split('/').all(is_part)
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, "0"));
    let named = name.split('.').all(|label| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    });
    named && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// Lower-case letters and digits, with one separator at a time between them: '.', '_', '__' or any number of '-'.
fn is_part(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends_well = text.bytes().next().is_some_and(plain) && text.bytes().next_back().is_some_and(plain);
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends_well
        && separators.into_iter().all(|separator| {
            matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let mut bytes = text.bytes();
    text.len() <= MAX_TAG_BYTES
        && bytes
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_mean_what_docker_users_mean() {
        for (written, meant) in [
            ("redis", "redis:latest"),
            ("redis:7", "redis:7"),
            ("docker.io/library/redis", "redis:latest"),
            ("docker.io/grafana/loki:2", "grafana/loki:2"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            (
                "registry.example.com:5000/team/app:v1.2_3",
                "registry.example.com:5000/team/app:v1.2_3",
            ),
            ("a__b/c-d.e", "a__b/c-d.e:latest"),
        ] {
            assert_eq!(
                written.parse::<Reference>().map(|name| name.to_string()),
                Ok(meant.to_owned())
            );
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for bad in [
            "",
            "Redis",
            "a:",
            ":a",
            "a b",
            "../a",
            "a//b",
            "a/",
            "-a",
            "a..b",
            "a:b:c",
            "ex-.com/a:x",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken for a name");
        }
        let digest = format!("redis@sha256:{}", "0".repeat(64));
        assert_eq!(digest.parse::<Reference>(), Err(ReferenceError::Digest(digest)));
    }

    proptest! {
        #[test]
        fn whatever_parses_prints_as_what_it_means(text in "[a-z0-9./:_-]{0,40}") {
            if let Ok(name) = text.parse::<Reference>() {
                prop_assert_eq!(name.to_string().parse::<Reference>(), Ok(name));
            }
        }
    }
}
