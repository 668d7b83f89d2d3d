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
            .map_err(|status| ControlError::Failed(Box::new(status)))
    }
}
