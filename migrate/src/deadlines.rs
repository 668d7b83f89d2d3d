//! How long a role waits for what, each with its reason. No wait is without one.

use std::time::Duration;

/// For an answer that needs no bulk work: reservations, acknowledgements.
pub const REPLY: Duration = Duration::from_secs(20);

/// Between two pieces of a bulk stream while a tree is under way. A peer whose disk stalls longer than this would
/// hold the container frozen for as long.
pub const STALL: Duration = Duration::from_secs(20);

/// For the freezer: a task in an uninterruptible sleep is not waited for any longer.
pub const FREEZE: Duration = Duration::from_secs(5);

/// For CRIU to write or read all images, memory included: 0.1 GB/s over 16 GiB.
pub const IMAGES: Duration = Duration::from_secs(180);

/// From `Drained` to `Prepared`: the destination writes everything to stable storage.
pub const SYNC: Duration = Duration::from_secs(120);

/// From Go to the first instruction at the destination, and for its report of it.
pub const RESUME: Duration = Duration::from_secs(30);

/// For all of a container's memory to be filled in behind it: 0.1 GB/s over 64 GiB.
pub const FILLING: Duration = Duration::from_secs(640);

/// For a destination that has reserved to hear more before the freeze.
pub const SEED_IDLE: Duration = Duration::from_secs(600);

/// For a destination's own words on why its end of a stream has broken; the container may stand still meanwhile.
pub const WORDS: Duration = Duration::from_millis(300);

/// For a destination to drop what it has received: it ends a few processes.
pub const DROP: Duration = Duration::from_secs(1);

/// For the answer to a question about a handoff, which a peer reads from its journal. Without one it is asked again, on another
/// connection: a handoff is to be decided within 10 s of the hosts' seeing each other.
pub const ANSWER: Duration = Duration::from_secs(3);

/// Between two questions to a peer about a handoff in doubt.
pub const ASK_AGAIN: Duration = Duration::from_secs(1);
