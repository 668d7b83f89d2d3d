//! The machine on its own.

use super::*;

const DIGEST: Digest = [7; 32];

const TO_READY: [DestinationEvent; 8] = [
    DestinationEvent::Heard(Message::Reserve { epoch: 4 }),
    DestinationEvent::Reserved,
    DestinationEvent::Recorded(DestinationStep::Reserved),
    DestinationEvent::Heard(Message::Drained { digest: DIGEST }),
    DestinationEvent::AllArrived { digest: DIGEST },
    DestinationEvent::Recorded(DestinationStep::Prepared),
    DestinationEvent::Held,
    DestinationEvent::Recorded(DestinationStep::Ready),
];
const GO: DestinationEvent = DestinationEvent::Heard(Message::Go {
    epoch: 4,
    digest: DIGEST,
});

fn after(events: &[DestinationEvent]) -> (DestinationHandoff, Effects) {
    let begin = (DestinationHandoff::default(), Vec::new());
    events
        .iter()
        .fold(begin, |(machine, _), event| machine.on(*event))
}

#[test]
fn the_way_without_failures_runs_the_container_behind_its_record() {
    let mut events = TO_READY.to_vec();
    assert_eq!(after(&events).1, [DestinationEffect::Send(Message::Ready)]);
    events.push(GO);
    let resuming = DestinationEffect::Record(DestinationStep::Resuming);
    assert_eq!(after(&events).1, [resuming]);
    events.push(DestinationEvent::Recorded(DestinationStep::Resuming));
    assert_eq!(after(&events).1, [DestinationEffect::Release]);
    events.extend([DestinationEvent::Released, DestinationEvent::Adopted]);
    events.push(DestinationEvent::Recorded(DestinationStep::Running));
    assert_eq!(after(&events).0.outcome(), Some(DestinationOutcome::Runs));
}

#[test]
fn whatever_fails_before_ready_drops_everything_and_after_it_asks() {
    let endings = [
        DestinationEvent::Failed,
        DestinationEvent::Lost,
        DestinationEvent::Overdue,
    ];
    for told in 0..TO_READY.len() {
        for ending in endings {
            let (_, effects) = after(&TO_READY[..told]).0.on(ending);
            assert_eq!(
                effects,
                [DestinationEffect::DropAll],
                "{told} events, then {ending:?}"
            );
        }
    }
    let other = Message::Go {
        epoch: 5,
        digest: DIGEST,
    };
    for doubt in endings.into_iter().chain([DestinationEvent::Heard(other)]) {
        let (asking, effects) = after(&TO_READY).0.on(doubt);
        assert_eq!(
            (asking.stage, effects),
            (
                Stage::Asking {
                    held: true,
                    silent: 0
                },
                vec![]
            )
        );
        let (same, effects) = asking.on(DestinationEvent::Says(Verdict::Undecided));
        assert!(same == asking && effects.is_empty());
        let (_, effects) = asking.on(DestinationEvent::Says(Verdict::Abandoned));
        assert_eq!(effects, [DestinationEffect::DropAll]);
    }
}

#[test]
fn another_checkpoint_than_the_one_that_was_sent_is_dropped() {
    let mut events = TO_READY[..4].to_vec();
    events.push(DestinationEvent::AllArrived { digest: [8; 32] });
    assert_eq!(after(&events).1, [DestinationEffect::DropAll]);
}

#[test]
fn after_the_commit_nothing_is_given_up() {
    let mut events = TO_READY.to_vec();
    events.push(GO);
    let (resuming, _) = after(&events);
    let unwritten = DestinationEvent::NotRecorded(DestinationStep::Resuming);
    for event in [DestinationEvent::Lost, DestinationEvent::Failed, unwritten] {
        let (same, effects) = resuming.on(event);
        assert!(same == resuming && effects.is_empty(), "{event:?}");
    }
    let again = resuming.on(DestinationEvent::Again).1;
    assert_eq!(again, [DestinationEffect::Record(DestinationStep::Resuming)]);
}

#[test]
fn what_was_released_is_never_restored_again() {
    use DestinationStep::{Prepared, Ready, Reserved, Resuming};
    let found = |steps: &[DestinationStep]| DestinationHandoff::recover(4, steps, false, false);
    for steps in [&[][..], &[Reserved], &[Reserved, Prepared]] {
        assert_eq!(found(steps).1, [DestinationEffect::DropAll]);
    }
    let (asking, _) = found(&[Reserved, Prepared, Ready]);
    let (_, effects) = asking.on(DestinationEvent::Says(Verdict::Committed));
    assert_eq!(effects, [DestinationEffect::Restore]);
    let (inspecting, effects) = found(&[Ready, Resuming]);
    assert_eq!(effects, [DestinationEffect::Inspect]);
    let inspected = |what| inspecting.on(DestinationEvent::Inspected(what));
    // Whether that still holds the source must say: a person may have decided otherwise.
    let (same, effects) = inspected(Inspection::NeverReleased);
    assert!(same == asking && effects.is_empty());
    assert_eq!(inspected(Inspection::Runs).1, [DestinationEffect::Adopt]);
    // It is this host's, and has ended.
    assert_eq!(inspected(Inspection::MayHaveRun).1, [DestinationEffect::Adopt]);
}

#[test]
fn what_could_not_be_dropped_is_dropped_again() {
    let (dropping, _) = DestinationHandoff::recover(4, &[DestinationStep::Prepared], false, false);
    let (same, effects) = dropping.on(DestinationEvent::Failed);
    assert!(same == dropping && effects.is_empty());
    let (_, effects) = dropping.on(DestinationEvent::Again);
    assert_eq!(effects, [DestinationEffect::DropAll]);
}

#[test]
fn that_nothing_is_left_is_written_until_it_is_on_record() {
    let (dropping, _) = DestinationHandoff::recover(4, &[DestinationStep::Prepared], false, false);
    let (forgetting, effects) = dropping.on(DestinationEvent::Dropped);
    let record = [DestinationEffect::Record(DestinationStep::Dropped)];
    assert_eq!(effects, record);
    let (same, effects) = forgetting.on(DestinationEvent::NotRecorded(DestinationStep::Dropped));
    assert_eq!(
        (same, effects),
        (forgetting, vec![DestinationEffect::Send(Message::Failed)])
    );
    let (same, effects) = forgetting.on(DestinationEvent::Again);
    assert_eq!((same, effects), (forgetting, record.to_vec()));
    let (ended, _) = forgetting.on(DestinationEvent::Recorded(DestinationStep::Dropped));
    assert_eq!(ended.outcome(), Some(DestinationOutcome::Dropped));
}

#[test]
fn what_was_not_released_is_restored_again_some_times() {
    let mut events = TO_READY.to_vec();
    events.extend([GO, DestinationEvent::Recorded(DestinationStep::Resuming)]);
    let (mut machine, effects) = after(&events);
    assert_eq!(effects, [DestinationEffect::Release]);
    for _ in 0..MOST_SETBACKS {
        let (inspecting, effects) = machine.on(DestinationEvent::Failed);
        assert_eq!(effects, [DestinationEffect::Inspect]);
        let (bringing, effects) = inspecting.on(DestinationEvent::Inspected(Inspection::NeverReleased));
        assert_eq!(effects, [DestinationEffect::Restore]);
        machine = bringing;
    }
    let (inspecting, _) = machine.on(DestinationEvent::Failed);
    let (giving_back, effects) = inspecting.on(DestinationEvent::Inspected(Inspection::NeverReleased));
    let given_back = DestinationEffect::Record(DestinationStep::GivenBack);
    assert_eq!(effects, [given_back]);
    // It may be on record: from here on nobody runs it.
    let (same, effects) = giving_back.on(DestinationEvent::NotRecorded(DestinationStep::GivenBack));
    assert!(same == giving_back && effects.is_empty());
    assert_eq!(same.on(DestinationEvent::Again).1, [given_back]);
    let (_, effects) = same.on(DestinationEvent::Recorded(DestinationStep::GivenBack));
    let told = DestinationEffect::Send(Message::GivenBack);
    assert_eq!(effects, [told, DestinationEffect::DropAll]);
}

#[test]
fn a_silent_source_is_waited_for_without_an_arbiter_and_not_with_one() {
    for arbiter in [false, true] {
        let (mut machine, _) = DestinationHandoff::recover(4, &[DestinationStep::Ready], false, arbiter);
        let mut claimed = false;
        for _ in 0..PATIENCE {
            assert!(!claimed);
            let (asking, effects) = machine.on(DestinationEvent::Again);
            assert_eq!(effects, [DestinationEffect::Ask]);
            let (next, effects) = asking.on(DestinationEvent::Silent);
            claimed = effects == [DestinationEffect::Claim];
            machine = next;
        }
        assert_eq!(claimed, arbiter);
        let (asking, effects) = machine.on(DestinationEvent::Silent);
        assert!(effects.is_empty());
        assert_eq!(asking.on(DestinationEvent::Again).1, [DestinationEffect::Ask]);
        let (_, effects) = machine.on(DestinationEvent::Says(Verdict::Committed));
        assert_eq!(effects, [DestinationEffect::Restore]);
    }
}

#[test]
fn what_a_person_decides_is_on_record_before_anything_is_done() {
    let (asking, _) = DestinationHandoff::recover(4, &[DestinationStep::Ready], false, false);
    let (taking, effects) = asking.on(DestinationEvent::Resolved(Resolution::Here));
    let record = DestinationEffect::Record(DestinationStep::TakenOver);
    assert_eq!(effects, [record]);
    let (taking, effects) = taking.on(DestinationEvent::NotRecorded(DestinationStep::TakenOver));
    assert!(effects.is_empty());
    assert!(taking.on(DestinationEvent::Says(Verdict::Abandoned)).1.is_empty());
    let (taking, effects) = taking.on(DestinationEvent::Again);
    assert_eq!(effects, [record]);
    let (_, effects) = taking.on(DestinationEvent::Recorded(DestinationStep::TakenOver));
    assert_eq!(effects, [DestinationEffect::Restore]);
    let (_, effects) = asking.on(DestinationEvent::Resolved(Resolution::There));
    assert_eq!(effects, [DestinationEffect::Record(DestinationStep::GivenBack)]);
}
