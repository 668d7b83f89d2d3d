//! Who decides a handoff decides it once, whoever asks, however often, and whatever fails meanwhile.
//!
//! What every arbiter promises is checked of each kind there is; etcd is a real cluster of three members.

#![expect(clippy::unwrap_used, reason = "a test says what went wrong by failing")]

#[path = "common/etcd.rs"]
mod etcd;
#[path = "arbiter/faults.rs"]
mod faults;
#[path = "arbiter/kinds.rs"]
mod kinds;

use std::path::PathBuf;
use std::time::Instant;

use etcd::EtcdCluster;
use kinds::{Kind, Local, handoff, name, new_container, opened};
use tranship_daemon::arbiter::{Arbiter, ArbiterError, Decision, EtcdArbiter, LocalArbiter, Owner, Token};
use tranship_daemon::etcd::Etcd;
use tranship_daemon::registry::Registry;
use tranship_proto::ids::MigrationId;
use tranship_proto::v1::MigrationRole;

const RACES: usize = 60;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_journal_keeps_what_an_arbiter_promises() {
    promises(Local::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_keeps_what_an_arbiter_promises() {
    promises(EtcdCluster::start(3).await).await;
}

async fn promises(mut kind: impl Kind) {
    an_answer_stays(&kind).await;
    of_two_at_once_one_decides(&kind).await;
    what_was_answered_is_there_after_a_restart(&mut kind).await;
}

async fn an_answer_stays(kind: &dyn Kind) {
    for committed in [true, false] {
        let handoff = opened(kind).await;
        let arbiter = kind.arbiter(handoff.migration);
        assert_eq!(arbiter.decision(&handoff).await.unwrap(), None);
        let begun = Instant::now();
        let decision = match committed {
            true => arbiter.commit(&handoff).await.unwrap(),
            false => arbiter.abandon(&handoff).await.unwrap(),
        };
        println!("{decision:?} in {:?}", begun.elapsed());
        assert_eq!(decision == Decision::Committed, committed);
        for _ in 0..2 {
            let other = kind.arbiter(handoff.migration);
            assert_eq!(other.abandon(&handoff).await.unwrap(), decision);
            assert_eq!(other.commit(&handoff).await.unwrap(), decision);
            assert_eq!(other.decision(&handoff).await.unwrap(), Some(decision));
        }
    }
}

async fn of_two_at_once_one_decides(kind: &dyn Kind) {
    let (mut committed, begun) = (0, Instant::now());
    for _ in 0..RACES {
        let handoff = opened(kind).await;
        let (one, other) = (kind.arbiter(handoff.migration), kind.arbiter(handoff.migration));
        let (first, second) = (handoff.clone(), handoff.clone());
        let committing = tokio::spawn(async move { one.commit(&first).await });
        let abandoning = tokio::spawn(async move { other.abandon(&second).await });
        let (one, other) = (
            committing.await.unwrap().unwrap(),
            abandoning.await.unwrap().unwrap(),
        );
        assert_eq!(one, other);
        let arbiter = kind.arbiter(handoff.migration);
        assert_eq!(arbiter.decision(&handoff).await.unwrap(), Some(one));
        committed += usize::from(one == Decision::Committed);
    }
    println!(
        "{committed} of {RACES} races were committed, in {:?}",
        begun.elapsed()
    );
}

async fn what_was_answered_is_there_after_a_restart(kind: &mut dyn Kind) {
    let mut decided = Vec::new();
    for number in 0..6 {
        let handoff = opened(kind).await;
        let arbiter = kind.arbiter(handoff.migration);
        let decision = match number % 2 {
            0 => arbiter.commit(&handoff).await.unwrap(),
            _ => arbiter.abandon(&handoff).await.unwrap(),
        };
        decided.push((handoff, decision));
    }
    kind.restart().await;
    for (handoff, decision) in decided {
        let arbiter = kind.arbiter(handoff.migration);
        assert_eq!(arbiter.decision(&handoff).await.unwrap(), Some(decision));
        assert_eq!(arbiter.commit(&handoff).await.unwrap(), decision);
        assert_eq!(arbiter.abandon(&handoff).await.unwrap(), decision);
    }
}

#[tokio::test]
async fn what_a_daemon_has_left_uncommitted_is_abandoned_by_the_next() {
    let mut kind = Local::new();
    let handoff = opened(&kind).await;
    kind.restart().await;
    let arbiter = kind.arbiter(handoff.migration);
    assert_eq!(arbiter.commit(&handoff).await.unwrap(), Decision::Abandoned);
}

#[tokio::test]
async fn a_journal_on_a_full_disk_decides_nothing_and_later_one_thing() {
    let dir = tempfile::tempdir().unwrap();
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("small"), dir.path(), Some("tmpfs"), none, Some("size=4m")).unwrap();
    let _unmounted = Unmount(dir.path().to_owned());
    let registry = Registry::open(&dir.path().join("r.db")).unwrap();
    for committing in [true, false] {
        let handoff = handoff(&new_container(), ("a", 1), "b");
        let ballast = dir.path().join("ballast");
        fill(&ballast);
        let filler = MigrationId::generate();
        let data = serde_json::json!("x".repeat(4000));
        let migrations = registry.migrations();
        let write = || migrations.append_step(filler, MigrationRole::Source, "intent", 1, data.clone());
        while write().await.is_ok() {}

        let arbiter = LocalArbiter::new(registry.clone(), handoff.migration);
        for answer in [arbiter.commit(&handoff).await, arbiter.abandon(&handoff).await] {
            let error = answer.unwrap_err();
            assert!(error.is_unknown(), "{error}");
        }
        std::fs::remove_file(&ballast).unwrap();
        let first = match committing {
            true => arbiter.commit(&handoff).await.unwrap(),
            false => arbiter.abandon(&handoff).await.unwrap(),
        };
        assert_eq!(first == Decision::Committed, committing);
        assert_eq!(arbiter.commit(&handoff).await.unwrap(), first);
        assert_eq!(arbiter.abandon(&handoff).await.unwrap(), first);
    }
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
}

/// To the last byte.
fn fill(path: &std::path::Path) {
    use std::io::Write;
    let mut file = std::fs::File::create(path).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
}

#[tokio::test]
async fn in_etcd_epochs_only_grow_and_nobody_but_the_owner_hands_over() {
    let cluster = EtcdCluster::start(1).await;
    let arbiter = EtcdArbiter::new(Etcd::new(&cluster.config()));
    let container = new_container();
    let refused = |error: ArbiterError| matches!(error, ArbiterError::NotOwner { .. });

    assert_eq!(arbiter.owner(&container).await.unwrap(), None);
    let token = arbiter.open(&container, &name("a"), 3).await.unwrap();
    assert_eq!(arbiter.open(&container, &name("a"), 3).await.unwrap(), token);
    assert!(refused(
        arbiter.open(&container, &name("a"), 2).await.unwrap_err()
    ));
    assert!(refused(
        arbiter.open(&container, &name("b"), 3).await.unwrap_err()
    ));
    let raised = arbiter.open(&container, &name("a"), 5).await.unwrap();
    assert!(raised > token);
    let brought = arbiter.open(&container, &name("b"), 6).await.unwrap();
    assert!(brought > raised);
    assert_eq!(owner(&arbiter, &container).await, owned_by("b", 6));

    // A handoff whose source is not what is on record is not decided.
    let mut wrong = handoff(&container, ("a", 6), "c");
    wrong.token = brought;
    assert!(refused(arbiter.commit(&wrong).await.unwrap_err()));
    assert!(refused(arbiter.abandon(&wrong).await.unwrap_err()));

    // On an old token nothing is committed.
    let mut first = handoff(&container, ("b", 6), "c");
    first.token = brought;
    assert_eq!(arbiter.abandon(&first).await.unwrap(), Decision::Abandoned);
    let mut old = handoff(&container, ("b", 6), "d");
    old.token = brought;
    assert_eq!(arbiter.commit(&old).await.unwrap(), Decision::Abandoned);
    let mut next = old.clone();
    next.token = arbiter.open(&container, &name("b"), 6).await.unwrap();
    assert_eq!(arbiter.commit(&next).await.unwrap(), Decision::Committed);
    assert_eq!(owner(&arbiter, &container).await, owned_by("d", 7));
    assert_eq!(arbiter.decision(&first).await.unwrap(), Some(Decision::Abandoned));
    assert!(refused(
        arbiter.open(&container, &name("b"), 6).await.unwrap_err()
    ));
}

#[tokio::test]
async fn in_etcd_what_a_person_takes_is_committed_to_nobody() {
    let cluster = EtcdCluster::start(1).await;
    let arbiter = EtcdArbiter::new(Etcd::new(&cluster.config()));
    let refused = |error: ArbiterError| matches!(error, ArbiterError::NotOwner { .. });
    let superseded = |error: ArbiterError| matches!(error, ArbiterError::Superseded { .. });

    // By the source, as it is on record: the handoff is abandoned.
    let one = opened(&cluster).await;
    arbiter.take(&one.container, &name("a"), 1).await.unwrap();
    assert_eq!(arbiter.commit(&one).await.unwrap(), Decision::Abandoned);

    // By the destination, which was not told: neither side may go on by itself.
    let two = opened(&cluster).await;
    assert!(refused(
        arbiter.take(&two.container, &name("b"), 1).await.unwrap_err()
    ));
    arbiter.take(&two.container, &name("b"), 2).await.unwrap();
    arbiter.take(&two.container, &name("b"), 2).await.unwrap();
    assert!(superseded(arbiter.abandon(&two).await.unwrap_err()));
    assert!(superseded(arbiter.commit(&two).await.unwrap_err()));
    assert_eq!(owner(&arbiter, &two.container).await, owned_by("b", 2));
    assert!(refused(
        arbiter.take(&two.container, &name("b"), 1).await.unwrap_err()
    ));

    // Whoever is not the owner forgets nothing, and what is forgotten is decided no more.
    let three = opened(&cluster).await;
    arbiter.forget(&three.container, &name("b")).await.unwrap();
    assert_eq!(arbiter.commit(&three).await.unwrap(), Decision::Committed);
    arbiter.forget(&three.container, &name("a")).await.unwrap();
    assert_eq!(owner(&arbiter, &three.container).await, owned_by("b", 2));
    arbiter.forget(&three.container, &name("b")).await.unwrap();
    arbiter.forget(&three.container, &name("b")).await.unwrap();
    assert_eq!(owner(&arbiter, &three.container).await, None);
    assert!(superseded(arbiter.abandon(&three).await.unwrap_err()));
    arbiter.open(&three.container, &name("a"), 1).await.unwrap();
    assert!(superseded(arbiter.abandon(&three).await.unwrap_err()));
}

#[tokio::test]
async fn an_etcd_that_is_not_there_leaves_everything_unknown_and_in_time() {
    let mut cluster = EtcdCluster::start(1).await;
    cluster.kill(0);
    let arbiter = EtcdArbiter::new(Etcd::new(&cluster.config()));
    let mut handoff = handoff(&new_container(), ("a", 1), "b");
    handoff.token = Token(1);
    let begun = Instant::now();
    let error = arbiter.commit(&handoff).await.unwrap_err();
    assert!(error.is_unknown() && begun.elapsed() < faults::IN_TIME, "{error}");
    let text = tranship_daemon::peers::refusal::chain(&error);
    assert!(
        text.starts_with("it is not known whether the handoff is committed: etcd"),
        "{text}"
    );
    cluster.start_member(0);
    cluster.leader().await;
    assert!(arbiter.open(&handoff.container, &name("a"), 1).await.is_ok());
}

async fn owner(arbiter: &dyn Arbiter, container: &tranship_proto::ids::ContainerId) -> Option<Owner> {
    arbiter.owner(container).await.unwrap()
}

fn owned_by(host: &str, epoch: u64) -> Option<Owner> {
    Some(Owner {
        host: name(host),
        epoch,
    })
}
