//! What the library in CRIU and the relay share: the board on which the library says that it is at work. Plain data, without
//! the standard library.

use core::sync::atomic::AtomicU32;

/// The variable that names the board's file to the library.
pub const VARIABLE: &str = "TRANSHIP_VIEW_BOARD\0";

/// Bit of [`Board::asked`]: page maps are without pages.
pub const HIDE_PAGES: u32 = 1;
/// Bit of [`Board::asked`]: connection tracking is not walked where it tracks nothing.
pub const SKIP_TRACKING: u32 = 2;

/// Bit of [`Board::asked`]: small file systems go into archives, and come out of them, without tar.
pub const SMALL_ARCHIVES: u32 = 4;

/// The variable that names a directory to the library: a file of it, named like a process, takes the place of that
/// process's `smaps`.
pub const AREAS: &str = "TRANSHIP_VIEW_AREAS\0";

/// Shared by the relay and the library; a file of zeros at first.
#[repr(C)]
pub struct Board {
    /// 1 when the library is in place.
    pub loaded: AtomicU32,
    /// How many questions have been answered with "no pages".
    pub hidden: AtomicU32,
    /// What the relay wants: bits of the constants above.
    pub asked: AtomicU32,

    /// How many processes' areas have come from the directory.
    pub areas: AtomicU32,
}
