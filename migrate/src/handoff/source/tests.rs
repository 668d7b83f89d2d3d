//! The machine on its own.

use super::*;

const DIGEST: Digest = [7; 32];

fn way_to_commit() -> Vec<SourceEvent> {
    vec![
        SourceEvent::Begin { epoch: 4 },
        SourceEvent::Recorded(SourceStep::Intent),
        SourceEvent::Heard(Message::Reserved),
        SourceEvent::Freeze,
        SourceEvent::Recorded(SourceStep::Freezing),
        SourceEvent::StandsStill,
        SourceEvent::AllSent { digest: DIGEST },
        SourceEvent::Heard(Message::Prepared { digest: DIGEST }),
        SourceEvent::Heard(Message::Ready),
    ]
}

fn after(events: &[SourceEvent]) -> (SourceHandoff, Effects) {
    let begin = (SourceHandoff::default(), Vec::new());
    events
        .iter()
        .fold(begin, |(machine, _), event| machine.on(*event))
}

/// What is done at last, behind the record that the container is about to run here again.
fn undone((machine, effects): (SourceHandoff, Effects)) -> Effects {
    match effects.last() {
        Some(SourceEffect::Record(SourceStep::GivingUp)) => {
            machine.on(SourceEvent::Recorded(SourceStep::GivingUp)).1
        }
        _ => effects,
    }
}

#[test]
fn the_way_without_failures_commits_and_removes_the_copy() {
    let mut events = way_to_commit();
    let (_, effects) = after(&events);
    assert_eq!(effects, [SourceEffect::Commit { digest: Some(DIGEST) }]);
    events.push(SourceEvent::Recorded(SourceStep::Committed));
    let go = Message::Go {
        epoch: 4,
        digest: DIGEST,
    };
    assert_eq!(after(&events).1, [SourceEffect::Send(go)]);
    events.push(SourceEvent::Heard(Message::Running));
    assert_eq!(after(&events).1, [SourceEffect::RemoveCopy]);
    events.push(SourceEvent::Removed { whole: true });
    events.push(SourceEvent::Recorded(SourceStep::Done));
    assert_eq!(after(&events).0.outcome(), Some(SourceOutcome::Done));
}

#[test]
fn whatever_ends_it_before_the_commit_undoes_it_and_nothing_after_does() {
    let mut events = way_to_commit();
    events.push(SourceEvent::Recorded(SourceStep::Committed));
    let endings = [
        SourceEvent::Failed,
        SourceEvent::Lost,
        SourceEvent::Overdue,
        SourceEvent::Cancelled,
        SourceEvent::Heard(Message::Failed),
    ];
    for told in 0..=events.len() {
        for ending in endings {
            let effects = undone(after(&events[..told]).0.on(ending));
            let undone = effects
                .iter()
                .any(|effect| matches!(effect, SourceEffect::Undo { .. }));
            assert_eq!(
                undone,
                told < way_to_commit().len(),
                "{told} events, then {ending:?}"
            );
            let thaw = effects.contains(&SourceEffect::Undo { thaw: true });
            assert_eq!(thaw, undone && told >= 6, "{told} events, then {ending:?}");
        }
    }
}

#[test]
fn a_commit_nobody_knows_of_is_only_judged_by_a_journal_that_can_be_written() {
    let mut events = way_to_commit();
    events.push(SourceEvent::InDoubt(SourceStep::Committed));
    let (unsure, effects) = after(&events);
    assert!(effects.is_empty() && unsure.awaits_time());
    let (abandoning, effects) = unsure.on(SourceEvent::Again);
    assert_eq!(effects, [SourceEffect::Abandon]);
    assert_eq!(
        abandoning.on(SourceEvent::InDoubt(SourceStep::Freezing)).0,
        unsure
    );
    let (mirroring, effects) = abandoning.on(SourceEvent::Decided { committed: true });
    assert_eq!(effects, [SourceEffect::Record(SourceStep::Committed)]);
    assert_eq!(
        mirroring.on(SourceEvent::InDoubt(SourceStep::Committed)).0,
        unsure
    );
    let (asking, effects) = mirroring.on(SourceEvent::Recorded(SourceStep::Committed));
    assert!(asking.is_asking() && effects.is_empty());
    let effects = undone(abandoning.on(SourceEvent::Decided { committed: false }));
    assert!(effects.contains(&SourceEffect::Undo { thaw: true }));
}

#[test]
fn nothing_is_thawed_before_it_is_on_record_that_it_is_given_up() {
    let (frozen, _) = after(&way_to_commit()[..6]);
    let (mut giving_up, mut effects) = frozen.on(SourceEvent::Lost);
    let record = [SourceEffect::Record(SourceStep::GivingUp)];
    for failure in [
        SourceEvent::InDoubt(SourceStep::GivingUp),
        SourceEvent::NotRecorded(SourceStep::GivingUp),
        SourceEvent::InDoubt(SourceStep::GivingUp),
    ] {
        assert_eq!(effects, record);
        (giving_up, effects) = giving_up.on(failure);
        if effects.is_empty() {
            assert!(giving_up.awaits_time());
            (giving_up, effects) = giving_up.on(SourceEvent::Again);
        }
    }
    let (_, effects) = giving_up.on(SourceEvent::Recorded(SourceStep::GivingUp));
    assert!(effects.contains(&SourceEffect::Undo { thaw: true }));
    // That it can be read does not say that it stays.
    let steps = [SourceStep::Intent, SourceStep::Freezing, SourceStep::GivingUp];
    let read = SourceHandoff::in_doubt(Found::default(), &steps);
    assert_eq!(read.on(SourceEvent::Again).1, record);
}

#[test]
fn what_is_found_after_a_crash_is_undone_up_to_the_commit_and_finished_after_it() {
    use SourceStep::{Committed, Done, Freezing, GivingUp, Intent, RolledBack};
    let found = |steps: &[SourceStep], superseded| {
        let found = Found {
            epoch: 4,
            superseded,
            ..Found::default()
        };
        SourceHandoff::recover(found, steps)
    };
    assert_eq!(found(&[], false).1, [SourceEffect::Undo { thaw: false }]);
    assert_eq!(found(&[Intent], false).1, [SourceEffect::Undo { thaw: false }]);
    assert_eq!(
        found(&[Intent, Freezing], false).1,
        [SourceEffect::Record(GivingUp)]
    );
    assert_eq!(
        found(&[Intent, Freezing, GivingUp], false).1,
        [SourceEffect::Undo { thaw: true }]
    );
    assert_eq!(
        found(&[Intent, Freezing], true).1,
        [SourceEffect::Record(RolledBack)]
    );
    for steps in [
        &[Intent, Freezing, Committed][..],
        &[Intent, Freezing, Committed, Freezing],
    ] {
        let (machine, effects) = found(steps, true);
        assert!(machine.is_asking() && effects.is_empty());
    }
    assert_eq!(
        found(&[Intent, Committed, Done], false).0.outcome(),
        Some(SourceOutcome::Done)
    );
}

/// What is found after a crash.
fn found(steps: &[SourceStep], found: Found) -> (SourceHandoff, Effects) {
    SourceHandoff::recover(Found { epoch: 4, ..found }, steps)
}

#[test]
fn what_is_given_back_is_this_hosts_again_under_a_further_epoch() {
    let mut events = way_to_commit();
    events.push(SourceEvent::Recorded(SourceStep::Committed));
    let again = [SourceEffect::Own { epoch: 5 }, SourceEffect::Undo { thaw: true }];
    let taken_back = SourceEffect::Record(SourceStep::TakenBack);
    let (taking, effects) = after(&events).0.on(SourceEvent::Heard(Message::GivenBack));
    assert_eq!(effects, [taken_back]);
    assert_eq!(taking.on(SourceEvent::Recorded(SourceStep::TakenBack)).1, again);
    let (asking, _) = taking.on(SourceEvent::InDoubt(SourceStep::TakenBack));
    assert!(asking.is_asking());
    for event in [
        SourceEvent::Says(DestinationSays::GivenBack),
        SourceEvent::Resolved(Resolution::Here),
    ] {
        assert_eq!(asking.on(event).1, [taken_back], "{event:?}");
    }
    let steps = [SourceStep::Committed, SourceStep::TakenBack];
    assert_eq!(found(&steps, Found::default()).1, again);
    let (_, effects) = asking.on(SourceEvent::Resolved(Resolution::There));
    assert_eq!(effects, [SourceEffect::RemoveCopy]);
}

#[test]
fn under_an_arbiter_nothing_is_thawed_that_may_be_the_destinations() {
    let way = way_to_commit();
    let told = |count: usize| {
        let begin = SourceHandoff::under(true);
        way[..count]
            .iter()
            .fold(begin, |machine, event| machine.on(*event).0)
    };
    for count in 0..way.len() {
        let (machine, effects) = told(count).on(SourceEvent::Lost);
        let all_sent = count > 6;
        assert_eq!(effects == [SourceEffect::Abandon], all_sent, "{count} events");
        if all_sent {
            let (_, effects) = machine.on(SourceEvent::Decided { committed: false });
            assert!(effects.contains(&SourceEffect::Undo { thaw: true }));
            let (_, effects) = machine.on(SourceEvent::Decided { committed: true });
            assert_eq!(effects, [SourceEffect::Record(SourceStep::Committed)]);
            let (unsure, effects) = machine.on(SourceEvent::InDoubt(SourceStep::Committed));
            assert!(effects.is_empty() && unsure.outcome().is_none());
            assert_eq!(unsure.on(SourceEvent::Again).1, [SourceEffect::Abandon]);
        }
    }
    let arbiter = Found {
        arbiter: true,
        ..Found::default()
    };
    let effects = found(&[SourceStep::Intent, SourceStep::Freezing], arbiter).1;
    assert_eq!(effects, [SourceEffect::Abandon]);
}

#[test]
fn a_host_that_was_switched_off_commits_where_the_destination_is_ready() {
    let rebooted = Found {
        rebooted: true,
        ..Found::default()
    };
    let (stranded, effects) = found(&[SourceStep::Intent, SourceStep::Freezing], rebooted);
    assert_eq!(effects, [SourceEffect::Ask]);
    let (rescuing, effects) = stranded.on(SourceEvent::Says(DestinationSays::Ready));
    assert_eq!(effects, [SourceEffect::Commit { digest: None }]);
    let committed = SourceEvent::Recorded(SourceStep::Committed);
    assert!(rescuing.on(committed).0.is_asking());
    for says in [DestinationSays::Waits, DestinationSays::Gone] {
        let effects = undone(stranded.on(SourceEvent::Says(says)));
        assert_eq!(effects.last(), Some(&SourceEffect::Undo { thaw: true }));
    }
    let (same, effects) = stranded.on(SourceEvent::Silent);
    assert!(same == stranded && effects.is_empty());
}

#[test]
fn what_is_undone_again_is_never_behind_a_commit() {
    use SourceStep::{Committed, Done, Freezing, GivingUp, Intent, TakenBack};
    let again = |steps: &[SourceStep], outcome| SourceHandoff::undo_again(Found::default(), steps, outcome);
    for (steps, outcome, thaw) in [
        (&[][..], SourceOutcome::Aborted, false),
        (&[Intent][..], SourceOutcome::Aborted, false),
        (&[Intent, Freezing, GivingUp][..], SourceOutcome::RolledBack, true),
    ] {
        let (machine, effects) = again(steps, outcome);
        assert_eq!(effects, [SourceEffect::Undo { thaw }], "{steps:?}");
        let (machine, _) = machine.on(SourceEvent::Undone { whole: true });
        let (machine, _) = machine.on(SourceEvent::NotRecorded(SourceStep::Aborted));
        assert_eq!(machine.outcome(), Some(outcome), "{steps:?}");
    }
    for steps in [
        &[Intent, Freezing, Committed][..],
        &[Intent, Freezing, Committed, Done][..],
    ] {
        assert_eq!(again(steps, SourceOutcome::RolledBack).1, [], "{steps:?}");
    }
    // Taken back it is this host's own under an epoch of its own first.
    let (_, effects) = again(
        &[Intent, Freezing, Committed, TakenBack],
        SourceOutcome::RolledBack,
    );
    assert_eq!(
        effects,
        [SourceEffect::Own { epoch: 1 }, SourceEffect::Undo { thaw: true }]
    );
}
