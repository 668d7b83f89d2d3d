//! Our types as columns: ids and names as their text, messages as JSON, enums by their lower-case word, so that an
//! operator with `sqlite3` reads the same words as everywhere else.

use std::fmt::Display;
use std::str::FromStr;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tranship_proto::v1;

/// A message as JSON.
pub struct Json<T>(pub T);

impl<T: Serialize> ToSql for Json<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let text = serde_json::to_string(&self.0)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok(text.into())
    }
}

impl<T: DeserializeOwned> FromSql for Json<T> {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        serde_json::from_str(value.as_str()?)
            .map(Json)
            .map_err(|error| FromSqlError::Other(Box::new(error)))
    }
}

/// An id or a name as text.
pub struct Text<T>(pub T);

impl<T: Display> ToSql for Text<T> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.0.to_string().into())
    }
}

impl<T> FromSql for Text<T>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value
            .as_str()?
            .parse()
            .map(Text)
            .map_err(|error: T::Err| FromSqlError::Other(Box::new(error)))
    }
}

/// A counter. SQLite's integers are signed; no counter of ours gets near the sign.
pub struct Count(pub u64);

impl ToSql for Count {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let number = i64::try_from(self.0)
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
        Ok(number.into())
    }
}

impl FromSql for Count {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        u64::try_from(number)
            .map(Count)
            .map_err(|_| FromSqlError::OutOfRange(number))
    }
}

/// An enum of the protocol by its word: `CONTAINER_STATE_RUNNING` is `running`.
pub struct Word<T>(pub T);

/// A word that is none of the enum's.
#[derive(Debug, thiserror::Error)]
#[error("no {prefix} is called {word:?}")]
struct UnknownWord {
    prefix: &'static str,
    word: String,
}

macro_rules! words {
    ($($kind:ty => $prefix:literal),*) => {$(
        impl ToSql for Word<$kind> {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                let name = self.0.as_str_name();
                Ok(name.strip_prefix($prefix).unwrap_or(name).to_ascii_lowercase().into())
            }
        }

        impl FromSql for Word<$kind> {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                let word = value.as_str()?;
                let name = format!("{}{}", $prefix, word.to_ascii_uppercase());
                <$kind>::from_str_name(&name).map(Word).ok_or_else(|| {
                    FromSqlError::Other(Box::new(UnknownWord { prefix: $prefix, word: word.to_owned() }))
                })
            }
        }
    )*};
}

words!(
    v1::ContainerState => "CONTAINER_STATE_",
    v1::MigrationRole => "MIGRATION_ROLE_",
    v1::MigrationOutcome => "MIGRATION_OUTCOME_",
    v1::Phase => "PHASE_"
);
