//! The log: what is filtered out, and how a line looks.
//!
//! Fields have fixed names everywhere, so that an operator can search for them: `migration_id`, `role`, `phase`,
//! `round`, `container`, `volume`, `peer`, `pages`, `bytes`, `elapsed_ms`, `error`. Lines go to stderr, which is the
//! journal where systemd starts the daemon.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::LogFormat;

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The filter cannot be read.
    #[error("cannot read the log filter {filter:?}")]
    Filter {
        /// The filter.
        filter: String,
        /// What is wrong with it.
        #[source]
        source: ParseError,
    },
    /// Something set up a log before.
    #[error("a log was set up before")]
    Twice,
}

/// Sets up the log of this process, once.
///
/// # Errors
/// The filter cannot be read, or there is a log already.
pub fn init(filter: &str, format: LogFormat) -> Result<(), ObserveError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| ObserveError::Filter {
        filter: filter.to_owned(),
        source,
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr);
    let set = match format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .try_init(),
    };
    set.map_err(|_| ObserveError::Twice)
}
