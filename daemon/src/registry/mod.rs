//! What this host must still know after a restart or a power cut: one SQLite file.
//!
//! Everything goes through one connection, so a transaction is the only unit of change and there is no second writer to
//! argue with. The file is in WAL mode with `synchronous=FULL`: a call that returned `Ok` is on stable storage, which is
//! what makes a row of the handoff journal a commit record.
//!
//! In reading order: `database` opens the file and runs work on it, `schema` is its shape and how old shapes become new
//! ones, `columns` turns our types into columns; then one module a table.

mod cluster;
mod columns;
mod containers;
mod database;
mod error;
mod images;
mod migrations;
mod schema;
mod volumes;

pub use containers::{ContainerRecord, Containers, Tombstone};
pub use database::Registry;
pub use error::RegistryError;
pub use images::Images;
pub use migrations::{JournalStep, MigrationRecord, Migrations};
pub use volumes::{VolumeRecord, Volumes};

#[cfg(test)]
pub use containers::tests::record as test_record;
