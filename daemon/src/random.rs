//! Numbers that nobody can guess, from the kernel.

use std::fs::File;
use std::io::{self, Read};

/// 32 random bytes.
///
/// # Errors
/// The kernel's source cannot be read.
pub fn bytes() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
