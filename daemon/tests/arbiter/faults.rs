//! Members of etcd that are killed and paused.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tranship_daemon::arbiter::{Arbiter, ArbiterError, Decision, EtcdArbiter, Handoff};
use tranship_daemon::etcd::{DEADLINE, Etcd};

use crate::etcd::EtcdCluster;
use crate::kinds::{handoff, name, new_container, opened};

/// A call's deadline, and what a busy machine takes to notice it.
pub const IN_TIME: Duration = DEADLINE.saturating_add(Duration::from_secs(1));

/// For a new leader, on a busy machine.
const SETTLED: Duration = Duration::from_secs(20);

/// How long members fail at random, and on how many containers is worked meanwhile.
const RANDOM: Duration = Duration::from_secs(16);
const LANES: usize = 4;

fn arbiter(cluster: &EtcdCluster) -> EtcdArbiter {
    EtcdArbiter::new(Etcd::new(&cluster.config()))
}

/// Repeats a call until its answer is certain. Each answer comes in time.
async fn certain<T>(call: impl AsyncFn() -> Result<T, ArbiterError>) -> T {
    counted(call).await.0
}

/// The same, with how many answers were not.
async fn counted<T>(call: impl AsyncFn() -> Result<T, ArbiterError>) -> (T, usize) {
    let begun = Instant::now();
    let mut unknown = 0;
    loop {
        let asked = Instant::now();
        let answer = call().await;
        assert!(asked.elapsed() < IN_TIME, "it took {:?}", asked.elapsed());
        match answer {
            Ok(answer) => return (answer, unknown),
            Err(error) if error.is_unknown() && begun.elapsed() < SETTLED => unknown += 1,
            Err(error) => panic!("after {:?}: {error}", begun.elapsed()),
        }
    }
}

#[tokio::test]
async fn with_one_follower_gone_every_call_succeeds() {
    let mut cluster = EtcdCluster::start(3).await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    // One that is asked first: it answered last.
    let arbiter = arbiter(&cluster);
    for gone in ["killed", "paused"] {
        match gone {
            "killed" => cluster.kill(follower),
            _ => cluster.pause(follower),
        }
        for committed in [true, false] {
            let handoff = opened(&cluster).await;
            let decision = match committed {
                true => arbiter.commit(&handoff).await.unwrap(),
                false => arbiter.abandon(&handoff).await.unwrap(),
            };
            assert_eq!(decision == Decision::Committed, committed, "{gone}");
            assert_eq!(arbiter.decision(&handoff).await.unwrap(), Some(decision));
        }
        match gone {
            "killed" => cluster.start_member(follower),
            _ => cluster.resume(follower),
        }
        cluster.leader().await;
    }
}

#[tokio::test]
async fn with_the_leader_gone_everything_is_decided_a_little_later() {
    let mut cluster = EtcdCluster::start(3).await;
    for gone in ["killed", "paused"] {
        let (one, two) = (opened(&cluster).await, opened(&cluster).await);
        let leader = cluster.leader().await;
        match gone {
            "killed" => cluster.kill(leader),
            _ => cluster.pause(leader),
        }
        let begun = Instant::now();
        let (source, destination) = (arbiter(&cluster), arbiter(&cluster));
        assert_eq!(
            certain(async || source.commit(&one).await).await,
            Decision::Committed
        );
        println!("the leader {gone}: decided after {:?}", begun.elapsed());
        assert_eq!(
            certain(async || destination.abandon(&two).await).await,
            Decision::Abandoned
        );
        match gone {
            "killed" => cluster.start_member(leader),
            _ => cluster.resume(leader),
        }
        cluster.leader().await;
        for (handoff, decision) in [(&one, Decision::Committed), (&two, Decision::Abandoned)] {
            assert_eq!(certain(async || source.commit(handoff).await).await, decision);
            assert_eq!(
                certain(async || destination.abandon(handoff).await).await,
                decision
            );
        }
    }
}

#[tokio::test]
async fn without_a_majority_nothing_is_known_and_later_one_thing() {
    let mut cluster = EtcdCluster::start(3).await;
    let handoff = opened(&cluster).await;
    let (source, destination) = (arbiter(&cluster), arbiter(&cluster));
    cluster.kill(0);
    cluster.kill(2);
    let mut unknown = 0;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        let calls = async { tokio::join!(source.commit(&handoff), destination.abandon(&handoff)) };
        let asked = Instant::now();
        let (one, other) = calls.await;
        assert!(asked.elapsed() < IN_TIME, "{:?}", asked.elapsed());
        assert!(one.unwrap_err().is_unknown() && other.unwrap_err().is_unknown());
        assert!(destination.decision(&handoff).await.unwrap_err().is_unknown());
        unknown += 1;
    }
    assert!(unknown > 0);
    cluster.start_member(0);
    cluster.start_member(2);
    cluster.leader().await;
    let decision = certain(async || source.commit(&handoff).await).await;
    for _ in 0..3 {
        assert_eq!(
            certain(async || destination.abandon(&handoff).await).await,
            decision
        );
        assert_eq!(certain(async || source.commit(&handoff).await).await, decision);
        assert_eq!(
            certain(async || source.decision(&handoff).await).await,
            Some(decision)
        );
    }
}

#[tokio::test]
async fn whatever_fails_no_two_answers_differ() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let mut random = Random(seed.unwrap_or(20));
    println!("SEED={}", random.0);
    let mut cluster = EtcdCluster::start(3).await;
    let over = AtomicBool::new(false);
    let arbiters: Vec<_> = (0..LANES)
        .map(|_| (arbiter(&cluster), arbiter(&cluster)))
        .collect();
    let lanes = futures_util::future::join_all(arbiters.iter().map(|(one, other)| lane(one, other, &over)));
    let failing = async {
        let begun = Instant::now();
        let mut faults = 0;
        while begun.elapsed() < RANDOM {
            fail_once(&mut cluster, &mut random).await;
            faults += 1;
        }
        over.store(true, Ordering::Relaxed);
        faults
    };
    let (faults, lanes) = tokio::join!(failing, lanes);
    let (mut decided, mut committed, mut unknown) = (0, 0, 0);
    for lane in lanes {
        let fresh = arbiter(&cluster);
        for (handoff, decision) in &lane.decided {
            assert_eq!(
                certain(async || fresh.decision(handoff).await).await,
                Some(*decision)
            );
            committed += usize::from(*decision == Decision::Committed);
        }
        decided += lane.decided.len();
        unknown += lane.unknown;
    }
    println!("{faults} faults; {decided} handoffs, {committed} of them committed; {unknown} answers unknown");
    assert!(decided > committed && committed > 0 && unknown > 0);
}

/// One member or two are away for a while.
async fn fail_once(cluster: &mut EtcdCluster, random: &mut Random) {
    let first = random.below(3);
    let second = (first + 1 + random.below(2)) % 3;
    let both = random.below(4) == 0;
    let members = if both { vec![first, second] } else { vec![first] };
    let killed = random.below(2) == 0;
    for &member in &members {
        match killed {
            true => cluster.kill(member),
            false => cluster.pause(member),
        }
    }
    // Without a majority for longer than a call takes, so that some do not get to know.
    sleep_ms(100 + random.below(900) + if both { 2200 } else { 0 }).await;
    for &member in &members {
        match killed {
            true => cluster.start_member(member),
            false => cluster.resume(member),
        }
    }
    sleep_ms(random.below(600)).await;
}

/// What became of the handoffs of one container.
struct Lane {
    decided: Vec<(Handoff, Decision)>,
    unknown: usize,
}

/// Hands a container over again and again: its source commits, its destination abandons, or the other way round, until both know.
async fn lane(one: &EtcdArbiter, other: &EtcdArbiter, over: &AtomicBool) -> Lane {
    let container = new_container();
    let mut lane = Lane {
        decided: Vec::new(),
        unknown: 0,
    };
    let (mut host, mut away, mut epoch) = ("a", "b", 1);
    while !over.load(Ordering::Relaxed) && lane.decided.len() < 60 {
        let mut next = handoff(&container, (host, epoch), away);
        let (token, unknown) = counted(async || one.open(&container, &name(host), epoch).await).await;
        next.token = token;
        lane.unknown += unknown;
        // So that most faults come while it is undecided.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (committed, abandoned) = match lane.decided.len() % 2 {
            0 => tokio::join!(answer(one, &next, true), answer(other, &next, false)),
            _ => tokio::join!(answer(other, &next, true), answer(one, &next, false)),
        };
        assert_eq!(committed.0, abandoned.0, "{next:?}");
        lane.unknown += committed.1 + abandoned.1;
        let (owner, unknown) = counted(async || other.owner(&container).await).await;
        lane.unknown += unknown;
        let owner = owner.unwrap();
        if committed.0 == Decision::Committed {
            (host, away, epoch) = (away, host, epoch + 1);
        }
        assert_eq!((owner.host.as_str(), owner.epoch), (host, epoch));
        lane.decided.push((next, committed.0));
    }
    lane
}

/// The first certain answer, checked against one more, and how many were not.
async fn answer(arbiter: &EtcdArbiter, handoff: &Handoff, commit: bool) -> (Decision, usize) {
    let (decision, unknown) = match commit {
        true => counted(async || arbiter.commit(handoff).await).await,
        false => counted(async || arbiter.abandon(handoff).await).await,
    };
    let (again, more) = counted(async || arbiter.decision(handoff).await).await;
    assert_eq!(again, Some(decision), "{handoff:?}");
    (decision, unknown + more)
}

async fn sleep_ms(ms: usize) {
    tokio::time::sleep(Duration::from_millis(ms as u64)).await;
}

/// Numbers that a seed repeats (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }
}
