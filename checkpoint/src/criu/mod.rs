//! Driving CRIU: the relay between runc and CRIU, dump, restore, and what this host's CRIU can do.
//!
//! ```text
//! daemon ---- runc checkpoint / restore ---- tranship-criu (as `criu`) ---- CRIU
//!    \______________ relay socket ______________/
//! ```
//! The relay passes on what runc and CRIU say to each other, sets options ([`options`]) and stops at three places until
//! the daemon has decided: the request itself, then `post-dump`, or `setup-namespaces` and `post-restore`.

pub mod cpu;
pub mod discard;
pub mod dump;
pub mod ghosts;
pub(crate) mod leftovers;
pub mod log;
pub mod options;
pub mod pre_dump;
pub mod probe;
pub mod process;
pub mod relay;
pub mod restore;
pub mod rpc;
pub mod smaps;
pub mod unprivileged;
pub(crate) mod watch;
pub mod wire;

pub use cpu::{CpuMismatch, cpuinfo_check, cpuinfo_dump};
pub use discard::{Discard, DiscardError, discard};
pub use dump::{Dump, DumpError, DumpReport, DumpRequest, dump};
pub use ghosts::{GhostError, remove_ghosts};
pub use pre_dump::{PreDumpRequest, pre_dump};
pub use probe::{CriuInfo, ProbeError, probe};
pub use relay::{Relay, RelayError, journal_of, was_released};
pub use restore::RestoreError;
pub use wire::{Barrier, BarrierStage, Finished, Memory, Operation, RequestSeen, StageTime};
