//! Restores, through the real CRIU.

use super::*;

#[tokio::test]
async fn a_restored_container_goes_on_under_a_new_monitor() {
    let bed = Bed::new();
    bed.prepare(
        "i=0; trap 'exit 6' TERM; while :; do i=$((i+1)); echo $i; sleep 0.05; done",
        |_| {},
    );
    bed.use_criu();
    bed.runtime
        .create(&bed.paths)
        .await
        .unwrap()
        .start()
        .await
        .unwrap();
    bed.until_written("3\n").await;
    let images = bed.dump();
    assert_eq!(bed.ended().await.exit_code, Some(137), "the dump ended it");
    let before = bed.stdout().await;
    let arguments = [
        "--image-path".into(),
        images.clone().into(),
        "--work-path".into(),
        images.into(),
    ]
    .to_vec();
    let request = RestoreRequest {
        filler: None,
        arguments,
        environment: Vec::new(),
        deadline: PATIENCE,
    };
    let restored = bed
        .runtime
        .restore(&bed.paths, request)
        .await
        .unwrap()
        .finished()
        .await
        .unwrap();
    let found = find(&bed.paths).await.unwrap();
    assert!(
        matches!(found, Found::Running(life) if life.pid == restored.pid && life.monitored),
        "{found:?}"
    );
    assert_eq!(bed.shell("echo inside").await.0, "inside\n");
    let last: u32 = before.lines().last().unwrap().parse().unwrap();
    bed.until_written(&format!("\n{}\n", last + 5)).await;
    bed.runtime.kill(&bed.paths, 15).await.unwrap();
    assert_eq!(bed.ended().await.exit_code, Some(6));
    let all: Vec<u32> = bed
        .stdout()
        .await
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert!(all.iter().copied().eq(1..=all.len() as u32), "{all:?}");
    assert_eq!(
        bed.output(OutputStream::Stderr, true).await,
        b"",
        "runc's words are in the container's log"
    );
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_restore_without_images_fails_and_leaves_nothing() {
    let bed = Bed::new();
    bed.prepare("true", |_| {});
    bed.use_criu();
    let images = bed.images();
    let arguments = [
        "--image-path".into(),
        images.clone().into(),
        "--work-path".into(),
        images.into(),
    ]
    .to_vec();
    let request = RestoreRequest {
        filler: None,
        arguments,
        environment: Vec::new(),
        deadline: PATIENCE,
    };
    let restored = match bed.runtime.restore(&bed.paths, request).await {
        Ok(handle) => handle.finished().await,
        Err(error) => Err(error),
    };
    assert!(
        matches!(&restored, Err(StartError::Runtime { stage, .. }) if stage == "restore"),
        "{restored:?}"
    );
    assert_eq!(find(&bed.paths).await.unwrap(), Found::Gone);
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}

#[tokio::test]
async fn a_restore_that_hangs_is_given_up_with_all_that_it_started() {
    let bed = Bed::new();
    bed.prepare("true", |_| {});
    let criu = bed.runtime.criu_path_dir.join("criu");
    fs::write(&criu, "#!/bin/sh\nsleep 1000 & sleep 1000\n").unwrap();
    fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
    let images = bed.images();
    let arguments = [
        "--image-path".into(),
        images.clone().into(),
        "--work-path".into(),
        images.into(),
    ]
    .to_vec();
    let request = RestoreRequest {
        filler: None,
        arguments,
        environment: Vec::new(),
        deadline: Duration::from_secs(1),
    };
    let restored = bed
        .runtime
        .restore(&bed.paths, request)
        .await
        .unwrap()
        .finished()
        .await;
    match restored {
        Err(StartError::Runtime { detail, .. }) => {
            assert!(detail.contains("did not end in time"), "{detail}")
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(find(&bed.paths).await.unwrap(), Found::Gone);
    bed.runtime.delete(&bed.paths, true).await.unwrap();
    bed.assert_nothing_is_left();
}
