//! What can happen next in a world, and what must hold in each: the model that is given to the checker.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Mutex;

use stateright::{Model, Path, Property};
use tranship_migrate::handoff::{
    DestinationEffect, DestinationEvent, DestinationHandoff, DestinationStep, History, Message, Resolution,
    SourceEffect, SourceEvent, SourceHandoff,
};

use super::carry::Luck;
use super::world::{Faults, Letter, Migration, Move, Part, Record, Role, Tasks, World, Wrong, digest};

/// A run without faults is longer than this only if it never ends.
const LONGEST_RUN: usize = 400;

/// What must hold in every world.
pub const ONE_RUNS: &str = "tasks run on one host at most";
pub const NO_RUN_WITHOUT_COMMIT: &str = "nothing runs at a destination without a commit";
pub const NO_THAW_AFTER_COMMIT: &str = "nothing is thawed after a commit";
pub const NO_WRITE_LOST: &str = "no acknowledged write is lost";
pub const NO_SECOND_RESTORE: &str = "what was released is never restored again";
pub const EPOCHS_GROW: &str = "epochs only grow";
pub const NONE_KILLED: &str = "running tasks are never ended";
pub const NO_COMMIT_AFTER_NO: &str = "what a source says it never commits, it never commits";
pub const NEWEST_SOMEWHERE: &str = "the newest state is always somewhere";
pub const RIGHT_HISTORY: &str = "both journals say what the machines may have written";
pub const ENDS_DECIDED: &str = "without further faults it ends decided";

/// Something that is done wrong on purpose: the model must find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The source goes on without having written the commit record.
    CommitUnwritten,
    /// The source lets the container run again though it could not write that it gives up.
    GivenUpUnwritten,
    /// A source that has committed lets its copy run when the destination does not answer.
    ThawedInDoubt,
    /// A source that does not know whether its commit record is there believes what it reads first.
    JournalBelieved,
    /// A source answers `no` while it does not know whether its commit record is there.
    DoubtIsNo,
    /// A source removes its copy when it hears nothing.
    CopyRemovedEarly,
    /// A destination that was ready and hears nothing takes it for `go`.
    LostIsYes,
    /// A destination that was ready and hears nothing takes it for `abort`.
    LostIsNo,
    /// What was released is restored again when it does not run.
    MarkUnseen,
    /// A second migration is let in beside the first.
    SecondReservation,
    /// A migration that is not let in removes what is there all the same.
    RefusedDrops,
    /// A container that goes leaves no tombstone.
    NoTombstone,
    /// An old migration is rolled back although a later one of the same container has begun.
    LaterUnseen,
    /// A source that starts again lets the container run without having asked the arbiter.
    ThawedUnasked,
    /// A destination that was switched off takes the mark that is gone for one that never was.
    MarkGone,
    /// A host that comes back does not obey a person's decision.
    Disobeyed,
    /// A source goes on saying `committed` while it writes that it takes the container back.
    AnsweredMeanwhile,
}

/// Hosts that hand containers over, and whatever may happen to them meanwhile.
pub struct Handoffs {
    hosts: usize,
    pub moves: Vec<Move>,
    pub faults: Faults,
    pub flaw: Option<Flaw>,
    /// An arbiter decides.
    pub arbiter: bool,
    /// Worlds from which a run without further faults is known to end well.
    ending_well: Mutex<HashSet<u64>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Begin(usize),
    Deliver(Letter),
    /// The source's host does its next step, or something befalls it.
    Source(usize, SourceEvent),
    Destination(usize, DestinationEvent),
    AllArrive(usize),
    CarrySource(usize, Luck),
    CarryDestination(usize, Luck),
    /// A relay that was told to lets the tasks run.
    RelayReleases(usize),
    Restart(usize),
    Lose(Letter),
    Duplicate(Letter),
    Cut(usize),
    Crash {
        host: usize,
        /// What was in doubt in its journals turns out to be there.
        kept: bool,
        /// The relays die too.
        relays: bool,
    },
    /// A host is switched off; it comes back when it is restarted.
    Reboot(usize),
    /// A request to the arbiter arrives whose answer nobody heard.
    Decides(usize),
    /// A person decides at the host of a role.
    Resolve(usize, Role, Resolution),
    /// The host of a role is told what a person has decided at the other one.
    Tell(usize, Role),
}

impl Handoffs {
    pub fn new(moves: &[Move], faults: Faults) -> Self {
        Self {
            hosts: moves
                .iter()
                .map(|one| one.from.max(one.to) + 1)
                .max()
                .unwrap_or(0),
            moves: moves.to_vec(),
            faults,
            flaw: None,
            arbiter: false,
            ending_well: Mutex::default(),
        }
    }

    pub fn under_arbiter(mut self) -> Self {
        self.arbiter = true;
        self
    }

    pub fn with(mut self, flaw: Flaw) -> Self {
        self.flaw = Some(flaw);
        self
    }

    fn begin(&self, world: &mut World, at: usize) -> bool {
        let one = self.moves[at];
        let place = &world.hosts[one.from].places[one.container];
        let Some(Record::Own { epoch }) = place.record else {
            return false;
        };
        let busy = |(other, migration): (&Move, &super::world::Migration)| {
            other.container == one.container && other.from == one.from && migration.source.is_some()
        };
        let possible =
            world.hosts[one.from].up && place.tasks == Tasks::Run && world.migrations[at].nth.is_none();
        if !possible || self.moves.iter().zip(&world.migrations).any(busy) {
            return false;
        }
        let begun = world
            .migrations
            .iter()
            .filter(|other| other.nth.is_some())
            .count();
        let migration = &mut world.migrations[at];
        migration.nth = u8::try_from(begun).ok();
        migration.epoch = epoch + 1;
        migration.connected = true;
        migration.source = Some(Part {
            machine: SourceHandoff::under(self.arbiter),
            effects: Vec::new(),
        });
        self.tell_source(world, at, SourceEvent::Begin { epoch: epoch + 1 });
        true
    }

    fn deliver(&self, world: &mut World, letter: Letter) -> bool {
        let migration = &mut world.migrations[letter.migration];
        let first = letter.to == Role::Destination && !migration.heard_of;
        if let Message::Reserve { .. } = letter.message
            && first
            && world.hosts[self.moves[letter.migration].to].up
        {
            migration.heard_of = true;
            migration.destination = Some(Part {
                machine: DestinationHandoff::under(self.arbiter),
                effects: Vec::new(),
            });
        }
        let busy = match letter.to {
            Role::Source => migration
                .source
                .as_ref()
                .is_some_and(|part| !part.effects.is_empty()),
            Role::Destination => migration
                .destination
                .as_ref()
                .is_some_and(|part| !part.effects.is_empty()),
        };
        // The second of two reservations of the same migration is refused by its id.
        let known = matches!(letter.message, Message::Reserve { .. }) && !first;
        if busy {
            return false;
        }
        take(world, letter);
        match letter.to {
            _ if known => {}
            Role::Source => self.tell_source(world, letter.migration, SourceEvent::Heard(letter.message)),
            Role::Destination => {
                self.tell_destination(world, letter.migration, DestinationEvent::Heard(letter.message));
            }
        }
        true
    }

    /// Events that a machine answers with a question are answered at once: a question without an answer changes nothing.
    fn source_event(&self, world: &mut World, at: usize, event: SourceEvent) -> bool {
        let before = world.migrations[at].source.clone();
        self.tell_source(world, at, event);
        if world.migrations[at].source == before {
            return false;
        }
        match event {
            SourceEvent::StandsStill => {
                let one = self.moves[at];
                world.place(one.from, one.container).tasks = Tasks::Frozen;
            }
            SourceEvent::AllSent { digest } => world.migrations[at].dumped = digest.first().copied(),
            SourceEvent::Failed => world.faults.failures -= 1,
            SourceEvent::Cancelled => world.faults.cancels -= 1,
            _ => {}
        }
        let next = world.migrations[at]
            .source
            .as_ref()
            .and_then(|part| part.effects.first());
        if next == Some(&SourceEffect::Ask) {
            self.carry_source(world, at, Luck::Good);
        }
        true
    }

    fn destination_event(&self, world: &mut World, at: usize, event: DestinationEvent) -> bool {
        let before = world.migrations[at].destination.clone();
        self.tell_destination(world, at, event);
        if world.migrations[at].destination == before {
            return false;
        }
        if event == DestinationEvent::Failed {
            world.faults.failures -= 1;
        }
        let next = world.migrations[at]
            .destination
            .as_ref()
            .and_then(|part| part.effects.first());
        if next == Some(&DestinationEffect::Ask) {
            self.carry_destination(world, at, Luck::Good);
        }
        true
    }

    /// Nothing of a host's memory is left, its daemon and its images included.
    fn reboot(&self, world: &mut World, host: usize) {
        world.faults.reboots -= 1;
        self.crash(world, host, false, false);
        for container in 0..world.acknowledged.len() {
            let newest = world.acknowledged[container];
            let place = world.place(host, container);
            let was_newest = place.version == newest && place.tasks != Tasks::None;
            place.tasks = Tasks::None;
            world.died[container] |= was_newest;
        }
        for (at, one) in self.moves.iter().enumerate() {
            let migration = &mut world.migrations[at];
            migration.source_rebooted |= one.from == host;
            if one.to == host {
                let steps = &migration.destination_journal.steps;
                migration.mark_gone |= steps.contains(&DestinationStep::Resuming);
                if migration.images.take() == Some(world.acknowledged[one.container]) {
                    world.died[one.container] = true;
                }
            }
        }
    }

    fn crash(&self, world: &mut World, host: usize, kept: bool, relays: bool) {
        world.hosts[host].up = false;
        for place in &mut world.hosts[host].places {
            if place.tasks == Tasks::Held || place.tasks == Tasks::Released && relays {
                place.tasks = Tasks::None;
            }
        }
        for (at, one) in self.moves.iter().enumerate() {
            let migration = &mut world.migrations[at];
            if one.from == host {
                migration.source = None;
                migration.source_journal.settle(kept);
            }
            if one.to == host {
                migration.destination = None;
                migration.destination_journal.settle(kept);
            }
            migration.connected &= one.from != host && one.to != host;
        }
        let moves = &self.moves;
        world.letters.retain(|letter| match letter.to {
            Role::Source => moves[letter.migration].from != host,
            Role::Destination => moves[letter.migration].to != host,
        });
    }

    fn restart(&self, world: &mut World, host: usize) {
        world.hosts[host].up = true;
        for (at, one) in self.moves.iter().enumerate() {
            if one.from == host && world.migrations[at].nth.is_some() {
                self.recover_source(world, at);
            }
            if one.to == host && world.migrations[at].heard_of {
                self.recover_destination(world, at);
            }
            self.settle(world, at);
        }
    }

    fn history<'a>(&self, world: &World, migration: &'a Migration) -> History<'a> {
        History {
            source: &migration.source_journal.steps,
            destination: &migration.destination_journal.steps,
            arbiter: self.arbiter,
            person: world.faults.resolutions < self.faults.resolutions,
        }
    }

    /// A way to a world, how it goes on from there when nothing else fails, and what that world is like.
    pub fn tell(&self, path: &Path<World, Action>) -> String {
        let mut text = format!("{path}then, if nothing else fails:\n");
        let (mut world, mut actions) = (path.last_state().clone(), Vec::new());
        for _ in 0..LONGEST_RUN {
            actions.clear();
            self.progress(&world, &mut actions);
            let next = actions
                .iter()
                .find_map(|action| Some((*action, self.next(&world, *action)?)));
            let Some((action, next)) = next else { break };
            text.push_str(&format!("- {action:?}\n"));
            world = next;
        }
        text.push_str(&format!("{:#?}\n{:?}", world.hosts, world.migrations));
        for version in 0..9 {
            text = text.replace(&format!("{:?}", digest(version)), &version.to_string());
        }
        text
    }

    /// Whether a run in which no more faults happen ends, and ends decided. Where several things can go on, it follows one order; other
    /// orders lead over worlds that are looked at as well.
    fn ends_well(&self, world: &World) -> bool {
        let mut seen = Vec::new();
        let mut world = world.clone();
        let mut actions = Vec::new();
        let well = loop {
            let mark = fingerprint(&world);
            if self.known(mark) {
                break true;
            }
            seen.push(mark);
            actions.clear();
            self.progress(&world, &mut actions);
            let next = actions.iter().find_map(|action| self.next(&world, *action));
            match next {
                Some(next) if seen.len() < LONGEST_RUN => world = next,
                Some(_) => break false,
                None => break world.is_decided(&self.moves),
            }
        };
        if well && let Ok(mut known) = self.ending_well.lock() {
            known.extend(seen);
        }
        well
    }

    fn known(&self, mark: u64) -> bool {
        self.ending_well.lock().is_ok_and(|known| known.contains(&mark))
    }

    fn next(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        let changed = match action {
            Action::Begin(at) => self.begin(&mut next, at),
            Action::Deliver(letter) => self.deliver(&mut next, letter),
            Action::Source(at, event) => self.source_event(&mut next, at, event),
            Action::Destination(at, event) => self.destination_event(&mut next, at, event),
            Action::Resolve(at, role, resolution) => self.resolve(&mut next, at, role, resolution),
            Action::Tell(at, role) => self.obey(&mut next, at, role),
            other => {
                self.happen(&mut next, other);
                true
            }
        };
        (changed && next != *world).then_some(next)
    }

    fn happen(&self, world: &mut World, action: Action) {
        match action {
            Action::AllArrive(at) => {
                let before = world.migrations[at].destination.clone();
                let images = world.migrations[at].images;
                self.arrive(world, at);
                if world.migrations[at].destination == before {
                    world.migrations[at].images = images;
                }
            }
            Action::CarrySource(at, Luck::Doubt)
                if self.arbiter && !matches!(next_of_source(world, at), Some(SourceEffect::Record(_))) =>
            {
                world.faults.blinds -= 1;
                self.carry_source(world, at, Luck::Doubt);
            }
            Action::CarryDestination(at, Luck::Doubt)
                if next_of_destination(world, at) == Some(DestinationEffect::Claim) =>
            {
                world.faults.blinds -= 1;
                self.carry_destination(world, at, Luck::Doubt);
            }
            Action::CarrySource(at, luck) => {
                spend(
                    world,
                    luck,
                    matches!(next_of_source(world, at), Some(SourceEffect::RemoveCopy)),
                );
                self.carry_source(world, at, luck);
            }
            Action::CarryDestination(at, luck) => {
                let record = matches!(next_of_destination(world, at), Some(DestinationEffect::Record(_)));
                spend(world, luck, !record);
                self.carry_destination(world, at, luck);
            }
            Action::RelayReleases(at) => {
                let one = self.moves[at];
                world.run(one.to, one.container);
                self.tell_destination(world, at, DestinationEvent::Released);
            }
            Action::Restart(host) => self.restart(world, host),
            Action::Lose(letter) => {
                world.faults.losses -= 1;
                take(world, letter);
            }
            Action::Duplicate(letter) => {
                world.faults.duplicates -= 1;
                let at = world.letters.partition_point(|other| *other <= letter);
                world.letters.insert(at, letter);
            }
            Action::Cut(at) => {
                world.faults.cuts -= 1;
                world.migrations[at].connected = false;
            }
            Action::Crash { host, kept, relays } => {
                world.faults.crashes -= 1;
                world.faults.relays -= u8::from(relays);
                self.crash(world, host, kept, relays);
            }
            Action::Reboot(host) => self.reboot(world, host),
            Action::Decides(at) => {
                let migration = &mut world.migrations[at];
                let asked = migration.pending.remove(0);
                migration.decision.get_or_insert(asked);
            }
            Action::Resolve(..) | Action::Tell(..) => {}
            Action::Begin(_) | Action::Deliver(_) | Action::Source(..) | Action::Destination(..) => {}
        }
    }
}

fn next_of_source(world: &World, at: usize) -> Option<SourceEffect> {
    world.migrations[at].source.as_ref()?.effects.first().copied()
}

fn next_of_destination(world: &World, at: usize) -> Option<DestinationEffect> {
    world.migrations[at]
        .destination
        .as_ref()?
        .effects
        .first()
        .copied()
}

fn spend(world: &mut World, luck: Luck, of_host: bool) {
    match luck {
        Luck::Good | Luck::Kept => {}
        Luck::Bad if of_host => world.faults.failures -= 1,
        Luck::Bad | Luck::Doubt => world.faults.writes -= 1,
    }
}

fn take(world: &mut World, letter: Letter) {
    if let Some(at) = world.letters.iter().position(|other| *other == letter) {
        world.letters.remove(at);
    }
}

fn fingerprint(world: &World) -> u64 {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    hasher.finish()
}

impl Model for Handoffs {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.hosts, &self.moves, self.faults)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        // What follows a world that is wrong already says nothing.
        if world.wrong.is_none() {
            self.progress(world, actions);
            self.mishaps(world, actions);
            actions.dedup();
        }
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        self.next(world, action)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_RUNS, |_, world: &World| world.wrong != Some(Wrong::TwoRun)),
            Property::always(NO_RUN_WITHOUT_COMMIT, |_, world: &World| {
                world.wrong != Some(Wrong::RanWithoutCommit)
            }),
            Property::always(NO_THAW_AFTER_COMMIT, |_, world: &World| {
                world.wrong != Some(Wrong::ThawedAfterCommit)
            }),
            Property::always(NO_WRITE_LOST, |_, world: &World| {
                world.wrong != Some(Wrong::WritesLost)
            }),
            Property::always(NO_SECOND_RESTORE, |_, world: &World| {
                world.wrong != Some(Wrong::RestoredAfterRelease)
            }),
            Property::always(EPOCHS_GROW, |_, world: &World| {
                world.wrong != Some(Wrong::EpochWentBack)
            }),
            Property::always(NONE_KILLED, |_, world: &World| {
                world.wrong != Some(Wrong::KilledRunning)
            }),
            Property::always(NO_COMMIT_AFTER_NO, |_, world: &World| {
                world.wrong != Some(Wrong::CommittedAbandoned)
            }),
            Property::always(NEWEST_SOMEWHERE, |model: &Self, world: &World| {
                let mut containers = 0..world.acknowledged.len();
                containers.all(|container| world.died[container] || world.has_newest(container, &model.moves))
            }),
            Property::always(RIGHT_HISTORY, |model: &Self, world: &World| {
                let mut migrations = world.migrations.iter();
                world.wrong.is_some() || migrations.all(|one| model.history(world, one).check().is_ok())
            }),
            Property::always(ENDS_DECIDED, |model: &Self, world: &World| {
                world.wrong.is_some() || model.ends_well(world)
            }),
        ]
    }
}
