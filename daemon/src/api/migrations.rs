//! Migrations: start, watch, get, list, cancel.

use std::pin::Pin;

use tokio_stream::wrappers::WatchStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Code, Status};
use tranship_proto::v1::{
    Empty, ListMigrationsReply, Migration, MigrationOutcome, NameRequest, ResolveMigrationReply,
    ResolveMigrationRequest, StartMigrationRequest,
};

use super::status::{self, Coded};
use crate::migration::{Conductor, ConductorError};

/// The records of a migration as it goes on.
pub type Watching = Pin<Box<dyn Stream<Item = Result<Migration, Status>> + Send>>;

pub async fn start(conductor: &Conductor, request: StartMigrationRequest) -> Result<Migration, Status> {
    let conductor = conductor.clone();
    status::to_its_end(async move { conductor.start(request).await }).await
}

pub async fn watch(conductor: &Conductor, request: NameRequest) -> Result<Watching, Status> {
    let watched = conductor.watch(&request.name).await;
    let (record, changes) = watched.map_err(|error| status::of(&error))?;
    let Some(changes) = changes else {
        return Ok(Box::pin(tokio_stream::once(Ok(record))));
    };
    // The last record may be told twice; a watcher stops at the first that has an outcome.
    let (conductor, name) = (conductor.clone(), request.name);
    let last = async move { conductor.get(&name).await.map_err(|error| status::of(&error)) };
    let records = WatchStream::new(changes)
        .map(Ok)
        .chain(futures_util::stream::once(last));
    Ok(Box::pin(until_the_end(records)))
}

pub async fn get(conductor: &Conductor, request: NameRequest) -> Result<Migration, Status> {
    conductor
        .get(&request.name)
        .await
        .map_err(|error| status::of(&error))
}

pub async fn list(conductor: &Conductor) -> Result<ListMigrationsReply, Status> {
    let migrations = conductor.list().await.map_err(|error| status::of(&error))?;
    Ok(ListMigrationsReply { migrations })
}

pub async fn cancel(conductor: &Conductor, request: NameRequest) -> Result<Empty, Status> {
    conductor
        .cancel(&request.name)
        .await
        .map_err(|error| status::of(&error))?;
    Ok(Empty {})
}

pub async fn resolve(
    conductor: &Conductor,
    request: ResolveMigrationRequest,
) -> Result<ResolveMigrationReply, Status> {
    let conductor = conductor.clone();
    let ResolveMigrationRequest {
        migration,
        owner,
        confirmed,
    } = request;
    let resolved =
        status::to_its_end(async move { conductor.resolve(&migration, &owner, confirmed).await }).await?;
    Ok(ResolveMigrationReply {
        migration: Some(resolved.migration),
        consequences: resolved.consequences,
    })
}

/// Up to and including the first record with an outcome.
fn until_the_end<S>(records: S) -> impl Stream<Item = Result<Migration, Status>> + Send
where
    S: Stream<Item = Result<Migration, Status>> + Send,
{
    let mut over = false;
    records.take_while(move |record| {
        let was_over = over;
        over = record
            .as_ref()
            .map_or(true, |record| record.outcome() != MigrationOutcome::Unspecified);
        !was_over
    })
}

impl Coded for ConductorError {
    fn code(&self) -> Code {
        match self {
            Self::Container(error) => error.code(),
            Self::Registry(_) | Self::Journal(_) => Code::Internal,
            Self::NotFound(_) => Code::NotFound,
            Self::TooLate { .. } | Self::Over { .. } | Self::NotInDoubt(_) | Self::NothingHere(_) => {
                Code::FailedPrecondition
            }
            Self::StillInDoubt(_) => Code::DeadlineExceeded,
            Self::Options(_) | Self::NoSuchOwner { .. } => Code::InvalidArgument,
        }
    }
}
