//! What the machines say is to be done, done to the world: as a daemon does it, one effect after the other.

use tranship_migrate::handoff::{
    DestinationEffect, DestinationEvent, DestinationHandoff, DestinationStep, Found, Inspection, Message,
    SourceEffect, SourceEvent, SourceHandoff, SourceStep, Stay, Verdict, admit, destination_says,
    is_handed_over, verdict,
};

use super::explore::{Flaw, Handoffs};
use super::world::{Letter, Migration, Move, Part, Record, Role, Tasks, World, Wrong, digest};

/// How an effect comes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Luck {
    Good,
    /// A record is written, and what was in doubt before it turns out to be there.
    Kept,
    /// Something of it fails; a record is certainly not there.
    Bad,
    /// A record is written, or is not: nobody knows.
    Doubt,
}

impl Handoffs {
    /// Tells a source something, if there is one. Its effects wait.
    pub fn tell_source(&self, world: &mut World, at: usize, event: SourceEvent) {
        let Some(part) = &mut world.migrations[at].source else {
            return;
        };
        let early = self.flaw == Some(Flaw::CopyRemovedEarly) && part.machine.awaits_running();
        let event = match event {
            SourceEvent::Lost | SourceEvent::Overdue if early => SourceEvent::Heard(Message::Running),
            event => event,
        };
        let (machine, mut effects) = part.machine.on(event);
        part.machine = machine;
        part.effects.append(&mut effects);
        self.settle(world, at);
    }

    /// Tells a destination something, if there is one. Its effects wait.
    pub fn tell_destination(&self, world: &mut World, at: usize, event: DestinationEvent) {
        let Some(part) = &mut world.migrations[at].destination else {
            return;
        };
        let guesses = part.machine.awaits_go() && !matches!(event, DestinationEvent::Heard(_));
        let (mut machine, mut effects) = part.machine.on(event);
        let guess = match self.flaw {
            Some(Flaw::LostIsYes) if guesses => Some(Verdict::Committed),
            Some(Flaw::LostIsNo) if guesses => Some(Verdict::Abandoned),
            _ => None,
        };
        if let Some(verdict) = guess {
            (machine, effects) = machine.on(DestinationEvent::Says(verdict));
        }
        part.machine = machine;
        part.effects.append(&mut effects);
        self.settle(world, at);
    }

    /// A role that has ended goes, and its end of the connection with it.
    pub fn settle(&self, world: &mut World, at: usize) {
        let migration = &mut world.migrations[at];
        let ended = |part: &Part<SourceHandoff, SourceEffect>| {
            part.effects.is_empty() && part.machine.outcome().is_some()
        };
        if migration.source.as_ref().is_some_and(ended) {
            migration.source = None;
            migration.connected = false;
        }
        let ended = |part: &Part<DestinationHandoff, DestinationEffect>| {
            part.effects.is_empty() && part.machine.outcome().is_some()
        };
        if migration.destination.as_ref().is_some_and(ended) {
            migration.destination = None;
            migration.connected = false;
        }
    }

    /// Does what the source's machine has said first.
    pub fn carry_source(&self, world: &mut World, at: usize, luck: Luck) {
        let Some(part) = &mut world.migrations[at].source else {
            return;
        };
        let effect = part.effects.remove(0);
        let event = match effect {
            SourceEffect::Send(message) => {
                let letter = Letter {
                    migration: at,
                    to: Role::Destination,
                    message,
                };
                world.send(letter);
                None
            }
            SourceEffect::Record(step) => Some(self.write_source(world, at, step, luck)),
            SourceEffect::Commit { .. } if self.flaw == Some(Flaw::CommitUnwritten) => {
                Some(SourceEvent::Recorded(SourceStep::Committed))
            }
            SourceEffect::Commit { .. } if self.arbiter => Some(match self.decide(world, at, true, luck) {
                Some(true) => {
                    // Its own journal has it as well, where that can be written.
                    world.migrations[at]
                        .source_journal
                        .steps
                        .push(SourceStep::Committed);
                    SourceEvent::Recorded(SourceStep::Committed)
                }
                Some(false) => SourceEvent::NotRecorded(SourceStep::Committed),
                None => SourceEvent::InDoubt(SourceStep::Committed),
            }),
            SourceEffect::Commit { .. } => Some(self.write_source(world, at, SourceStep::Committed, luck)),
            SourceEffect::Abandon if !self.arbiter => {
                Some(match self.write_source(world, at, SourceStep::Freezing, luck) {
                    SourceEvent::Recorded(_) => {
                        let steps = &world.migrations[at].source_journal.steps;
                        let committed = steps.contains(&SourceStep::Committed);
                        SourceEvent::Decided { committed }
                    }
                    unwritten => unwritten,
                })
            }
            SourceEffect::Abandon => Some(match self.decide(world, at, false, luck) {
                Some(committed) => SourceEvent::Decided { committed },
                None => SourceEvent::InDoubt(SourceStep::Committed),
            }),
            SourceEffect::Own { epoch } => {
                self.own(world, at, epoch);
                None
            }
            SourceEffect::Undo { thaw } => {
                if thaw {
                    self.thaw(world, at);
                }
                Some(SourceEvent::Undone { whole: true })
            }
            SourceEffect::Ask => self.ask_destination(world, at),
            SourceEffect::RemoveCopy => Some(self.remove_copy(world, at, luck)),
        };
        match event {
            Some(event) => self.tell_source(world, at, event),
            None => self.settle(world, at),
        }
    }

    fn write_source(&self, world: &mut World, at: usize, step: SourceStep, luck: Luck) -> SourceEvent {
        let migration = &mut world.migrations[at];
        let settled = self.flaw == Some(Flaw::JournalBelieved) && !migration.source_journal.limbo.is_empty();
        match luck {
            // Only pretends to write what would make the journal worth believing.
            Luck::Good | Luck::Kept if settled && step == SourceStep::Freezing => {}
            Luck::Good | Luck::Kept => {
                migration.source_journal.settle(luck == Luck::Kept);
                migration.source_journal.steps.push(step);
            }
            Luck::Bad | Luck::Doubt
                if self.flaw == Some(Flaw::GivenUpUnwritten) && step == SourceStep::GivingUp =>
            {
                return SourceEvent::Recorded(step);
            }
            Luck::Bad => return SourceEvent::NotRecorded(step),
            Luck::Doubt => {
                migration.source_journal.limbo.push(step);
                return SourceEvent::InDoubt(step);
            }
        }
        if migration.abandoned && step == SourceStep::Committed {
            world.note(Wrong::CommittedAbandoned);
        }
        SourceEvent::Recorded(step)
    }

    fn thaw(&self, world: &mut World, at: usize) {
        let one = self.moves[at];
        let own = match world.place(one.from, one.container).record {
            Some(Record::Own { epoch }) => epoch,
            _ => return,
        };
        let committed = |(migration, other): (&Migration, &Move)| {
            other.from == one.from
                && other.container == one.container
                && migration.epoch > own
                && (migration.source_journal.steps.contains(&SourceStep::Committed)
                    || migration.decision == Some(true))
        };
        if world.place(one.from, one.container).tasks != Tasks::Frozen {
            return;
        }
        if world.migrations.iter().zip(&self.moves).any(committed) {
            world.note(Wrong::ThawedAfterCommit);
        }
        world.run(one.from, one.container);
    }

    fn ask_destination(&self, world: &mut World, at: usize) -> Option<SourceEvent> {
        let one = self.moves[at];
        if !world.hosts[one.to].up {
            if self.flaw == Some(Flaw::ThawedInDoubt) {
                self.thaw(world, at);
            }
            return Some(SourceEvent::Silent);
        }
        let steps = &world.migrations[at].destination_journal.steps;
        Some(SourceEvent::Says(destination_says(steps)))
    }

    fn remove_copy(&self, world: &mut World, at: usize, luck: Luck) -> SourceEvent {
        let (one, epoch) = (self.moves[at], world.migrations[at].epoch);
        let handed_over = match world.place(one.from, one.container).record {
            Some(Record::Own { epoch: own }) => is_handed_over(own, epoch),
            _ => false,
        };
        if luck != Luck::Good {
            return SourceEvent::Removed { whole: false };
        }
        if handed_over {
            let place = world.place(one.from, one.container);
            let ran = place.tasks == Tasks::Run;
            place.tasks = Tasks::None;
            place.record = None;
            place.highest = place.highest.max(epoch);
            if self.flaw != Some(Flaw::NoTombstone) {
                place.tombstone = Some(epoch);
            }
            if ran {
                world.note(Wrong::KilledRunning);
            }
        }
        SourceEvent::Removed { whole: true }
    }

    /// Does what the destination's machine has said first.
    pub fn carry_destination(&self, world: &mut World, at: usize, luck: Luck) {
        let Some(part) = &mut world.migrations[at].destination else {
            return;
        };
        let effect = part.effects.remove(0);
        let event = match effect {
            DestinationEffect::Send(message) => {
                let letter = Letter {
                    migration: at,
                    to: Role::Source,
                    message,
                };
                world.send(letter);
                None
            }
            DestinationEffect::Record(step) => Some(self.write_destination(world, at, step, luck)),
            DestinationEffect::Reserve => Some(self.reserve(world, at, luck)),
            DestinationEffect::Restore => Some(self.restore(world, at, luck)),
            DestinationEffect::Release => self.release(world, at),
            DestinationEffect::Adopt => Some(self.adopt(world, at, luck)),
            DestinationEffect::DropStaging => {
                world.migrations[at].images = None;
                None
            }
            DestinationEffect::DropAll => {
                self.drop_all(world, at);
                Some(DestinationEvent::Dropped)
            }
            DestinationEffect::Ask => Some(self.ask_source(world, at)),
            DestinationEffect::Claim => Some(match self.decide(world, at, true, luck) {
                Some(true) => DestinationEvent::Says(Verdict::Committed),
                Some(false) => DestinationEvent::Says(Verdict::Abandoned),
                None => DestinationEvent::Silent,
            }),
            DestinationEffect::Inspect => Some(DestinationEvent::Inspected(self.inspect(world, at))),
        };
        match event {
            Some(event) => self.tell_destination(world, at, event),
            None => self.settle(world, at),
        }
    }

    fn write_destination(
        &self,
        world: &mut World,
        at: usize,
        step: DestinationStep,
        luck: Luck,
    ) -> DestinationEvent {
        let journal = &mut world.migrations[at].destination_journal;
        match luck {
            Luck::Good | Luck::Kept => {
                journal.settle(luck == Luck::Kept);
                journal.steps.push(step);
                return DestinationEvent::Recorded(step);
            }
            Luck::Bad => {}
            Luck::Doubt => journal.limbo.push(step),
        }
        DestinationEvent::NotRecorded(step)
    }

    fn reserve(&self, world: &mut World, at: usize, luck: Luck) -> DestinationEvent {
        let (one, epoch) = (self.moves[at], world.migrations[at].epoch);
        let on_its_way = self.flaw != Some(Flaw::SecondReservation) && world.on_its_way(&self.moves, at);
        let place = world.place(one.to, one.container);
        let here = place.record.map(|record| match record {
            Record::Own { epoch } => Stay::Own { epoch },
            Record::Arriving { epoch } => Stay::Arriving { epoch },
        });
        if admit(here, on_its_way, place.tombstone, epoch).is_err() {
            return match self.flaw {
                Some(Flaw::RefusedDrops) => DestinationEvent::Failed,
                _ => DestinationEvent::Refused,
            };
        }
        let back = epoch <= place.highest;
        place.record = Some(Record::Arriving { epoch });
        if back {
            world.note(Wrong::EpochWentBack);
        }
        match luck {
            Luck::Good => DestinationEvent::Reserved,
            _ => DestinationEvent::Failed,
        }
    }

    fn restore(&self, world: &mut World, at: usize, luck: Luck) -> DestinationEvent {
        let one = self.moves[at];
        let (images, marked) = (world.migrations[at].images, world.migrations[at].marked);
        let place = world.place(one.to, one.container);
        let possible = place.tasks == Tasks::None && matches!(place.record, Some(Record::Arriving { .. }));
        let Some(version) = images.filter(|_| possible && luck == Luck::Good) else {
            return DestinationEvent::Failed;
        };
        place.tasks = Tasks::Held;
        place.version = version;
        if marked {
            world.note(Wrong::RestoredAfterRelease);
        }
        DestinationEvent::Held
    }

    /// The mark is there with this; that the tasks run is the relay's next act.
    fn release(&self, world: &mut World, at: usize) -> Option<DestinationEvent> {
        let one = self.moves[at];
        if world.place(one.to, one.container).tasks != Tasks::Held {
            return Some(DestinationEvent::Failed);
        }
        let migration = &world.migrations[at];
        let committed = migration.source_journal.steps.contains(&SourceStep::Committed)
            || migration.decision == Some(true)
            || migration
                .destination_journal
                .steps
                .contains(&DestinationStep::TakenOver);
        world.migrations[at].marked = true;
        world.place(one.to, one.container).tasks = Tasks::Released;
        if !committed {
            world.note(Wrong::RanWithoutCommit);
        }
        None
    }

    fn adopt(&self, world: &mut World, at: usize, luck: Luck) -> DestinationEvent {
        let (one, epoch) = (self.moves[at], world.migrations[at].epoch);
        if luck != Luck::Good {
            // Tried again.
            return DestinationEvent::Failed;
        }
        let place = world.place(one.to, one.container);
        if matches!(place.record, Some(Record::Arriving { .. })) {
            let back = epoch <= place.highest;
            place.record = Some(Record::Own { epoch });
            place.highest = epoch;
            place.tombstone = None;
            // Let go, and gone before it was seen: as if it had ended a moment later.
            let ended = place.tasks == Tasks::None;
            world.died[one.container] |= ended;
            if back {
                world.note(Wrong::EpochWentBack);
            }
        }
        DestinationEvent::Adopted
    }

    fn drop_all(&self, world: &mut World, at: usize) {
        let one = self.moves[at];
        world.migrations[at].images = None;
        let place = world.place(one.to, one.container);
        // By container, as a host's registry knows it.
        if !matches!(place.record, Some(Record::Arriving { .. })) {
            return;
        }
        let ran = matches!(place.tasks, Tasks::Run | Tasks::Released);
        place.record = None;
        place.tasks = Tasks::None;
        if ran {
            world.note(Wrong::KilledRunning);
        }
    }

    fn ask_source(&self, world: &mut World, at: usize) -> DestinationEvent {
        if !world.hosts[self.moves[at].from].up {
            return DestinationEvent::Silent;
        }
        let migration = &mut world.migrations[at];
        let deciding = SourceStep::deciding(&migration.source_journal.steps);
        let in_doubt = |part: &Part<SourceHandoff, SourceEffect>| !part.machine.awaits_time();
        let active = match self.flaw {
            Some(Flaw::DoubtIsNo) => migration.source.as_ref().is_some_and(in_doubt),
            _ => migration.source.is_some(),
        };
        let takes_back = |part: &Part<SourceHandoff, SourceEffect>| part.machine.is_taking_back();
        let taking_back = migration.source.as_ref().is_some_and(takes_back);
        let says = verdict(
            deciding,
            active,
            taking_back && self.flaw != Some(Flaw::AnsweredMeanwhile),
        );
        migration.abandoned |= says == Verdict::Abandoned;
        DestinationEvent::Says(says)
    }

    fn inspect(&self, world: &mut World, at: usize) -> Inspection {
        let (one, epoch) = (self.moves[at], world.migrations[at].epoch);
        let migration = &world.migrations[at];
        let marked = match self.flaw {
            Some(Flaw::MarkUnseen) => false,
            // The mark goes with the memory it is in; that the host was switched off says as much.
            Some(Flaw::MarkGone) => migration.marked && !migration.mark_gone,
            _ => migration.marked || migration.mark_gone,
        };
        let place = world.place(one.to, one.container);
        let own = matches!(place.record, Some(Record::Own { epoch: own }) if own >= epoch);
        if own || place.tombstone.is_some_and(|buried| buried >= epoch) {
            return Inspection::WasAdopted;
        }
        match place.tasks {
            Tasks::Run => Inspection::Runs,
            _ => {
                place.tasks = Tasks::None;
                if marked {
                    Inspection::MayHaveRun
                } else {
                    Inspection::NeverReleased
                }
            }
        }
    }

    /// What a daemon that starts does about a source's part.
    pub fn recover_source(&self, world: &mut World, at: usize) {
        let one = self.moves[at];
        let later = |(other, migration): (&Move, &Migration)| {
            other.from == one.from
                && other.container == one.container
                && migration.nth > world.migrations[at].nth
                && !migration.source_journal.steps.is_empty()
        };
        let superseded =
            self.flaw != Some(Flaw::LaterUnseen) && self.moves.iter().zip(&world.migrations).any(later);
        let migration = &mut world.migrations[at];
        let found = Found {
            epoch: migration.epoch,
            superseded,
            arbiter: self.arbiter && self.flaw != Some(Flaw::ThawedUnasked),
            rebooted: migration.source_rebooted,
        };
        let (machine, effects) = SourceHandoff::recover(found, &migration.source_journal.steps);
        migration.source = Some(Part { machine, effects });
    }

    /// What a daemon that starts does about a destination's part.
    pub fn recover_destination(&self, world: &mut World, at: usize) {
        let one = self.moves[at];
        let let_in = |(other, (what, migration)): (usize, (&Move, &Migration))| {
            let newest = DestinationStep::deciding(&migration.destination_journal.steps);
            other != at
                && what.to == one.to
                && what.container == one.container
                && newest.is_some_and(|step| !step.is_last())
        };
        let taken = self.moves.iter().zip(&world.migrations).enumerate().any(let_in);
        let migration = &mut world.migrations[at];
        let steps = &migration.destination_journal.steps;
        let (machine, effects) = DestinationHandoff::recover(migration.epoch, steps, taken, self.arbiter);
        migration.destination = Some(Part { machine, effects });
    }

    /// All that was sent has arrived.
    pub fn arrive(&self, world: &mut World, at: usize) {
        let Some(version) = world.migrations[at].dumped else {
            return;
        };
        world.migrations[at].images = Some(version);
        let digest = digest(version);
        self.tell_destination(world, at, DestinationEvent::AllArrived { digest });
    }
}
