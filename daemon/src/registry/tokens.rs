//! One-time tokens: the hash of a secret, good once and until it expires.

use rusqlite::{OptionalExtension, Transaction};

use super::{Registry, RegistryError};

const TABLE: &str = "tokens";

/// The table of tokens.
pub struct Tokens<'a>(pub(super) &'a Registry);

/// What became of an attempt to use a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenUse {
    /// It was good, and is used up now.
    Accepted,
    /// No such token.
    Unknown,
    /// Too late.
    Expired,
    /// Somebody used it before.
    Spent,
}

impl Tokens<'_> {
    /// Keeps a new token by the hash of its secret.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn insert(&self, hash: String, now_ms: i64, expires_ms: i64) -> Result<(), RegistryError> {
        let work = move |db: &Transaction<'_>| {
            let sql = "INSERT INTO tokens (hash, created_ms, expires_ms) VALUES (?1, ?2, ?3)";
            db.execute(sql, (hash, now_ms, expires_ms)).map(drop)
        };
        self.0.transaction(TABLE, "keep a token", work).await
    }

    /// Uses a token up, in one step: of two hosts that show it, one is refused.
    ///
    /// # Errors
    /// The database cannot be written.
    pub async fn consume(&self, hash: String, now_ms: i64, by: String) -> Result<TokenUse, RegistryError> {
        let work = move |db: &Transaction<'_>| {
            let sql = "SELECT expires_ms, used_ms FROM tokens WHERE hash = ?1";
            let found: Option<(i64, Option<i64>)> = db
                .query_row(sql, [&hash], |row| Ok((row.get(0)?, row.get(1)?)))
                .optional()?;
            match found {
                None => Ok(TokenUse::Unknown),
                Some((_, Some(_))) => Ok(TokenUse::Spent),
                Some((expires_ms, None)) if expires_ms <= now_ms => Ok(TokenUse::Expired),
                Some((_, None)) => {
                    let sql = "UPDATE tokens SET used_ms = ?2, used_by = ?3 WHERE hash = ?1";
                    db.execute(sql, (hash, now_ms, by))?;
                    Ok(TokenUse::Accepted)
                }
            }
        };
        self.0.transaction(TABLE, "use a token", work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_token_is_good_once_and_in_time() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::open(&dir.path().join("r.db")).unwrap();
        let tokens = registry.tokens();
        tokens.insert("early".into(), 1, 10).await.unwrap();
        tokens.insert("late".into(), 1, 10).await.unwrap();
        let use_it = |hash: &str, now_ms| tokens.consume(hash.into(), now_ms, "b".into());
        assert_eq!(use_it("other", 5).await.unwrap(), TokenUse::Unknown);
        assert_eq!(use_it("early", 9).await.unwrap(), TokenUse::Accepted);
        assert_eq!(use_it("early", 9).await.unwrap(), TokenUse::Spent);
        assert_eq!(use_it("late", 10).await.unwrap(), TokenUse::Expired);
    }
}
