//! A further program inside a container: input one way, output the other, at last the exit code.

use std::pin::Pin;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Status, Streaming};
use tranship_proto::v1::{ExecReply, ExecRequest, ExecStart, exec_reply, exec_request};

use super::status;
use crate::containers::{ContainerError, Verb};
use crate::daemon::Daemon;
use crate::runtime::exec::{self, ExecInput, ExecOutput};

type Replies = Pin<Box<dyn Stream<Item = Result<ExecReply, Status>> + Send>>;

pub async fn exec(daemon: &Daemon, mut requests: Streaming<ExecRequest>) -> Result<Replies, Status> {
    let start = first(&mut requests).await?;
    let found = daemon.containers.get(&start.name, Verb::Exec).await;
    let record = found.map_err(|error| status::of(&error))?;
    Verb::Exec.check(&record).map_err(|error| status::of(&error))?;
    let request = exec::ExecRequest {
        command: start.command,
        env: start.env,
        user: start.user,
        workdir: start.workdir,
        interactive: start.interactive,
        tty: start.tty,
        size: start.size,
    };
    let session = daemon
        .runtime
        .exec(&daemon.containers.paths(&record.id), &request)
        .await;
    let session = session.map_err(|error| status::of(&ContainerError::from(error)))?;
    tokio::spawn(pass_on(requests, session.input));
    Ok(Box::pin(
        ReceiverStream::new(session.output).map(|output| Ok(reply(output))),
    ))
}

async fn first(requests: &mut Streaming<ExecRequest>) -> Result<ExecStart, Status> {
    match requests.message().await? {
        Some(ExecRequest {
            part: Some(exec_request::Part::Start(start)),
        }) => Ok(start),
        _ => Err(Status::invalid_argument(
            "the first request of exec must carry its start",
        )),
    }
}

/// Ends when the client has no more to say, the process listens no more, or the client is gone.
async fn pass_on(mut requests: Streaming<ExecRequest>, input: mpsc::Sender<ExecInput>) {
    loop {
        let request = tokio::select! {
            request = requests.message() => request,
            () = input.closed() => return,
        };
        let Ok(Some(request)) = request else { return };
        let said = match request.part {
            Some(exec_request::Part::Stdin(bytes)) => ExecInput::Stdin(bytes.into()),
            Some(exec_request::Part::StdinEnd(_)) => ExecInput::StdinEnd,
            Some(exec_request::Part::Resize(size)) => ExecInput::Resize(size),
            Some(exec_request::Part::Start(_)) | None => continue,
        };
        if input.send(said).await.is_err() {
            return;
        }
    }
}

fn reply(output: ExecOutput) -> ExecReply {
    let part = match output {
        ExecOutput::Stdout(bytes) => exec_reply::Part::Stdout(bytes.into()),
        ExecOutput::Stderr(bytes) => exec_reply::Part::Stderr(bytes.into()),
        ExecOutput::Exit(code) => exec_reply::Part::ExitCode(code),
    };
    ExecReply { part: Some(part) }
}
