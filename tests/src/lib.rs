//! What the end-to-end tests, the demo and the benchmarks share.
//!
//! [`testbed`] stands in for several machines on one, [`tranship`] is the command line on its hosts, [`counter`] the client
//! that notices every lost or repeated request (over [`resp`]), [`crowd`] does so on any number of connections, [`visitors`] come with a
//! new one each time, [`oracles`] judges that nothing is left behind, [`journals`] that what is on record is what the machines write, [`scenario`] is the frame of an end-to-end test.
//! [`faults`] has daemons die and fail at exact moments, [`power`] switches a host off, [`etcd`] is one that hosts share.
//! [`command`] and [`programs`] run things, [`images`] knows what there is to run in containers, of which [`workload`] (with
//! [`sys`]) is our own, [`stamps`] watches one job of it, [`halfway`] stops a
//! migration at the edge of its commit, [`faults`] does so at any of its steps and has it fail there, [`field`] is the frame of many such attempts, [`broken_criu`] fails, [`better_cpu`] is one that a host does not have, [`namespace`] puts a thread on a host, [`interrupt`] cleans up after a Ctrl-C.

pub mod bench;
pub mod better_cpu;
pub mod broken_criu;
pub mod clock;
pub mod command;
pub mod counter;
pub mod crowd;
pub mod etcd;
pub mod faults;
pub mod field;
pub mod halfway;
pub mod images;
pub mod interrupt;
pub mod journals;
pub mod namespace;
pub mod oracles;
pub mod owner;
pub mod power;
pub mod programs;
pub mod resp;
pub mod scenario;
pub mod stamps;
pub mod sys;
pub mod testbed;
pub mod tranship;
pub mod visitors;
pub mod workload;
