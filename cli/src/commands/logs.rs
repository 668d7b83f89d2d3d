//! `tranship logs`.

use std::io::{self, Write};

use tokio_stream::StreamExt;
use tonic::Streaming;
use tranship_proto::v1::{LogChunk, LogsRequest, OutputStream};

use super::root::Session;
use crate::failure::Failure;

/// Arguments.
#[derive(clap::Args)]
pub struct Logs {
    /// Go on as long as the container writes.
    #[arg(short, long)]
    follow: bool,
    /// Number of lines from the end, or `all`.
    #[arg(short = 'n', long, default_value = "all", value_name = "LINES", value_parser = tail)]
    tail: i64,
    /// Name or id.
    #[arg(value_name = "CONTAINER")]
    name: String,
}

impl Logs {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let request = LogsRequest {
            name: self.name,
            follow: self.follow,
            tail: self.tail,
        };
        let chunks = session.client().await?.logs(request).await?.into_inner();
        copy(chunks).await
    }
}

/// Copies a container's output to stdout and stderr until it ends.
///
/// # Errors
/// The daemon goes away, or nobody reads what is printed.
pub async fn copy(mut chunks: Streaming<LogChunk>) -> Result<(), Failure> {
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let is_stderr = chunk.stream() == OutputStream::Stderr;
        write(is_stderr, &chunk.data)?;
    }
    Ok(())
}

/// Writes bytes as they are, at once.
///
/// # Errors
/// Nobody reads them.
pub fn write(to_stderr: bool, bytes: &[u8]) -> Result<(), Failure> {
    let outcome = if to_stderr {
        io::stderr().write_all(bytes)
    } else {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes).and_then(|()| stdout.flush())
    };
    outcome.map_err(Failure::local("cannot write the output"))
}

/// -1 for all.
fn tail(text: &str) -> Result<i64, String> {
    if text == "all" {
        return Ok(-1);
    }
    let lines = text.parse::<u32>().map(i64::from);
    lines.map_err(|_| "not a number of lines: write one, or all".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lines_is_minus_one_and_minus_one_is_refused() {
        assert_eq!(tail("all"), Ok(-1));
        assert_eq!(tail("0"), Ok(0));
        assert!(tail("-1").is_err());
    }
}
