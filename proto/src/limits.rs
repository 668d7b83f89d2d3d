//! Every bound a peer is held to, with its reason. A number from a peer meets one of these before it reaches an
//! allocation, a slice or a loop.

/// Longest name of a host, container, volume or network: fits a file name and a DNS label sequence.
pub const MAX_NAME_BYTES: usize = 128;

/// Largest payload of a data frame. 1 MiB keeps the header's share below 0.01 % and a receiver's buffers small.
pub const MAX_DATA_BYTES: u32 = 1 << 20;

/// Largest payload of a frame that carries a message (greeting, entry, beginning, end): an entry's extended
/// attributes are bounded by the kernel at 64 KiB each and, on the file systems at hand, 64 KiB in all; a path by 4 KiB.
pub const MAX_MESSAGE_BYTES: u32 = 256 << 10;

/// Longest path of an entry, as Linux has it.
pub const MAX_PATH_BYTES: usize = 4096;

/// Trees in one migration: layers, volumes, images and the writable layer.
pub const MAX_TREES: u16 = 1024;

/// Entries in one tree: an end to a peer that never ends one.
pub const MAX_TREE_ENTRIES: u64 = 1 << 32;

/// Largest file in a tree: what ext4 and XFS hold on 4 KiB blocks is more, what anybody has sent is less.
pub const MAX_FILE_BYTES: u64 = 1 << 44;

/// Standard streams of a container.
pub const MAX_DESCRIPTORS: usize = 3;

/// Largest message on a control connection; tonic's own default, written down.
pub const MAX_CONTROL_BYTES: usize = 4 << 20;

/// Content in one frame of pages, in bytes: large enough that a frame's cost does not matter, small enough that each
/// stream holds little.
pub const MAX_PAGE_CONTENT_BYTES: u32 = 1 << 20;

/// Runs in one frame of pages. As many as it takes when no page lies beside another, and room for zero runs between.
pub const MAX_PAGE_RUNS: u32 = 1 << 12;

/// Largest payload of a frame of pages: content, table and its head.
pub const MAX_PAGES_BYTES: u32 = MAX_PAGE_CONTENT_BYTES + MAX_PAGE_RUNS * 16 + 8;

/// End of the largest address space of a process: five levels of page tables.
pub const MAX_ADDRESS: u64 = 1 << 56;

/// Largest process id that Linux gives out, `PID_MAX_LIMIT`.
pub const MAX_PROCESS: u32 = 1 << 22;

/// Warnings that a destination may have about a container that runs: there is one thing that it can warn of.
pub const MAX_WARNINGS: usize = 4;

/// Streams of memory in one migration.
pub const MAX_PAGE_STREAMS: u32 = 64;
