//! Containers through the daemon's socket, with the real runtime, storage driver and registry. Needs root.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its assertions do")]

mod common;
#[path = "containers/handover.rs"]
mod handover;

use std::time::Duration;

use common::{Client, Home, Running, exec, import_busybox, logs, shell};
use tonic::Code;
use tranship_proto::v1::{
    Container, ContainerSpec, ContainerState, CreateVolumeRequest, KillContainerRequest,
    ListContainersRequest, ListImagesRequest, ListVolumesRequest, Mount, MountKind, NameRequest,
    RemoveContainerRequest, RunContainerRequest, StopContainerRequest,
};

async fn run(client: &mut Client, spec: ContainerSpec) -> Result<Container, tonic::Status> {
    let request = RunContainerRequest { spec: Some(spec) };
    client
        .run_container(request)
        .await
        .map(tonic::Response::into_inner)
}

async fn inspect(client: &mut Client, name: &str) -> Container {
    client.inspect_container(named(name)).await.unwrap().into_inner()
}

fn named(name: &str) -> NameRequest {
    NameRequest { name: name.into() }
}

async fn remove(client: &mut Client, name: &str, force: bool) -> Result<(), tonic::Status> {
    let request = RemoveContainerRequest {
        name: name.into(),
        force,
        volumes: true,
    };
    client.remove_container(request).await.map(drop)
}

async fn ps(client: &mut Client, all: bool) -> Vec<String> {
    let reply = client
        .list_containers(ListContainersRequest { all })
        .await
        .unwrap()
        .into_inner();
    reply
        .containers
        .into_iter()
        .map(|container| container.spec.unwrap().name)
        .collect()
}

async fn wait(client: &mut Client, name: &str) -> i32 {
    let waited = tokio::time::timeout(Duration::from_secs(30), client.wait_container(named(name)));
    waited.await.unwrap().unwrap().into_inner().exit_code
}

fn mount(kind: MountKind, source: &str, target: &str) -> Mount {
    Mount {
        kind: kind.into(),
        source: source.into(),
        target: target.into(),
        ..Default::default()
    }
}

/// What is asked for besides a plain shell.
type Change = fn(&mut ContainerSpec);

const UNTIL_TERM: &str = "echo to-out; echo to-err >&2; trap 'exit 7' TERM; while :; do sleep 0.05; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_runs_is_looked_into_stopped_and_removed_without_a_trace() {
    let home = Home::new("life");
    let mut host = Running::start(&home).await;
    let client = &mut host.client;
    let image = import_busybox(client).await;
    assert_eq!(image.names, ["busybox:latest"]);

    let mut spec = shell("web", UNTIL_TERM);
    spec.env.push("GREETING=hello".into());
    spec.hostname = "webhost".into();
    spec.mounts.push(mount(MountKind::Volume, "data", "/var/db"));
    spec.mounts.push(mount(MountKind::Volume, "", "/anonymous"));
    spec.mounts.push(mount(MountKind::Tmpfs, "", "/scratch"));
    let web = run(client, spec.clone()).await.unwrap();
    assert_eq!(web.state(), ContainerState::Running);
    let times_are_right = web.started_ms >= web.created_ms && web.finished_ms == 0;
    assert!(web.pid > 0 && times_are_right && web.host == "a", "{web:?}");
    assert_eq!(refusal(run(client, spec).await), Code::AlreadyExists);

    look_into(client, &web.id[..8]).await;
    refuse_and_pause(client).await;
    stop_and_read(client).await;
    remove_all(client).await;
    host.stop().await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

async fn look_into(client: &mut Client, short_id: &str) {
    let script = ["sh", "-c", "echo $GREETING; hostname; exit 5"];
    assert_eq!(
        exec(client, "web", &script, "").await,
        (5, "hello\nwebhost\n".into())
    );
    let echoed = exec(client, short_id, &["cat"], "through stdin").await;
    assert_eq!(echoed, (0, "through stdin".into()));
    assert_eq!(exec(client, "web", &["no-such-program"], "").await.0, 127);
    // The volume has what the image has there, with its owner.
    let stat = ["stat", "-c", "%u %a", "/var/db", "/var/db/seed"];
    assert_eq!(
        exec(client, "web", &stat, "").await,
        (0, "70 700\n70 600\n".into())
    );
    exec(client, "web", &["touch", "/var/db/kept", "/scratch/gone"], "").await;
}

async fn refuse_and_pause(client: &mut Client) {
    assert_eq!(
        refusal(remove(client, "web", false).await),
        Code::FailedPrecondition
    );
    let refused = client.remove_volume(named("data")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let says = refused.message();
    assert!(says.contains("in use by web"), "{says}");

    client.pause_container(named("web")).await.unwrap();
    assert_eq!(inspect(client, "web").await.state(), ContainerState::Paused);
    let again = client.pause_container(named("web")).await;
    assert_eq!(refusal(again), Code::FailedPrecondition);
    client.unpause_container(named("web")).await.unwrap();
    assert_eq!(
        exec(client, "web", &["echo", "again"], "").await,
        (0, "again\n".into())
    );
}

async fn stop_and_read(client: &mut Client) {
    let stop = StopContainerRequest {
        name: "web".into(),
        timeout_s: Some(10),
    };
    client.stop_container(stop.clone()).await.unwrap();
    client.stop_container(stop).await.unwrap();
    let web = inspect(client, "web").await;
    assert_eq!(
        (web.state(), web.exit_code, web.pid),
        (ContainerState::Exited, 7, 0)
    );
    assert_eq!(wait(client, "web").await, 7);
    let log = logs(client, "web", true).await;
    assert_eq!((log[&1].as_str(), log[&2].as_str()), ("to-out\n", "to-err\n"));
    assert_eq!(ps(client, false).await, Vec::<String>::new());
    assert_eq!(ps(client, true).await, ["web"]);
}

async fn remove_all(client: &mut Client) {
    remove(client, "web", false).await.unwrap();
    assert_eq!(refusal(remove(client, "web", false).await), Code::NotFound);
    let listed = client.list_volumes(ListVolumesRequest {}).await.unwrap();
    let volumes = listed.into_inner().volumes;
    assert_eq!(volumes.len(), 1, "the anonymous volume was left: {volumes:?}");
    assert!(std::path::Path::new(&volumes[0].mountpoint).join("kept").exists());
    client.remove_volume(named("data")).await.unwrap();
    client.remove_image(named("busybox")).await.unwrap();
    let left = client.list_images(ListImagesRequest {}).await.unwrap();
    assert!(left.into_inner().images.is_empty());
}

fn refusal<T>(result: Result<T, tonic::Status>) -> Code {
    result.err().unwrap().code()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_starts_again_finds_what_runs_and_what_has_ended() {
    let home = Home::new("again");
    let mut host = Running::start(&home).await;
    import_busybox(&mut host.client).await;
    let runs = run(&mut host.client, shell("runs", UNTIL_TERM)).await.unwrap();
    run(
        &mut host.client,
        shell("ends", "echo last words; sleep 1; exit 3"),
    )
    .await
    .unwrap();
    run(&mut host.client, shell("rests", "while :; do sleep 1; done"))
        .await
        .unwrap();
    host.client.pause_container(named("rests")).await.unwrap();
    host.stop().await;
    tokio::time::sleep(Duration::from_secs(2)).await;

    let mut host = Running::start(&home).await;
    assert_eq!((host.recovered.running, host.recovered.ended), (2, 1));
    assert!(host.recovered.failed.is_empty(), "{:?}", host.recovered.failed);
    let client = &mut host.client;
    let found = inspect(client, "runs").await;
    assert_eq!((found.state(), found.pid), (ContainerState::Running, runs.pid));
    assert_eq!(
        exec(client, "runs", &["echo", "hello"], "").await,
        (0, "hello\n".into())
    );
    assert_eq!(inspect(client, "rests").await.state(), ContainerState::Paused);
    let ended = inspect(client, "ends").await;
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::Exited, 3));
    assert_eq!(logs(client, "ends", false).await[&1], "last words\n");

    // Its end is seen by the daemon that did not start it.
    let kill = KillContainerRequest {
        name: "runs".into(),
        signal: "TERM".into(),
    };
    client.kill_container(kill).await.unwrap();
    assert_eq!(wait(client, "runs").await, 7);
    assert_eq!(logs(client, "runs", true).await[&1], "to-out\n");
    remove(client, "rests", true).await.unwrap();
    remove(client, "runs", false).await.unwrap();
    remove(client, "ends", false).await.unwrap();
    host.stop().await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_cannot_be_made_leaves_nothing_and_says_why() {
    let home = Home::new("fails");
    let mut host = Running::start(&home).await;
    let client = &mut host.client;
    import_busybox(client).await;

    let mut missing_program = shell("x", "");
    missing_program.command = vec!["/no/such/program".into()];
    missing_program
        .mounts
        .push(mount(MountKind::Volume, "fresh", "/data"));
    let error = run(client, missing_program).await.unwrap_err();
    assert!(
        error.message().contains("nothing of it was left"),
        "{}",
        error.message()
    );
    assert!(
        error.message().contains("/no/such/program"),
        "{}",
        error.message()
    );

    let cases: [(Code, &str, Change); 6] = [
        (Code::NotFound, "there is no image \"nope\"", |spec| {
            spec.image = "nope".into()
        }),
        (Code::NotFound, "there is no network \"nope\"", |spec| {
            spec.network = "nope".into()
        }),
        (
            Code::InvalidArgument,
            "there is no storage driver \"nope\"",
            |spec| spec.storage_driver = "nope".into(),
        ),
        (Code::InvalidArgument, "user \"nobody-here\"", |spec| {
            spec.user = "nobody-here".into()
        }),
        (Code::InvalidArgument, "/no/such/path", |spec| {
            spec.mounts.push(mount(MountKind::Bind, "/no/such/path", "/x"));
        }),
        (Code::InvalidArgument, "same target", |spec| {
            spec.mounts.push(mount(MountKind::Tmpfs, "", "/x"));
            spec.mounts.push(mount(MountKind::Tmpfs, "", "/x/"));
        }),
    ];
    for (code, says, change) in cases {
        let mut spec = shell("x", "sleep 100");
        change(&mut spec);
        let error = run(client, spec).await.unwrap_err();
        assert_eq!(error.code(), code, "{}", error.message());
        assert!(error.message().contains(says), "{}", error.message());
    }
    assert_eq!(ps(client, true).await, Vec::<String>::new());
    assert!(
        client
            .list_volumes(ListVolumesRequest {})
            .await
            .unwrap()
            .into_inner()
            .volumes
            .is_empty()
    );
    host.stop().await;
    assert_eq!(home.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_outlive_containers_and_belong_to_one_driver() {
    let home = Home::new("volumes");
    let mut host = Running::start(&home).await;
    let client = &mut host.client;
    let labels = [("team".to_owned(), "db".to_owned())].into();
    let create = CreateVolumeRequest {
        name: "data".into(),
        driver: String::new(),
        labels,
    };
    let made = client.create_volume(create.clone()).await.unwrap().into_inner();
    assert_eq!(
        (made.driver.as_str(), made.labels["team"].as_str()),
        ("overlay", "db")
    );
    assert!(std::path::Path::new(&made.mountpoint).is_dir());
    assert_eq!(client.create_volume(create).await.unwrap().into_inner(), made);
    let unknown = CreateVolumeRequest {
        name: "x".into(),
        driver: "zfs".into(),
        ..Default::default()
    };
    assert_eq!(
        client.create_volume(unknown).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let bad = CreateVolumeRequest {
        name: "../x".into(),
        ..Default::default()
    };
    assert_eq!(
        client.create_volume(bad).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    host.stop().await;

    let mut host = Running::start(&home).await;
    assert_eq!(
        host.client
            .inspect_volume(named("data"))
            .await
            .unwrap()
            .into_inner(),
        made
    );
    host.client.remove_volume(named("data")).await.unwrap();
    assert_eq!(
        host.client.remove_volume(named("data")).await.unwrap_err().code(),
        Code::NotFound
    );
    assert!(!std::path::Path::new(&made.mountpoint).exists());
    host.stop().await;
}
