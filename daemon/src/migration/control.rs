//! The control conversation of a migration over gRPC: one call, messages both ways.

use async_trait::async_trait;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use tranship_migrate::control::Control;
use tranship_migrate::error::ControlError;
use tranship_proto::v1::MigrateMessage;

/// Messages under way in one direction. The conversation alternates, so few are ever there.
pub const MESSAGES_IN_FLIGHT: usize = 8;

/// Where messages go: the request stream of a client, or the response stream of a server.
pub enum Outbox {
    /// This host is the source and has made the call.
    Caller(mpsc::Sender<MigrateMessage>),
    /// This host is the destination and answers it.
    Answerer(mpsc::Sender<Result<MigrateMessage, Status>>),
}

/// Both directions of the call.
pub struct GrpcControl {
    outbox: Outbox,
    inbox: Streaming<MigrateMessage>,
}

impl GrpcControl {
    /// The conversation over these two directions.
    #[must_use]
    pub fn new(outbox: Outbox, inbox: Streaming<MigrateMessage>) -> Self {
        Self { outbox, inbox }
    }
}

#[async_trait]
impl Control for GrpcControl {
    async fn send(&mut self, message: MigrateMessage) -> Result<(), ControlError> {
        let sent = match &self.outbox {
            Outbox::Caller(outbox) => outbox.send(message).await.is_ok(),
            Outbox::Answerer(outbox) => outbox.send(Ok(message)).await.is_ok(),
        };
        if sent {
            Ok(())
        } else {
            Err(ControlError::Lost {
                waiting_for: "room for a message",
            })
        }
    }

    async fn receive(&mut self) -> Result<Option<MigrateMessage>, ControlError> {
        self.inbox
            .message()
            .await
            .map_err(|status| ControlError::Failed(words(&status).into()))
    }
}

/// The peer's own words, or what is wrong with the connection in those of whoever has noticed, without their advice.
fn words(status: &Status) -> String {
    let causes = std::iter::successors(std::error::Error::source(status), |error| error.source());
    let told = causes.map(|cause| cause.to_string()).last();
    let told = told.unwrap_or_else(|| status.message().to_owned());
    match told.split_once(": https://") {
        Some((told, _)) => told.to_owned(),
        None => told,
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_connection_that_breaks_is_told_in_one_clause_and_a_refusal_as_it_was_said() {
        let broken = io::Error::other("peer closed connection: https://example.org/why");
        let mut status = Status::unknown("h2 protocol error");
        status.set_source(Arc::new(broken));
        assert_eq!(words(&status), "peer closed connection");
        assert_eq!(
            words(&Status::not_found("no such migration")),
            "no such migration"
        );
    }
}
