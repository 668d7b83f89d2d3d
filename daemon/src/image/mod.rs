//! Images: archives become layers, a configuration and names.
//!
//! ```text
//!   stream (tar, gzip or zstd) -> spool (one unnamed file) -+- image archive: manifest, configuration, layers by digest
//!                                                           +- anything else: a root file system, one layer
//!   each layer -> decompressed, hashed, checked -> extracted into the storage driver -> committed under its digest
//! ```
//!
//! An archive names its parts in any order, so the stream is first written to a file, which nobody else can open and which
//! goes with the daemon; nothing is held in memory but the documents. A layer is known by the hash of its uncompressed
//! bytes, on every host; an image by the hash of its manifest. What an archive says about itself is checked against what
//! is in it before a layer is committed, so a failed import leaves nothing but layers that are what they are called.
//!
//! In reading order: [`import`](import()) is the way of an archive; `spool`, `decompress` and `members` get at its parts,
//! `oci` and `docker` know the two layouts, `layer` and `extract` make a directory of a layer. [`Reference`], [`resolve`]
//! and [`removal`](plan_removal) are about names, [`ImageConfig`] is what a container takes from an image.

mod attributes;
mod changes;
mod config;
mod decompress;
mod docker;
mod documents;
mod error;
mod extract;
mod headers;
mod import;
mod layer;
mod limits;
mod members;
mod names;
mod oci;
mod place;
mod reference;
mod room;
mod spool;

pub use changes::{Change, ChangeError};
pub use config::{ConfigError, ImageConfig, check_architecture, host_architecture};
pub use error::{ExtractError, ImportError};
pub use import::{ImportOptions, import};
pub use names::{NameError, Removal, plan_removal, resolve};
pub use reference::{Reference, ReferenceError};

#[cfg(test)]
mod tests;
