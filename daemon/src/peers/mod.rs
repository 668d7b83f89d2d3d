//! The other hosts of the cluster: who they are, how they connect, how one becomes one of them.
//!
//! ```text
//!   names, address, identity, generation, token     words
//!   pki, tls                                        certificates, and what they are good for
//!   store, hosts                                    who belongs to the cluster
//!   refusal, connection, listener, streams          connections from others
//!   dial, connect                                   connections to others
//!   migrations, service, invite                     what others may call
//!   membership, cluster, serving, sync, found, join, admin  this host as a member
//! ```
//!
//! A host is let in when its certificate is genuine, names exactly one host, and that host belongs to the cluster now.
//! Nothing else identifies anybody: no address, no name in a message.

pub mod address;
pub mod generation;
pub mod identity;
pub mod names;
pub mod token;

pub mod pki;
pub mod tls;

pub mod hosts;
pub mod store;

pub mod connection;
mod listener;
pub mod refusal;
pub mod streams;

pub mod connect;
pub mod dial;

mod invite;
pub mod migrations;
mod service;

mod admin;
mod cluster;
mod found;
mod join;
mod membership;
mod serving;
mod sync;

pub use admin::{AdminError, TOKEN_VALID};
pub use cluster::{PeerSettings, Peers, PeersError};
pub use connect::ConnectError;
pub use identity::PeerIdentity;
pub use invite::InviteError;
pub use join::JoinError;
pub use membership::{Membership, MembershipError};
pub use migrations::{MigrateReplies, PeerMigrations};
pub use store::{Admission, Admitted, HostStore, HostStoreError};
pub use streams::{DataStream, DataStreams, ExpectedStreams};
pub use sync::SyncError;
