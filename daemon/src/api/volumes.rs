//! Volumes: create, ls, inspect, rm.

use tonic::Status;
use tranship_proto::ids::ContainerId;
use tranship_proto::v1::{CreateVolumeRequest, Empty, ListVolumesReply, NameRequest, Volume};

use super::status;
use crate::daemon::Daemon;
use crate::registry::VolumeRecord;

pub async fn create(daemon: &Daemon, request: CreateVolumeRequest) -> Result<Volume, Status> {
    let name = if request.name.is_empty() {
        new_name()?
    } else {
        request.name
    };
    let name = status::name(&name)?;
    let volumes = daemon.volumes.clone();
    let (of, driver, labels) = (name.clone(), request.driver, request.labels);
    status::to_its_end(async move { volumes.create(&of, &driver, labels).await }).await?;
    show(daemon, &name.to_string()).await
}

pub async fn list(daemon: &Daemon) -> Result<ListVolumesReply, Status> {
    let mut volumes = Vec::new();
    for (record, users) in daemon.volumes.list().await.map_err(|error| status::of(&error))? {
        volumes.push(message(daemon, record, users).await?);
    }
    Ok(ListVolumesReply { volumes })
}

pub async fn inspect(daemon: &Daemon, request: NameRequest) -> Result<Volume, Status> {
    show(daemon, &request.name).await
}

pub async fn remove(daemon: &Daemon, request: NameRequest) -> Result<Empty, Status> {
    let name = status::name(&request.name)?;
    let volumes = daemon.volumes.clone();
    status::to_its_end(async move { volumes.remove(&name).await }).await?;
    Ok(Empty {})
}

async fn show(daemon: &Daemon, name: &str) -> Result<Volume, Status> {
    let name = status::name(name)?;
    let (record, users) = daemon
        .volumes
        .get(&name)
        .await
        .map_err(|error| status::of(&error))?;
    message(daemon, record, users).await
}

async fn message(daemon: &Daemon, record: VolumeRecord, used_by: Vec<String>) -> Result<Volume, Status> {
    let path = daemon
        .volumes
        .path(&record)
        .await
        .map_err(|error| status::of(&error))?;
    Ok(Volume {
        name: record.name.into(),
        driver: record.driver,
        mountpoint: path.display().to_string(),
        created_ms: record.created_ms,
        labels: record.labels,
        used_by,
    })
}

fn new_name() -> Result<String, Status> {
    let random = crate::random::bytes().map_err(|error| status::internal(&error))?;
    Ok(ContainerId::from_random(random).into())
}
