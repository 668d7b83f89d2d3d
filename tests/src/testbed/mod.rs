//! Several machines on one: hosts as namespaces, joined by a bridge.
//!
//! ```text
//!   tb-net (network namespace): bridge underlay 10.77.0.0/24
//!      |p-a            |p-b            |p-c            |p-client      veth pairs, shaped by `tbf` on request
//!   eth0 in br0     eth0 in br0     eth0 in br0      eth0
//!   host a .1       host b .2       host c .3        client .9
//! ```
//!
//! A host is the set of namespaces (network, mount, pid, ipc, uts) of one process, the *holder*, which is pid 1 in there:
//! whatever runs on the host dies with it, and nothing of the host is visible in the machine's own namespaces. So
//! [`down`](Testbed::down) has little to undo, and finds what is there without any record: a holder is recognised by its
//! command line.
//!
//! In reading order: [`layout`] says where everything is and what it is called, [`holder`] makes the namespaces,
//! [`network`] joins them, [`pool`] gives them disks, [`daemon`] starts `transhipd` in them, [`cluster`] introduces the
//! daemons to each other, [`bed`] puts it together, and [`teardown`] takes it apart.

pub mod bed;
pub mod cluster;
pub mod daemon;
pub mod holder;
pub mod host;
pub mod layout;
pub mod network;
pub mod pool;
pub mod teardown;

pub use bed::{Options, Testbed};
pub use host::Host;
pub use layout::Layout;
pub use pool::PoolKind;
