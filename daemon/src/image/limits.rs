//! What an archive is held to, with the reason for each number.

/// Largest JSON document of an image; registries refuse larger manifests.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Most layers of an image: what Docker builds at most.
pub const MAX_LAYERS: usize = 127;

/// Most members of an image archive. Docker's older layout has four for each layer.
pub const MAX_MEMBERS: usize = 4096;

/// Deepest index of indexes.
pub const MAX_INDEX_DEPTH: usize = 3;

/// Most bytes an archive or a layer has when it is unpacked: more than any image seen, and an end to a stream that
/// decompresses without one.
pub const MAX_UNPACKED_BYTES: u64 = 1 << 40;

/// Most entries of a layer; a file system has about as many inodes.
pub const MAX_ENTRIES: u64 = 1 << 24;

/// Most bytes of headers before one entry. Names, link targets and extended attributes of a file are below 1 MiB.
pub const MAX_HEADER_BYTES: u64 = 2 << 20;

/// Longest path, as Linux has it.
pub const MAX_PATH_BYTES: usize = 4096;

/// Most bytes of directory names, which are kept until their times are set at the end.
pub const MAX_DIRECTORY_NAMES_BYTES: usize = 256 << 20;

/// What an import leaves free on a file system: a full one could not record a handoff.
pub const RESERVED_BYTES: u64 = 256 << 20;
