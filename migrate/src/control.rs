//! The control conversation of one migration: messages both ways, in the order of the phases. A daemon implements
//! [`Control`] over its own connection; the roles only ever say what they send and what is due.

use std::time::Duration;

use async_trait::async_trait;
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::migrate_message::Body;
use tranship_proto::v1::{Abort, MigrateMessage, Phase};

use crate::error::{ControlError, StepError};

/// Both directions of a control connection.
#[async_trait]
pub trait Control: Send {
    /// Hands a message over. Returning does not mean that the peer has read it.
    async fn send(&mut self, message: MigrateMessage) -> Result<(), ControlError>;

    /// The next message, or `None` at the end of the connection.
    ///
    /// Cancel-safe: a message is never lost when the future is dropped.
    async fn receive(&mut self) -> Result<Option<MigrateMessage>, ControlError>;
}

/// The word for a message in errors.
#[must_use]
pub fn name(body: &Body) -> &'static str {
    match body {
        Body::Reserve(_) => "reserve",
        Body::Reserved(_) => "reserved",
        Body::Seeded(_) => "seeded",
        Body::Standby(_) => "standby",
        Body::Freezing(_) => "freezing",
        Body::Drained(_) => "drained",
        Body::Prepared(_) => "prepared",
        Body::Ready(_) => "ready",
        Body::Go(_) => "go",
        Body::Running(_) => "running",
        Body::Abort(_) => "abort",
        Body::Failed(_) => "failed",
        Body::RoundStored(_) => "round stored",
        Body::Cut(_) => "cut",
        Body::Holding(_) => "holding",
    }
}

/// One migration's conversation.
pub struct Conversation {
    migration: MigrationId,
    control: Box<dyn Control>,
}

impl Conversation {
    /// The conversation of `migration` over `control`.
    #[must_use]
    pub fn new(migration: MigrationId, control: Box<dyn Control>) -> Self {
        Self { migration, control }
    }

    /// Sends one message.
    ///
    /// # Errors
    /// The connection is lost.
    pub async fn say(&mut self, body: Body) -> Result<(), ControlError> {
        let message = MigrateMessage {
            migration_id: self.migration.to_string(),
            body: Some(body),
        };
        self.control.send(message).await
    }

    /// The next message, if it comes within `deadline`. Cancel-safe.
    ///
    /// # Errors
    /// The connection is lost, nothing came in time, or the peer gave up ([`StepError::Source`],
    /// [`StepError::Destination`]).
    pub async fn hear(&mut self, waiting_for: &'static str, deadline: Duration) -> Result<Body, StepError> {
        let received = tokio::time::timeout(deadline, self.control.receive())
            .await
            .map_err(|_| ControlError::Deadline {
                waiting_for,
                deadline,
            })??;
        match received.and_then(|message| message.body) {
            None => Err(ControlError::Lost { waiting_for }.into()),
            Some(Body::Abort(abort)) => Err(StepError::Source(abort.reason)),
            Some(Body::Failed(failed)) => Err(StepError::Destination {
                phase: Phase::try_from(failed.phase).unwrap_or_default(),
                error: failed.error,
                given_back: failed.given_back,
                transient: failed.transient,
            }),
            Some(body) => Ok(body),
        }
    }

    /// Nothing more is said or heard, and the peer notices: it may wait for words that could not be said.
    pub fn hang_up(&mut self) {
        self.control = Box::new(Silence);
    }

    /// Tells the destination to forget the migration; a lost connection says the same.
    pub async fn abort(&mut self, reason: String) {
        if let Err(error) = self.say(Body::Abort(Abort { reason })).await {
            tracing::debug!(migration_id = %self.migration, %error, "the destination could not be told to forget it");
        }
    }
}

/// The conversation of a role whose peer has hung up long ago.
pub struct Silence;

#[async_trait]
impl Control for Silence {
    async fn send(&mut self, _message: MigrateMessage) -> Result<(), ControlError> {
        Err(ControlError::Lost {
            waiting_for: "somebody to tell",
        })
    }

    async fn receive(&mut self) -> Result<Option<MigrateMessage>, ControlError> {
        Ok(None)
    }
}

/// An error for a message that was not due.
#[must_use]
pub fn unexpected(wanted: &'static str, got: &Body) -> StepError {
    ControlError::Unexpected {
        wanted,
        got: name(got),
    }
    .into()
}
