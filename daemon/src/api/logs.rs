//! Logs, with those to come.

use std::pin::Pin;

use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::Status;
use tranship_proto::v1::{LogChunk, LogsRequest};

use super::status;
use crate::containers::{ContainerError, Verb};
use crate::daemon::Daemon;
use crate::runtime::logs::{LogOptions, read};

type Chunks = Pin<Box<dyn Stream<Item = Result<LogChunk, Status>> + Send>>;

pub async fn logs(daemon: &Daemon, request: LogsRequest) -> Result<Chunks, Status> {
    let found = daemon.containers.get(&request.name, Verb::Logs).await;
    let record = found.map_err(|error| status::of(&error))?;
    let options = LogOptions {
        tail: u64::try_from(request.tail).ok(),
        follow: request.follow,
    };
    let chunks = read(&daemon.containers.paths(&record.id), options).await;
    let chunks = chunks.map_err(|error| status::of(&ContainerError::from(error)))?;
    let answers = ReceiverStream::new(chunks)
        .map(|chunk| chunk.map_err(|error| status::of(&ContainerError::from(error))));
    Ok(Box::pin(answers))
}
