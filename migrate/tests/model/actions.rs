//! What can happen in a world: what goes on by itself, and what goes wrong.

use tranship_migrate::handoff::{
    DestinationEffect, DestinationEvent, DestinationStep, Resolution, SourceEffect, SourceEvent,
};

use super::carry::Luck;
use super::explore::{Action, Handoffs};
use super::world::{Part, Role, Tasks, World, digest};

impl Handoffs {
    /// What happens when nothing goes wrong any more: the first that changes something comes first.
    pub fn progress(&self, world: &World, actions: &mut Vec<Action>) {
        for (at, migration) in world.migrations.iter().enumerate() {
            if migration
                .source
                .as_ref()
                .is_some_and(|part| !part.effects.is_empty())
            {
                actions.push(Action::CarrySource(at, Luck::Good));
            }
            // A monitor that is about to say whether its container lives is waited for.
            let waits = |part: &Part<_, DestinationEffect>| {
                part.effects.first() == Some(&DestinationEffect::Inspect)
                    && self.tasks(world, at) == Tasks::Released
            };
            let destination = migration.destination.as_ref();
            if destination.is_some_and(|part| !part.effects.is_empty() && !waits(part)) {
                actions.push(Action::CarryDestination(at, Luck::Good));
            }
            // Whose they are: an earlier stay of the container here has its mark too.
            let newest = DestinationStep::deciding(&migration.destination_journal.steps);
            if self.tasks(world, at) == Tasks::Released && newest == Some(DestinationStep::Resuming) {
                actions.push(Action::RelayReleases(at));
            }
        }
        actions.extend(world.letters.iter().map(|letter| Action::Deliver(*letter)));
        for (at, migration) in world.migrations.iter().enumerate() {
            actions.extend(migration.pending.first().map(|_| Action::Decides(at)));
            actions.extend([Role::Source, Role::Destination].map(|to| Action::Tell(at, to)));
        }
        for at in 0..world.migrations.len() {
            self.own_steps(world, at, actions);
        }
        let down = world.hosts.iter().enumerate().filter(|(_, host)| !host.up);
        actions.extend(down.map(|(host, _)| Action::Restart(host)));
        for (at, migration) in world.migrations.iter().enumerate() {
            if migration
                .source
                .as_ref()
                .is_some_and(|part| part.effects.is_empty())
            {
                actions.extend(
                    [SourceEvent::Again, SourceEvent::Overdue].map(|event| Action::Source(at, event)),
                );
            }
            if migration
                .destination
                .as_ref()
                .is_some_and(|part| part.effects.is_empty())
            {
                let events = [DestinationEvent::Again, DestinationEvent::Overdue];
                actions.extend(events.map(|event| Action::Destination(at, event)));
            }
        }
    }

    fn own_steps(&self, world: &World, at: usize, actions: &mut Vec<Action>) {
        let migration = &world.migrations[at];
        if migration
            .source
            .as_ref()
            .is_some_and(|part| part.effects.is_empty())
        {
            let version = world.hosts[self.moves[at].from].places[self.moves[at].container].version;
            let digest = digest(version);
            let steps = [
                SourceEvent::Freeze,
                SourceEvent::StandsStill,
                SourceEvent::AllSent { digest },
            ];
            actions.extend(steps.map(|event| Action::Source(at, event)));
            if !migration.connected {
                actions.push(Action::Source(at, SourceEvent::Lost));
            }
        }
        if migration
            .destination
            .as_ref()
            .is_some_and(|part| part.effects.is_empty())
        {
            actions.push(Action::AllArrive(at));
            if !migration.connected {
                actions.push(Action::Destination(at, DestinationEvent::Lost));
            }
        }
    }

    /// What may go wrong, and what somebody may want.
    pub fn mishaps(&self, world: &World, actions: &mut Vec<Action>) {
        let may = world.faults;
        for (at, migration) in world.migrations.iter().enumerate() {
            actions.push(Action::Begin(at));
            if may.cuts > 0 && migration.connected {
                actions.push(Action::Cut(at));
            }
            for role in [Role::Source, Role::Destination] {
                for resolution in [Resolution::Here, Resolution::There] {
                    actions.push(Action::Resolve(at, role, resolution));
                }
            }
            if let Some(part) = &migration.source {
                self.mishaps_of_source(world, at, part.effects.first(), actions);
            }
            if let Some(part) = &migration.destination {
                self.mishaps_of_destination(world, at, part.effects.first(), actions);
            }
        }
        for letter in &world.letters {
            if may.losses > 0 {
                actions.push(Action::Lose(*letter));
            }
            if may.duplicates > 0 {
                actions.push(Action::Duplicate(*letter));
            }
        }
        for (host, there) in world.hosts.iter().enumerate() {
            if may.reboots > 0 {
                actions.push(Action::Reboot(host));
            }
            if !there.up || may.crashes == 0 {
                continue;
            }
            let crash = |kept, relays| Action::Crash { host, kept, relays };
            actions.push(crash(false, false));
            if self.in_doubt(world, host) {
                actions.push(crash(true, false));
            }
            if may.relays > 0 && there.places.iter().any(|place| place.tasks == Tasks::Released) {
                actions.push(crash(false, true));
            }
        }
    }

    fn mishaps_of_source(
        &self,
        world: &World,
        at: usize,
        next: Option<&SourceEffect>,
        actions: &mut Vec<Action>,
    ) {
        let may = world.faults;
        match next {
            None if may.failures > 0 => actions.push(Action::Source(at, SourceEvent::Failed)),
            Some(SourceEffect::RemoveCopy) if may.failures > 0 => {
                actions.push(Action::CarrySource(at, Luck::Bad))
            }
            Some(SourceEffect::Commit { .. } | SourceEffect::Abandon) if self.arbiter && may.blinds == 0 => {}
            Some(SourceEffect::Commit { .. } | SourceEffect::Abandon) if self.arbiter => {
                actions.push(Action::CarrySource(at, Luck::Doubt));
            }
            Some(SourceEffect::Record(_) | SourceEffect::Commit { .. } | SourceEffect::Abandon) => {
                if may.writes > 0 {
                    actions.extend([Luck::Bad, Luck::Doubt].map(|luck| Action::CarrySource(at, luck)));
                }
                if !world.migrations[at].source_journal.limbo.is_empty() {
                    actions.push(Action::CarrySource(at, Luck::Kept));
                }
            }
            _ => {}
        }
        if next.is_none() && may.cancels > 0 {
            actions.push(Action::Source(at, SourceEvent::Cancelled));
        }
    }

    fn mishaps_of_destination(
        &self,
        world: &World,
        at: usize,
        next: Option<&DestinationEffect>,
        actions: &mut Vec<Action>,
    ) {
        let may = world.faults;
        match next {
            Some(DestinationEffect::Claim) if may.blinds > 0 => {
                actions.push(Action::CarryDestination(at, Luck::Doubt));
            }
            None if may.failures > 0 => {
                actions.push(Action::Destination(at, DestinationEvent::Failed));
            }
            Some(DestinationEffect::Adopt) if may.failures > 0 => {
                actions.push(Action::CarryDestination(at, Luck::Bad));
            }
            Some(DestinationEffect::Reserve | DestinationEffect::Restore) if may.failures > 0 => {
                actions.push(Action::CarryDestination(at, Luck::Bad));
            }
            Some(DestinationEffect::Record(_)) => {
                if may.writes > 0 {
                    actions.extend([Luck::Bad, Luck::Doubt].map(|luck| Action::CarryDestination(at, luck)));
                }
                if !world.migrations[at].destination_journal.limbo.is_empty() {
                    actions.push(Action::CarryDestination(at, Luck::Kept));
                }
            }
            _ => {}
        }
    }

    fn in_doubt(&self, world: &World, host: usize) -> bool {
        let mut here = self.moves.iter().zip(&world.migrations);
        here.any(|(one, migration)| {
            one.from == host && !migration.source_journal.limbo.is_empty()
                || one.to == host && !migration.destination_journal.limbo.is_empty()
        })
    }

    fn tasks(&self, world: &World, at: usize) -> Tasks {
        world.hosts[self.moves[at].to].places[self.moves[at].container].tasks
    }
}
