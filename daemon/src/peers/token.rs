//! What a user carries from one host to a new one: `tranship1:ADDRESS:FINGERPRINT:SECRET`.
//!
//! The address is where the inviting host listens, the fingerprint tells its cluster from any other (so that the secret
//! is shown to nobody else), the secret lets one host in, once.

use std::fmt;
use std::str::FromStr;

use rustls::crypto::{GetRandomFailed, SecureRandom};
use sha2::{Digest, Sha256};

use super::address::PeerAddress;

const VERSION: &str = "tranship1";
const FINGERPRINT_DIGITS: usize = 64;
const SECRET_BYTES: usize = 16;

/// An invitation to a cluster.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Where the inviting host listens.
    pub address: PeerAddress,
    /// SHA-256 of the authority's certificate, in hexadecimal digits.
    pub fingerprint: String,
    /// What lets a host in.
    pub secret: Secret,
}

/// The part of a token that is not for everybody. Does not show itself in debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

/// Why a text is not a token. Does not quote it: it may be one with a slip.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TokenError {
    /// Not of the form at all.
    #[error(
        "this is not a token: a token begins with \"{VERSION}:\" and is printed by `tranship host token`"
    )]
    Form,
    /// A part is not what it should be.
    #[error("the token's {0} is damaged: copy the whole line that `tranship host token` printed")]
    Part(&'static str),
}

impl Secret {
    /// A new one.
    ///
    /// # Errors
    /// The machine has no random numbers.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self, GetRandomFailed> {
        let mut bytes = [0; SECRET_BYTES];
        random.fill(&mut bytes)?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Takes what a new host shows; only its hash is ever looked at.
    #[must_use]
    pub fn shown(text: String) -> Self {
        Self(text)
    }

    /// The secret itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored of it. 128 random bits need no slow hash.
    #[must_use]
    pub fn hash(&self) -> String {
        Sha256::digest(self.0.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{VERSION}:{}:{}:{}",
            self.address,
            self.fingerprint,
            self.secret.reveal()
        )
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let rest = text
            .trim()
            .strip_prefix(VERSION)
            .and_then(|rest| rest.strip_prefix(':'));
        let mut parts = rest.ok_or(TokenError::Form)?.rsplitn(3, ':');
        let mut part = |name| parts.next().ok_or(TokenError::Part(name));
        let (secret, fingerprint, address) = (part("secret")?, part("fingerprint")?, part("address")?);
        if !is_hex(secret, 2 * SECRET_BYTES) {
            return Err(TokenError::Part("secret"));
        }
        if !is_hex(fingerprint, FINGERPRINT_DIGITS) {
            return Err(TokenError::Part("fingerprint"));
        }
        Ok(Self {
            address: address.parse().map_err(|_| TokenError::Part("address"))?,
            fingerprint: fingerprint.to_owned(),
            secret: Secret(secret.to_owned()),
        })
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token(address: &str) -> JoinToken {
        let provider = rustls::crypto::ring::default_provider();
        JoinToken {
            address: address.parse().unwrap(),
            fingerprint: "ab".repeat(32),
            secret: Secret::generate(provider.secure_random).unwrap(),
        }
    }

    #[test]
    fn a_token_survives_being_carried() {
        for address in ["10.77.0.1:7077", "[fd00::1]:80", "a.example.org:1"] {
            let token = token(address);
            assert_eq!(format!(" {token}\n").parse::<JoinToken>(), Ok(token));
        }
        assert_ne!(token("a:1").secret, token("a:1").secret);
    }

    #[test]
    fn the_secret_is_neither_debugged_nor_quoted() {
        let token = token("a:1");
        let secret = token.secret.reveal().to_owned();
        assert!(!format!("{token:?} {:?}", token.secret).contains(&secret));
        let slip = token.to_string().replace("tranship1", "tranship");
        assert!(
            !slip
                .parse::<JoinToken>()
                .unwrap_err()
                .to_string()
                .contains(&secret)
        );
        assert!(!token.secret.hash().contains(&secret));
    }

    #[test]
    fn a_token_with_a_piece_missing_says_which() {
        let text = token("a:1").to_string();
        assert_eq!(
            text[..text.len() - 1].parse::<JoinToken>(),
            Err(TokenError::Part("secret"))
        );
        assert_eq!(
            "tranship1:x".parse::<JoinToken>(),
            Err(TokenError::Part("fingerprint"))
        );
        assert_eq!("".parse::<JoinToken>(), Err(TokenError::Form));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange_to_be_refused(text in ".{0,200}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("tranship1:{text}").parse::<JoinToken>();
        }
    }
}
