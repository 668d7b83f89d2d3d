//! What a refused configuration looks like.

use std::path::PathBuf;

/// Why there is no configuration. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{}:{line}: {problem}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        problem: String,
    },
    /// A key that nobody knows.
    #[error("{}:{line}: unknown key `{key}`{}", file.display(), hint(suggestion.as_deref(), known))]
    UnknownKey {
        /// The file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// The key with the tables it lies in, such as `peer.lisen`.
        key: String,
        /// The known key of that table it looks like.
        suggestion: Option<String>,
        /// The known keys of that table.
        known: Vec<String>,
    },
    /// A key with a value that cannot work.
    #[error("{}{}: `{key}` {problem}", file.display(), line.map(|line| format!(":{line}")).unwrap_or_default())]
    Value {
        /// The file.
        file: PathBuf,
        /// Line, from 1; `None` for a default that does not fit the other values.
        line: Option<usize>,
        /// The key with the tables it lies in.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn hint(suggestion: Option<&str>, known: &[String]) -> String {
    match suggestion {
        Some(name) => format!(", did you mean `{name}`?"),
        None if known.is_empty() => String::new(),
        None => format!("; known here: {}", known.join(", ")),
    }
}
