//! Containers: run, ps, inspect, stop, kill, pause, unpause, wait, rm.

use std::time::Duration;

use tonic::Status;
use tranship_proto::v1::{
    Container, ContainerState, Empty, KillContainerRequest, ListContainersReply, ListContainersRequest,
    NameRequest, RemoveContainerRequest, RunContainerRequest, StopContainerRequest, WaitReply,
};

use super::status;
use crate::containers::Found;
use crate::daemon::Daemon;
use crate::migration::Conductor;

pub async fn run(daemon: &Daemon, request: RunContainerRequest) -> Result<Container, Status> {
    let spec = request
        .spec
        .ok_or_else(|| Status::invalid_argument("the request has no spec"))?;
    let containers = daemon.containers.clone();
    let record = status::to_its_end(async move { containers.run(spec).await }).await?;
    Ok(record.to_message(&daemon.host_name()))
}

pub async fn list(daemon: &Daemon, request: ListContainersRequest) -> Result<ListContainersReply, Status> {
    let host = daemon.host_name();
    let here = daemon
        .containers
        .list()
        .await
        .map_err(|error| status::of(&error))?;
    let mut containers: Vec<Container> = here.iter().map(|record| record.to_message(&host)).collect();
    if request.all {
        let gone = daemon
            .registry
            .containers()
            .tombstones()
            .await
            .map_err(|error| status::of(&error))?;
        containers.extend(gone.into_iter().map(|tombstone| Container {
            host: host.clone(),
            ..tombstone.container
        }));
    } else {
        containers.retain(is_alive);
    }
    Ok(ListContainersReply { containers })
}

pub async fn inspect(daemon: &Daemon, request: NameRequest) -> Result<Container, Status> {
    let host = daemon.host_name();
    match daemon
        .containers
        .find(&request.name)
        .await
        .map_err(|error| status::of(&error))?
    {
        Found::Here(record) => Ok(record.to_message(&host)),
        Found::Moved(tombstone) => Ok(Container {
            host,
            ..tombstone.container
        }),
    }
}

pub async fn stop(daemon: &Daemon, request: StopContainerRequest) -> Result<Empty, Status> {
    let timeout = request
        .timeout_s
        .map(|seconds| Duration::from_secs(seconds.into()));
    let containers = daemon.containers.clone();
    status::to_its_end(async move { containers.stop(&request.name, timeout).await }).await?;
    Ok(Empty {})
}

pub async fn kill(daemon: &Daemon, request: KillContainerRequest) -> Result<Empty, Status> {
    let containers = daemon.containers.clone();
    status::to_its_end(async move { containers.kill(&request.name, &request.signal).await }).await?;
    Ok(Empty {})
}

pub async fn pause(daemon: &Daemon, request: NameRequest) -> Result<Empty, Status> {
    let containers = daemon.containers.clone();
    status::to_its_end(async move { containers.pause(&request.name).await }).await?;
    Ok(Empty {})
}

pub async fn unpause(daemon: &Daemon, request: NameRequest) -> Result<Empty, Status> {
    let containers = daemon.containers.clone();
    status::to_its_end(async move { containers.unpause(&request.name).await }).await?;
    Ok(Empty {})
}

pub async fn wait(daemon: &Daemon, request: NameRequest) -> Result<WaitReply, Status> {
    let exit_code = daemon
        .containers
        .wait(&request.name)
        .await
        .map_err(|error| status::of(&error))?;
    Ok(WaitReply { exit_code })
}

pub async fn remove(
    daemon: &Daemon,
    conductor: &Conductor,
    request: RemoveContainerRequest,
) -> Result<Empty, Status> {
    let containers = daemon.containers.clone();
    let RemoveContainerRequest { name, force, volumes } = request;
    let removed = status::to_its_end(async move { containers.remove(&name, force, volumes).await }).await?;
    if let Some(container) = removed {
        conductor.forget_owner(container);
    }
    Ok(Empty {})
}

/// Whether `ps` shows it without being asked for all.
fn is_alive(container: &Container) -> bool {
    !matches!(
        container.state(),
        ContainerState::Created | ContainerState::Exited | ContainerState::Moved
    )
}
