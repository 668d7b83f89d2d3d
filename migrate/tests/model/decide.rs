//! Who decides besides the two hosts: an arbiter, or a person.

use tranship_migrate::handoff::{
    DestinationEvent, DestinationStep, Obedience, Resolution, SourceEvent, SourceStep, obedience,
};

use super::carry::Luck;
use super::explore::{Flaw, Handoffs};
use super::world::{Record, Role, Tasks, World, Wrong};

impl Handoffs {
    /// What the arbiter says when it is asked for this. Whoever is first decides.
    pub fn decide(&self, world: &mut World, at: usize, for_destination: bool, luck: Luck) -> Option<bool> {
        let migration = &mut world.migrations[at];
        if luck == Luck::Doubt {
            migration.pending.push(for_destination);
            return None;
        }
        Some(*migration.decision.get_or_insert(for_destination))
    }

    pub fn own(&self, world: &mut World, at: usize, epoch: u64) {
        let one = self.moves[at];
        let place = world.place(one.from, one.container);
        if !matches!(place.record, Some(Record::Own { .. })) {
            return;
        }
        let back = matches!(place.record, Some(Record::Own { epoch: own }) if epoch < own);
        place.record = Some(Record::Own { epoch });
        place.highest = place.highest.max(epoch);
        if back {
            world.note(Wrong::EpochWentBack);
        }
    }

    /// Tells the host of a role that the other one owns the container, by a person's decision. It obeys.
    pub fn obey(&self, world: &mut World, at: usize, to: Role) -> bool {
        let one = self.moves[at];
        let migration = &world.migrations[at];
        let (host, decided, told, active) = match to {
            Role::Destination => {
                let steps = &migration.source_journal.steps;
                let decided = steps.contains(&SourceStep::TakenBack);
                (
                    one.to,
                    decided,
                    steps.contains(&SourceStep::Told),
                    migration.destination.is_some(),
                )
            }
            Role::Source => {
                let steps = &migration.destination_journal.steps;
                // Not before it runs there: it may yet have to be given back.
                let decided =
                    steps.contains(&DestinationStep::TakenOver) && steps.contains(&DestinationStep::Running);
                (
                    one.from,
                    decided,
                    steps.contains(&DestinationStep::Told),
                    migration.source.is_some(),
                )
            }
        };
        let (epoch, teller) = match to {
            Role::Destination => (migration.epoch + 1, one.from),
            Role::Source => (migration.epoch, one.to),
        };
        if !decided || told || active || !world.hosts[0].up || !world.hosts[1].up {
            return false;
        }
        if self.flaw != Some(Flaw::Disobeyed) {
            let place = world.place(host, one.container);
            let here = match place.record {
                Some(Record::Own { epoch } | Record::Arriving { epoch }) => Some(epoch),
                None => None,
            };
            if obedience(here, None, epoch) == Obedience::End {
                if matches!(place.record, Some(Record::Own { .. })) {
                    place.tombstone = Some(epoch);
                }
                place.record = None;
                place.tasks = Tasks::None;
            }
        }
        let migration = &mut world.migrations[at];
        if teller == one.from {
            migration.source_journal.steps.push(SourceStep::Told);
        } else {
            migration.destination_journal.steps.push(DestinationStep::Told);
        }
        true
    }

    /// A person decides, because the other host is gone: switched off, for all he knows for ever.
    pub fn resolve(&self, world: &mut World, at: usize, role: Role, resolution: Resolution) -> bool {
        let one = self.moves[at];
        let other = match role {
            Role::Source => one.to,
            Role::Destination => one.from,
        };
        let place = &world.hosts[other].places[one.container];
        if world.faults.resolutions == 0 || world.hosts[other].up || place.tasks != Tasks::None {
            return false;
        }
        // He gives up a copy only when he has seen that the container is at the other host.
        let there = matches!(place.record, Some(Record::Own { .. }));
        if (role, resolution) == (Role::Source, Resolution::There) && !there {
            return false;
        }
        // He is told when there is no copy any more that he could take back.
        let here = world.hosts[one.from].places[one.container].record.is_some();
        if (role, resolution) == (Role::Source, Resolution::Here) && !here {
            return false;
        }
        let before = world.migrations[at].clone();
        match role {
            Role::Source => self.tell_source(world, at, SourceEvent::Resolved(resolution)),
            Role::Destination => self.tell_destination(world, at, DestinationEvent::Resolved(resolution)),
        }
        if world.migrations[at] == before {
            return false;
        }
        world.faults.resolutions -= 1;
        // What the other one may have acknowledged he gives up.
        let copy = world.hosts[one.from].places[one.container].version;
        let images = before.images.unwrap_or(copy);
        world.acknowledged[one.container] = if role == Role::Source { copy } else { images };
        world.died[one.container] = true;
        true
    }
}
