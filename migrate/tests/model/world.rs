//! Everything there is in the model: hosts with what they have of each container, migrations with their journals and the two
//! machines, letters on their way. And what a bystander sees who knows all of it at once.

use tranship_migrate::handoff::{
    DestinationEffect, DestinationHandoff, DestinationStep, Digest, Message, SourceEffect, SourceHandoff,
    SourceStep,
};

/// Tasks of a container on one host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tasks {
    #[default]
    None,
    Run,
    Frozen,
    /// Restored; ends with the daemon that holds it.
    Held,
    /// The mark is written; the relay lets them run in a moment, also without the daemon.
    Released,
}

/// What a host's registry says of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    Own { epoch: u64 },
    Arriving { epoch: u64 },
}

/// What a host has of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    pub record: Option<Record>,
    pub tombstone: Option<u64>,
    pub tasks: Tasks,
    /// State of the tasks: grows with each acknowledged write.
    pub version: u8,
    /// The bystander's: the highest epoch under which the container was or is here.
    pub highest: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Host {
    pub up: bool,
    /// By container.
    pub places: Vec<Place>,
}

/// A machine in a daemon that lives, and what it has said is to be done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part<Machine, Effect> {
    pub machine: Machine,
    pub effects: Vec<Effect>,
}

/// A journal, and what may or may not have got onto the disk behind it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Journal<Step> {
    pub steps: Vec<Step>,
    pub limbo: Vec<Step>,
}

impl<Step> Default for Journal<Step> {
    fn default() -> Self {
        Self {
            steps: Vec::new(),
            limbo: Vec::new(),
        }
    }
}

impl<Step> Journal<Step> {
    /// It turns out whether what was in doubt is there.
    pub fn settle(&mut self, kept: bool) {
        if kept {
            self.steps.append(&mut self.limbo);
        }
        self.limbo.clear();
    }
}

/// Which container goes from where to where.
#[derive(Clone, Copy, Debug)]
pub struct Move {
    pub container: usize,
    pub from: usize,
    pub to: usize,
}

/// One migration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Migration {
    /// How many had begun before it; `None` before it began.
    pub nth: Option<u8>,
    pub epoch: u64,
    pub source: Option<Part<SourceHandoff, SourceEffect>>,
    pub destination: Option<Part<DestinationHandoff, DestinationEffect>>,
    pub source_journal: Journal<SourceStep>,
    pub destination_journal: Journal<DestinationStep>,
    pub connected: bool,
    /// The destination has a record of it.
    pub heard_of: bool,
    /// Version of the state that the source has dumped.
    pub dumped: Option<u8>,
    /// Version of the images at the destination.
    pub images: Option<u8>,
    /// The relay's mark at the destination: the tasks are let go.
    pub marked: bool,
    /// A source has answered that it never commits this.
    pub abandoned: bool,
    /// What the arbiter has decided, where there is one: for the destination, or not.
    pub decision: Option<bool>,
    /// What it was asked to decide by somebody who did not hear the answer: it may still come to that.
    pub pending: Vec<bool>,
    /// The source's host was started anew since this began.
    pub source_rebooted: bool,
    /// The destination's was, behind its record that it lets the tasks go: whether it did is not to be seen any more.
    pub mark_gone: bool,
}

/// Who is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Letter {
    pub migration: usize,
    pub to: Role,
    pub message: Message,
}

/// How many of each fault may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Faults {
    /// A daemon is killed.
    pub crashes: u8,
    /// The relay of a restore is killed with its daemon.
    pub relays: u8,
    /// A letter is lost.
    pub losses: u8,
    /// A letter comes twice.
    pub duplicates: u8,
    /// A connection breaks.
    pub cuts: u8,
    /// A write of the journal fails.
    pub writes: u8,
    /// A host cannot do its part.
    pub failures: u8,
    /// A person cancels.
    pub cancels: u8,
    /// A host is switched off: nothing of its memory is left.
    pub reboots: u8,
    /// An answer of the arbiter is lost.
    pub blinds: u8,
    /// A person decides, because a host is gone.
    pub resolutions: u8,
}

/// What must never happen, as it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wrong {
    TwoRun,
    RanWithoutCommit,
    ThawedAfterCommit,
    WritesLost,
    RestoredAfterRelease,
    EpochWentBack,
    KilledRunning,
    CommittedAbandoned,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub hosts: Vec<Host>,
    pub migrations: Vec<Migration>,
    /// Sorted: they arrive in any order.
    pub letters: Vec<Letter>,
    pub faults: Faults,
    /// The bystander's: version of the last acknowledged write of each container.
    pub acknowledged: Vec<u8>,
    /// The bystander's: containers whose newest state went with the host that ran them, as it would without a migration.
    pub died: Vec<bool>,
    pub wrong: Option<Wrong>,
}

impl World {
    pub fn new(hosts: usize, moves: &[Move], faults: Faults) -> Self {
        let containers = moves.iter().map(|one| one.container + 1).max().unwrap_or(0);
        let mut world = Self {
            hosts: vec![
                Host {
                    up: true,
                    places: vec![Place::default(); containers],
                };
                hosts
            ],
            migrations: vec![Migration::default(); moves.len()],
            letters: Vec::new(),
            faults,
            acknowledged: vec![0; containers],
            died: vec![false; containers],
            wrong: None,
        };
        for container in 0..containers {
            let at = moves.iter().find(|one| one.container == container);
            let place = &mut world.hosts[at.map_or(0, |one| one.from)].places[container];
            place.record = Some(Record::Own { epoch: 1 });
            place.tasks = Tasks::Run;
            place.highest = 1;
        }
        world
    }

    pub fn place(&mut self, host: usize, container: usize) -> &mut Place {
        &mut self.hosts[host].places[container]
    }

    pub fn note(&mut self, wrong: Wrong) {
        self.wrong.get_or_insert(wrong);
    }

    /// The tasks of a container begin to run, or go on, and a client has a write acknowledged by them at once.
    pub fn run(&mut self, host: usize, container: usize) {
        let elsewhere = |(other, one): (usize, &Host)| {
            other != host && matches!(one.places[container].tasks, Tasks::Run | Tasks::Released)
        };
        if self.hosts.iter().enumerate().any(elsewhere) {
            self.note(Wrong::TwoRun);
        }
        if self.place(host, container).version != self.acknowledged[container] {
            self.note(Wrong::WritesLost);
        }
        self.acknowledged[container] += 1;
        let version = self.acknowledged[container];
        let place = self.place(host, container);
        place.version = version;
        place.tasks = Tasks::Run;
    }

    pub fn send(&mut self, letter: Letter) {
        if self.migrations[letter.migration].connected {
            let at = self.letters.partition_point(|other| other <= &letter);
            self.letters.insert(at, letter);
        }
    }

    /// Whether another migration than `asking` brings the container to the host, and is not at its end.
    pub fn on_its_way(&self, moves: &[Move], asking: usize) -> bool {
        let at_work = |(other, (migration, one)): (usize, (&Migration, &Move))| {
            let newest = DestinationStep::deciding(&migration.destination_journal.steps);
            other != asking
                && one.container == moves[asking].container
                && one.to == moves[asking].to
                && (migration.destination.is_some() || newest.is_some_and(|step| !step.is_last()))
        };
        self.migrations.iter().zip(moves).enumerate().any(at_work)
    }

    /// Whether the state with the last acknowledged write is anywhere, where it can go on from.
    pub fn has_newest(&self, container: usize, moves: &[Move]) -> bool {
        let newest = self.acknowledged[container];
        let at_host = |host: &Host| {
            let place = &host.places[container];
            place.tasks != Tasks::None && place.version == newest
        };
        let in_images = |(migration, one): (&Migration, &Move)| {
            one.container == container && migration.images == Some(newest) && !migration.marked
        };
        self.hosts.iter().any(at_host) || self.migrations.iter().zip(moves).any(in_images)
    }

    /// Whether everything is over, and each container runs on exactly one host, which knows it as its own, with nothing of it left
    /// on any other.
    pub fn is_decided(&self, moves: &[Move]) -> bool {
        let containers = 0..self.acknowledged.len();
        self.hosts.iter().all(|host| host.up)
            && containers
                .into_iter()
                .all(|container| self.is_over(container, moves) && self.is_once(container))
    }

    fn is_over(&self, container: usize, moves: &[Move]) -> bool {
        self.migrations.iter().zip(moves).all(|(migration, one)| {
            let (there, here) = (
                &migration.destination_journal.steps,
                &migration.source_journal.steps,
            );
            let runs = there.contains(&DestinationStep::Running);
            let resolved =
                here.contains(&SourceStep::TakenBack) || there.contains(&DestinationStep::TakenOver);
            one.container != container
                || migration.source.is_none()
                    && migration.destination.is_none()
                    && (resolved || here.contains(&SourceStep::Done) == runs)
        })
    }

    /// It runs on one host, which knows it as its own, and nothing of it is on any other. One that has died is on one host.
    fn is_once(&self, container: usize) -> bool {
        let places = || self.hosts.iter().map(|host| &host.places[container]);
        let runs = if self.died[container] {
            Tasks::None
        } else {
            Tasks::Run
        };
        let own = |place: &&Place| {
            matches!(place.record, Some(Record::Own { .. })) && [runs, Tasks::Run].contains(&place.tasks)
        };
        let empty = |place: &&Place| place.record.is_none() && place.tasks == Tasks::None;
        places().filter(own).count() == 1 && places().filter(empty).count() == self.hosts.len() - 1
    }
}

/// What a state of this version adds up to.
pub fn digest(version: u8) -> Digest {
    [version; 32]
}
