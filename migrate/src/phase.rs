//! The phases of a migration, in order, and what may still be undone in each.
//!
//! ```text
//! preflight -> reserve -> seed -> rounds -> freeze -> drain -> hold -> commit -> resume -> clean
//! `------------- the container runs at the source -----'                       '- it runs at the destination
//!                                          `------ it stands still ----------'
//! ```
//!
//! A failure before `commit` ends with the container running at the source; after it, at the destination.

use tranship_proto::v1::Phase;

/// Every phase, in order.
pub const ALL: [Phase; 10] = [
    Phase::Preflight,
    Phase::Reserve,
    Phase::Seed,
    Phase::Rounds,
    Phase::Freeze,
    Phase::Drain,
    Phase::Hold,
    Phase::Commit,
    Phase::Resume,
    Phase::Clean,
];

/// The word for a phase in logs, errors and output.
#[must_use]
pub fn name(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified => "start",
        Phase::Preflight => "preflight",
        Phase::Reserve => "reserve",
        Phase::Seed => "seed",
        Phase::Rounds => "rounds",
        Phase::Freeze => "freeze",
        Phase::Drain => "drain",
        Phase::Hold => "hold",
        Phase::Commit => "commit",
        Phase::Resume => "resume",
        Phase::Clean => "clean",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_are_numbered_in_their_order() {
        for (earlier, later) in ALL.iter().zip(ALL.iter().skip(1)) {
            assert!(
                (*earlier as i32) < (*later as i32),
                "{} is not before {}",
                name(*earlier),
                name(*later)
            );
        }
    }
}
