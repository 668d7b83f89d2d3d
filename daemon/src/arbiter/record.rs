//! What is on record about one container, and what that says of a handoff. Nothing here reads or writes.
//!
//! ```text
//!   {"host": "b", "epoch": 4, "base": 2, "moves": [{"epoch": 3, "migration": ...}, {"epoch": 4, "migration": ...}],
//!    "migration": ..., "decided": "abandoned"}
//! ```
//!
//! The record has an owner and his epoch, and `moves`: the commits that have made the epochs above `base`. A handoff is
//! decided by one change on the revision it was opened on, its token. So there are four cases:
//!
//! - Its migration is among the moves: committed. That stays so when the container moves on, and a source that was away for
//!   long still learns what became of its copy.
//! - The record has still the revision of the token: nothing is decided.
//! - It has another, and the moves reach back to the handoff's epoch: its commit is not there, and never will be, since a
//!   revision does not come back. Abandoned.
//! - The moves do not reach back: a person has given the container to somebody ([`Record::anew`]), or the record was removed. Then
//!   neither host of that handoff may run its copy for the sake of it, however it was decided.
//!
//! `migration` and `decided` are the last decision, for people who look at the record; they decide nothing.

use serde::{Deserialize, Serialize};
use tranship_proto::ids::{MigrationId, Name};

use super::{Decision, Handoff, Owner};

/// Commits that are kept: as many times a container can move on while a source is away.
const MAX_MOVES: usize = 64;

/// The record of one container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    host: Name,
    epoch: u64,
    base: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    moves: Vec<Move>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    migration: Option<MigrationId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    decided: Option<Decision>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Move {
    epoch: u64,
    migration: MigrationId,
}

/// A record with the revisions at which it was created and last changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// What it says.
    pub record: Record,
    /// When it began.
    pub created: i64,
    /// Its last change.
    pub modified: i64,
}

/// What a record says of a handoff.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It can be decided now, on this very record.
    Undecided,
    /// It was decided.
    Decided(Decision),
    /// The record was never such that this handoff could have begun from it.
    NotItsSource,
    /// The record has begun anew since.
    Superseded,
}

impl Record {
    /// A record that begins with an owner, whoever came before.
    #[must_use]
    pub fn anew(host: Name, epoch: u64) -> Self {
        Self {
            host,
            epoch,
            base: epoch,
            moves: Vec::new(),
            migration: None,
            decided: None,
        }
    }

    /// Who owns the container.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner {
            host: self.host.clone(),
            epoch: self.epoch,
        }
    }

    /// The record after a handoff that it leaves undecided was decided.
    #[must_use]
    pub fn after(&self, handoff: &Handoff, decision: Decision) -> Self {
        let mut next = Self {
            migration: Some(handoff.migration),
            decided: Some(decision),
            ..self.clone()
        };
        if decision == Decision::Committed {
            next.host = handoff.destination.clone();
            next.epoch = handoff.epoch;
            next.moves.push(Move {
                epoch: handoff.epoch,
                migration: handoff.migration,
            });
            if next.moves.len() > MAX_MOVES {
                next.base = next.moves.remove(0).epoch;
            }
        }
        next
    }
}

impl Stored {
    /// What it says of a handoff.
    #[must_use]
    pub fn standing(&self, handoff: &Handoff) -> Standing {
        let record = &self.record;
        if record.moves.iter().any(|one| one.migration == handoff.migration) {
            return Standing::Decided(Decision::Committed);
        }
        if self.modified == handoff.token.0 {
            return match record.host == handoff.source && record.epoch.checked_add(1) == Some(handoff.epoch) {
                true => Standing::Undecided,
                false => Standing::NotItsSource,
            };
        }
        match self.created > handoff.token.0 || handoff.epoch <= record.base {
            true => Standing::Superseded,
            false => Standing::Decided(Decision::Abandoned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arbiter::Token;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn stored(record: Record, created: i64, modified: i64) -> Stored {
        Stored {
            record,
            created,
            modified,
        }
    }

    fn handoff(source: &str, destination: &str, epoch: u64, token: i64) -> Handoff {
        Handoff {
            container: "c0ffee".repeat(11)[..64].parse().unwrap(),
            migration: MigrationId::generate(),
            source: name(source),
            destination: name(destination),
            epoch,
            token: Token(token),
        }
    }

    #[test]
    fn a_handoff_is_committed_for_as_long_as_the_container_moves_on() {
        let first = handoff("a", "b", 2, 10);
        let mut record = Record::anew(name("a"), 1).after(&first, Decision::Committed);
        let committed = Standing::Decided(Decision::Committed);
        for epoch in 3..=65 {
            let token = i64::try_from(epoch).unwrap() + 20;
            assert_eq!(stored(record.clone(), 10, token).standing(&first), committed);
            let next = handoff("b", "b", epoch, token);
            let before = record.after(&next, Decision::Abandoned);
            assert_eq!(stored(before, 10, token + 1).standing(&first), committed);
            record = record.after(&next, Decision::Committed);
        }
        assert_eq!(stored(record.clone(), 10, 200).standing(&first), committed);
        let last = record.after(&handoff("b", "c", 66, 200), Decision::Committed);
        assert_eq!(
            stored(last, 10, 201).standing(&first),
            Standing::Superseded,
            "it forgets instead of guessing"
        );
    }

    #[test]
    fn what_was_not_committed_on_its_token_never_will_be() {
        let (late, taken) = (handoff("a", "b", 2, 10), handoff("a", "c", 2, 11));
        let record = Record::anew(name("a"), 1);
        assert_eq!(
            stored(record.clone(), 10, 10).standing(&late),
            Standing::Undecided
        );
        let abandoned = record.after(&late, Decision::Abandoned);
        assert_eq!(abandoned.owner(), record.owner());
        let moved = abandoned.after(&taken, Decision::Committed);
        for now in [stored(abandoned, 10, 11), stored(moved, 10, 12)] {
            assert_eq!(now.standing(&late), Standing::Decided(Decision::Abandoned));
        }
    }

    #[test]
    fn a_record_that_began_anew_says_nothing_of_what_was_before() {
        let before = handoff("a", "b", 2, 10);
        let committed = Record::anew(name("a"), 1).after(&before, Decision::Committed);
        assert_eq!(
            stored(committed, 10, 11).standing(&before),
            Standing::Decided(Decision::Committed)
        );
        let given = stored(Record::anew(name("c"), 2), 10, 12);
        assert_eq!(given.standing(&before), Standing::Superseded);
        let made_again = stored(Record::anew(name("a"), 1), 12, 12);
        assert_eq!(made_again.standing(&before), Standing::Superseded);
        let stranger = stored(Record::anew(name("c"), 1), 10, 10);
        assert_eq!(stranger.standing(&before), Standing::NotItsSource);
    }

    #[test]
    fn the_record_is_stored_in_these_words() {
        let one = handoff("a", "b", 2, 10);
        let text = serde_json::to_value(Record::anew(name("a"), 1).after(&one, Decision::Committed)).unwrap();
        let expected = serde_json::json!({
            "host": "b", "epoch": 2, "base": 1, "moves": [{"epoch": 2, "migration": one.migration}],
            "migration": one.migration, "decided": "committed",
        });
        assert_eq!(text, expected);
        let begun = serde_json::to_value(Record::anew(name("a"), 1)).unwrap();
        assert_eq!(begun, serde_json::json!({"host": "a", "epoch": 1, "base": 1}));
    }
}
