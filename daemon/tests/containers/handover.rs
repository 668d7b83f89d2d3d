//! What a migration asks of containers, at both ends, without the migration: one host gives a container away and takes it
//! back.

use tonic::Code;
use tranship_daemon::containers::{Anatomy, ContainerError, VolumeFate, chain};
use tranship_proto::ids::ContainerId;
use tranship_proto::v1::{
    Container, ContainerState, ListVolumesRequest, MountKind, StopContainerRequest, VolumeSource,
};

use crate::common::{Client, Home, Running, exec, import_busybox, shell};
use crate::{UNTIL_TERM, inspect, mount, named, ps, remove, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_migrating_container_can_be_looked_into_but_not_changed() {
    let home = Home::new("migrating");
    let mut host = Running::start(&home).await;
    import_busybox(&mut host.client).await;
    run(&mut host.client, shell("web", UNTIL_TERM)).await.unwrap();
    let containers = host.daemon.containers.clone();
    let record = containers.begin_migration("web").await.unwrap();
    assert!(containers.begin_migration("web").await.is_err());
    let client = &mut host.client;
    assert_eq!(inspect(client, "web").await.state(), ContainerState::Migrating);
    let stop = StopContainerRequest {
        name: "web".into(),
        timeout_s: Some(0),
    };
    let refused = client.stop_container(stop).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().contains("being migrated"),
        "{}",
        refused.message()
    );
    assert_eq!(
        client.pause_container(named("web")).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(
        remove(client, "web", true).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert_eq!(
        exec(client, "web", &["echo", "still here"], "").await,
        (0, "still here\n".into())
    );
    assert_eq!(ps(client, false).await, ["web"]);

    assert_eq!(
        containers.end_migration(&record.id).await.unwrap().state,
        ContainerState::Running
    );
    assert_eq!(
        containers.end_migration(&record.id).await.unwrap().state,
        ContainerState::Running
    );
    remove(client, "web", true).await.unwrap();
    drop(containers);
    host.stop().await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_moves_away_leaves_a_tombstone_and_can_come_back() {
    let home = Home::new("moves");
    let mut host = Running::start(&home).await;
    import_busybox(&mut host.client).await;
    let mut spec = shell("web", UNTIL_TERM);
    spec.mounts.push(mount(MountKind::Volume, "data", "/var/db"));
    run(&mut host.client, spec).await.unwrap();
    let containers = host.daemon.containers.clone();
    let record = containers.begin_migration("web").await.unwrap();
    let there = containers.anatomy(&record.id).await.unwrap();
    assert_eq!(there.volumes[0].record.name.as_str(), "data");
    let next = record.epoch + 1;
    give_away(&host, &record.id, next).await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
    let gone = look_after_it(&mut host.client, next).await;

    // Older than what was given away, and then dropped on the way: the tombstone stays.
    let old = containers.reserve_incoming(&gone, next, false).await.unwrap_err();
    assert!(matches!(old, ContainerError::OldEpoch { .. }), "{}", chain(&old));
    receive(&host, &there, next + 1).await;
    containers.drop_incoming(&record.id).await.unwrap();
    containers.drop_incoming(&record.id).await.unwrap();
    assert_eq!(home.leftovers(), Vec::<String>::new());
    assert_eq!(
        inspect(&mut host.client, "web").await.state(),
        ContainerState::Moved
    );

    receive(&host, &there, next + 1).await;
    let created = host
        .daemon
        .runtime
        .create(&containers.paths(&record.id))
        .await
        .unwrap();
    let pid = created.start().await.unwrap();
    containers.adopt(&record.id, pid).await.unwrap();
    let back = inspect(&mut host.client, "web").await;
    assert_eq!(
        (back.state(), back.epoch, back.pid),
        (ContainerState::Running, next + 1, pid)
    );
    let listed = exec(&mut host.client, "web", &["ls", "/var/db"], "").await;
    assert_eq!(listed, (0, "came-along\n".into()));
    assert_eq!(ps(&mut host.client, true).await, ["web"]);
    // A late repetition of the first move must not end what has come back.
    give_away(&host, &record.id, next).await;
    assert_eq!(
        inspect(&mut host.client, "web").await.state(),
        ContainerState::Running
    );
    remove(&mut host.client, "web", true).await.unwrap();
    drop(containers);
    host.stop().await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

/// Twice, as recovery might.
async fn give_away(host: &Running, id: &ContainerId, epoch: u64) {
    for _ in 0..2 {
        let moved = host.daemon.containers.moved(id, "b", epoch, VolumeFate::Remove);
        moved.await.unwrap();
    }
}

/// What users see of a container that has moved to b.
async fn look_after_it(client: &mut Client, epoch: u64) -> Container {
    let gone = inspect(client, "web").await;
    let seen = (gone.state(), gone.moved_to.as_str(), gone.epoch);
    assert_eq!(seen, (ContainerState::Moved, "b", epoch));
    let refused = client.pause_container(named("web")).await.unwrap_err();
    let says = refused.message();
    assert!(says.contains("moved to host b"), "{says}");
    let listed = client.list_volumes(ListVolumesRequest {}).await.unwrap();
    assert!(listed.into_inner().volumes.is_empty());
    assert_eq!(ps(client, false).await, Vec::<String>::new());
    assert_eq!(ps(client, true).await, ["web"]);
    gone
}

/// Everything up to the restore; twice each, as recovery might.
async fn receive(host: &Running, there: &Anatomy, epoch: u64) {
    let containers = &host.daemon.containers;
    let (id, image) = (&there.record.id, &there.image);
    let volume = VolumeSource {
        name: "data".into(),
        driver: "overlay".into(),
        ..Default::default()
    };
    for _ in 0..2 {
        containers
            .reserve_incoming(&there.record.to_message("b"), epoch, false)
            .await
            .unwrap();
        containers.receive_image(image.clone()).await.unwrap();
        containers.receive_rootfs(id, image).await.unwrap();
        let path = containers.receive_volume(id, &volume).await.unwrap();
        std::fs::write(path.join("came-along"), "").unwrap();
        containers.receive_bundle(id, image).await.unwrap();
        containers.receive_mount(id).await.unwrap();
    }
    let busy = containers.begin_migration("web").await.unwrap_err();
    assert!(chain(&busy).contains("being received"), "{}", chain(&busy));
}
