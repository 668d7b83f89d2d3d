//! The cluster's certificates: one authority, which signs one certificate per host.
//!
//! Only the host that began the cluster holds the authority's key, so only it can let new hosts in. Hosts make their
//! own keys and send a request; a private key never leaves its host. Everything lies in `state_dir/pki` and comes into
//! being in one step: a folder is filled beside it and renamed.

mod files;
mod issue;

pub use files::{Pki, PkiFileError, move_aside, renew, write};
pub use issue::{Authority, HostKey, IssueError, ends_ms, fingerprint};
