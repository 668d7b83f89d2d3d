//! Both roles against each other in one process: real trees, real frames over an in-memory stream, hosts that are
//! simulated and can be told to fail. Says who has the container in the end, whatever fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "loopback/destination.rs"]
mod destination;
#[path = "loopback/memory.rs"]
mod memory;
#[path = "loopback/run.rs"]
mod run;
#[path = "loopback/source.rs"]
mod source;
#[path = "loopback/world.rs"]
mod world;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use destination::SimulatedDestination;
use run::{Outcome, WISHES, migrate, migrate_in};
use source::reservation;
use tempfile::TempDir;
use tranship_migrate::convergence::{OnTimeout, Wishes};
use tranship_migrate::destination::{DestinationEnd, run_from_journal};
use tranship_migrate::error::chain;
use tranship_migrate::handoff::{DestinationStep, SourceStep};
use tranship_migrate::host::MemoryMode;
use tranship_migrate::source::SourceEnd;
use tranship_migrate::trees::TreeName;
use tranship_proto::ids::MigrationId;
use world::{Shared, World};

fn assert_one_owner(outcome: &Outcome, what: &str) {
    let (source, destination) = outcome
        .world
        .with(|world| (world.source_runs, world.destination_runs));
    assert!(
        source != destination,
        "{what}: source runs {source}, destination runs {destination}"
    );
    outcome.world.with(|world| {
        assert_eq!(
            world.source_runs, world.source_on_network,
            "{what}: source's network"
        );
        assert_eq!(
            world.destination_runs, world.destination_on_network,
            "{what}: destination's network"
        );
        assert!(!world.destination_holds, "{what}: frames are held for nobody");
        assert_eq!(world.copy_removed, world.destination_runs, "{what}: the copy");
        assert_eq!(
            world.destination_dropped,
            !world.destination_runs && outcome.destination.is_some(),
            "{what}"
        );
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_moves_and_every_byte_with_it() {
    let outcome = migrate(None, None, false).await;
    assert!(
        matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()),
        "{:?}",
        outcome.source.end
    );
    let destination = outcome.destination.as_ref().unwrap();
    assert!(
        matches!(destination.end, DestinationEnd::Runs),
        "{:?}",
        destination.end
    );
    assert_one_owner(&outcome, "nothing failed");
    assert_eq!(outcome.source.trees, destination.trees);
    let names: Vec<String> = outcome
        .source
        .trees
        .iter()
        .map(|tree| tree.name.to_string())
        .collect();
    assert_eq!(names[1..], ["images", "rootfs", "volume:data", "memory"]);
    outcome.world.with(|world| {
        assert!(world.memories.agree(), "the memory is not the same");
        assert!(!world.slowed);
    });
    let rounds = &outcome.source.rounds;
    assert!(rounds.len() > 3 && rounds.last().is_some_and(|round| round.frozen));
    assert!(outcome.source.blackout_us > 0);
    let journal = outcome.world.with(|world| world.source_journal.clone());
    assert_eq!(
        journal,
        [
            SourceStep::Intent,
            SourceStep::Freezing,
            SourceStep::Committed,
            SourceStep::Done
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_before_the_commit_leaves_the_source_running() {
    let points = [
        "describe",
        "source record",
        "open stream",
        "layer",
        "track memory",
        "round",
        "look at the memory",
        "frozen round",
        "last round",
        "keep pages",
        "page keeper",
        "memory complete",
        "standby",
        "prepare dump",
        "prepare restore",
        "freeze",
        "settle network",
        "cut network",
        "gather arrivals",
        "dump",
        "frozen trees",
        "finish dump",
        "reserve",
        "open tree",
        "layers complete",
        "record prepared",
        "restore",
        "record ready",
        "commit",
    ];
    for point in points {
        let outcome = migrate(Some(point), None, false).await;
        assert_one_owner(&outcome, point);
        assert!(
            outcome.world.with(|world| world.source_runs),
            "{point}: lost at the source"
        );
        assert!(
            matches!(&outcome.source.end, SourceEnd::Failed { undo, .. } if undo.is_empty() || point == "source record")
                || matches!(&outcome.source.end, SourceEnd::RolledBack { undo, .. } if undo.is_empty()),
            "{point}: {:?}",
            outcome.source.end
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reason_is_that_of_the_stream_that_failed_first_not_of_those_that_were_cut_for_it() {
    for point in ["open tree", "keep pages"] {
        let world = World {
            fail: Some(point),
            fail_times: 1,
            slow_to_close: true,
            ..World::default()
        };
        let outcome = migrate_in(world, None, false).await;
        let failure = match &outcome.source.end {
            SourceEnd::Failed { failure, .. } | SourceEnd::RolledBack { failure, .. } => chain(failure),
            other => panic!("{point}: {other:?}"),
        };
        assert!(failure.contains("told to fail"), "{point}: {failure}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_cannot_hold_frames_gets_the_container_all_the_same() {
    let outcome = migrate(Some("hold network"), None, false).await;
    assert!(
        matches!(&outcome.source.end, SourceEnd::Done { .. }),
        "{:?}",
        outcome.source.end
    );
    outcome
        .world
        .with(|world| assert!(world.destination_runs && !world.source_runs));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_cut_before_any_message_leaves_one_owner() {
    let messages = [
        "reserved",
        "round stored",
        "seeded",
        "standby",
        "freezing",
        "cut",
        "holding",
        "drained",
        "prepared",
        "ready",
        "go",
        "running",
    ];
    for message in messages {
        let outcome = migrate(None, Some(message), false).await;
        assert_one_owner(&outcome, message);
        let committed = outcome
            .world
            .with(|world| world.source_journal.contains(&SourceStep::Committed));
        assert_eq!(
            committed,
            outcome.world.with(|world| world.destination_runs),
            "{message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kernel_that_cannot_follow_memory_still_moves_containers() {
    let world = World {
        stop_and_copy: true,
        ..World::default()
    };
    let outcome = migrate_in(world, None, false).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()));
    assert_one_owner(&outcome, "stop and copy");
    assert_eq!(
        outcome.source.memory_mode,
        MemoryMode::StopAndCopy("told to".to_owned())
    );
    assert!(outcome.source.rounds.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_breaks_a_limit_is_refused_before_anything_is_asked_of_the_destination() {
    let asked = |memory_bytes: u64, strict: bool, on_timeout: OnTimeout| World {
        stop_and_copy: true,
        memory_bytes,
        wishes: Some(Wishes {
            max_downtime: Duration::from_secs(1),
            strict,
            on_timeout,
            ..WISHES
        }),
        ..World::default()
    };
    let refused = migrate_in(asked(1 << 30, true, OnTimeout::Cancel), None, false).await;
    let SourceEnd::Failed { failure, undo } = &refused.source.end else {
        panic!("{:?}", refused.source.end);
    };
    let said = chain(failure);
    let parts = ["1000 ms cannot be kept", "1024 MiB", "10300 ms"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    assert!(undo.is_empty() && refused.destination.is_none() && refused.source.trees.is_empty());
    assert_one_owner(&refused, "refused");
    let calls = refused.world.with(|world| world.calls.clone());
    assert!(!calls.contains(&"freeze"), "{calls:?}");
    // What fits, what nobody insists on, and what is to be forced.
    for world in [
        asked(64 << 20, true, OnTimeout::Cancel),
        asked(1 << 30, false, OnTimeout::Cancel),
        asked(1 << 30, true, OnTimeout::Force),
    ] {
        let outcome = migrate_in(world, None, false).await;
        assert!(matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()));
        assert_one_owner(&outcome, "allowed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_moves_in_pre_dumps_until_they_shrink_no_more() {
    let world = World {
        pre_dump: true,
        memory_bytes: 8 << 20,
        ..World::default()
    };
    let outcome = migrate_in(world, None, false).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()));
    assert_one_owner(&outcome, "pre-dumps");
    let bytes: Vec<u64> = outcome.source.rounds.iter().map(|round| round.bytes).collect();
    assert!(
        bytes.len() >= 2 && bytes[0] == 8 << 20 && bytes[1] == 4 << 20,
        "{bytes:?}"
    );
    let trees: Vec<_> = outcome
        .source
        .trees
        .iter()
        .map(|tree| tree.name.clone())
        .collect();
    let last = TreeName::Round(u32::try_from(bytes.len() - 1).unwrap());
    let at = |name: &TreeName| trees.iter().position(|tree| tree == name).unwrap();
    assert!(at(&last) < at(&TreeName::Images), "{trees:?}");
    let calls = outcome.world.with(|world| world.calls.clone());
    let prepared = calls.iter().position(|call| *call == "prepare dump").unwrap();
    assert!(
        !calls[prepared..].contains(&"pre-dump"),
        "a round after the dump was prepared"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pre_dump_that_fails_leaves_the_container_at_the_source() {
    let world = World {
        pre_dump: true,
        memory_bytes: 8 << 20,
        fail: Some("pre-dump"),
        fail_times: 1,
        ..World::default()
    };
    let outcome = migrate_in(world, None, false).await;
    assert!(
        matches!(&outcome.source.end, SourceEnd::Failed { .. }),
        "{:?}",
        outcome.source.end
    );
    assert_one_owner(&outcome, "a pre-dump that fails");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_that_cannot_leave_memory_out_takes_it_along() {
    let world = World {
        stop_and_copy_late: true,
        ..World::default()
    };
    let outcome = migrate_in(world, None, false).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()));
    assert_one_owner(&outcome, "stop and copy after rounds");
    assert_eq!(
        outcome.source.memory_mode.to_string(),
        "stop and copy: found out late"
    );
    let rounds = outcome.source.rounds.iter();
    assert!(rounds.len() > 0 && rounds.into_iter().all(|round| !round.frozen));
    outcome.world.with(|world| {
        assert!(world.memory_in_images);
        let prepared = world.calls.iter().filter(|call| **call == "prepare restore");
        assert_eq!(prepared.count(), 2, "{:?}", world.calls);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_that_takes_memory_along_keeps_the_limit_too() {
    let world = World {
        stop_and_copy_late: true,
        memory_bytes: 1 << 30,
        wishes: Some(Wishes {
            strict: true,
            ..WISHES
        }),
        ..World::default()
    };
    let outcome = migrate_in(world, None, false).await;
    let SourceEnd::Failed { failure, undo } = &outcome.source.end else {
        panic!("{:?}", outcome.source.end);
    };
    assert!(
        undo.is_empty() && chain(failure).contains("1024 MiB"),
        "{failure:?}"
    );
    assert_one_owner(&outcome, "refused after rounds");
    outcome
        .world
        .with(|world| assert!(world.source_runs && !world.calls.contains(&"freeze")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_nobody_knows_of_keeps_the_copy_frozen() {
    let outcome = migrate(Some("commit fsync"), None, false).await;
    assert!(
        matches!(outcome.source.end, SourceEnd::Unknown(_)),
        "{:?}",
        outcome.source.end
    );
    assert!(!outcome.world.with(|world| world.source_runs));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_let_run_again_before_it_is_written_that_it_will() {
    for (fail_times, runs) in [(1, true), (2, false)] {
        let world = World {
            fail: Some("record giving_up"),
            fail_times,
            ..World::default()
        };
        let outcome = migrate_in(world, Some("drained"), false).await;
        let as_expected = match &outcome.source.end {
            SourceEnd::RolledBack { undo, .. } => runs && undo.is_empty(),
            SourceEnd::Unknown(_) => !runs,
            _ => false,
        };
        assert!(as_expected, "{fail_times}: {:?}", outcome.source.end);
        assert_eq!(outcome.world.with(|world| world.source_runs), runs);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_written_after_the_commit_is_tried_again() {
    for point in ["record resuming", "adopt", "record running"] {
        let world = World {
            fail: Some(point),
            fail_times: 2,
            ..World::default()
        };
        let outcome = migrate_in(world, None, false).await;
        assert!(
            matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()),
            "{point}: {:?}",
            outcome.source.end
        );
        assert_one_owner(&outcome, point);
        let released = |calls: &Vec<&str>| calls.iter().filter(|call| **call == "release").count();
        assert_eq!(outcome.world.with(|world| released(&world.calls)), 1, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_runs_off_its_network_has_moved_and_both_ends_say_so() {
    let outcome = migrate(Some("plug"), None, false).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Done { left } if left.is_empty()));
    let destination = outcome.destination.as_ref().unwrap();
    assert!(matches!(destination.end, DestinationEnd::Runs));
    for warnings in [&outcome.source.warnings, &destination.warnings] {
        let [warning] = &warnings[..] else {
            panic!("{warnings:?}");
        };
        let parts = [
            "runs at there",
            "not on its network",
            "told to fail",
            "goes on trying",
        ];
        assert!(parts.iter().all(|part| warning.contains(part)), "{warning}");
    }
    outcome.world.with(|world| {
        assert!(world.destination_runs && world.copy_removed && !world.source_on_network);
        let done = [DestinationStep::Resuming, DestinationStep::Running];
        assert!(world.destination_journal.ends_with(&done));
    });
    let well = migrate(None, None, false).await;
    assert!(well.source.warnings.is_empty() && well.destination.unwrap().warnings.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_a_restarted_daemon_cannot_plug_in_is_adopted_with_the_same_warning() {
    let dir = TempDir::new().unwrap();
    let world = Shared(Arc::new(Mutex::new(World {
        destination_runs: true,
        fail: Some("plug"),
        fail_times: usize::MAX,
        ..World::default()
    })));
    let host = SimulatedDestination::new(&world, dir.path(), VecDeque::new());
    let steps = [DestinationStep::Ready, DestinationStep::Resuming];
    let id = MigrationId::generate();
    let report = run_from_journal(id, Arc::new(host), reservation(), &steps, false).await;
    assert!(matches!(report.end, DestinationEnd::Runs), "{:?}", report.end);
    assert!(
        report.warnings[0].contains("told to fail"),
        "{:?}",
        report.warnings
    );
    let expected = ["inspect", "plug", "adopt", "record running"];
    assert_eq!(world.with(|world| world.calls.clone()), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_is_not_let_in_leaves_what_is_there_alone() {
    let outcome = migrate(Some("admit"), None, false).await;
    assert!(
        matches!(&outcome.source.end, SourceEnd::Failed { .. }),
        "{:?}",
        outcome.source.end
    );
    let destination = outcome.destination.unwrap();
    assert!(matches!(destination.end, DestinationEnd::Dropped { .. }));
    outcome.world.with(|world| {
        assert!(world.source_runs && !world.destination_dropped);
        assert_eq!(world.destination_journal, [DestinationStep::Dropped]);
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_migration_touches_nothing() {
    let outcome = migrate(None, None, true).await;
    assert!(matches!(&outcome.source.end, SourceEnd::Failed { failure, .. } if failure.is_cancelled()));
    outcome.world.with(|world| {
        assert!(world.source_runs && world.source_on_network);
        assert_eq!(world.source_journal, [SourceStep::Aborted]);
        assert_eq!(world.calls, ["source record"]);
    });
}
