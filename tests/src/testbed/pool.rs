//! The file system below a host's storage drivers.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::host::Host;
use crate::command;

/// Size of a loop image; it is sparse.
const IMAGE_BYTES: u64 = 16 << 30;

/// Which file system a pool is on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum PoolKind {
    /// A directory of the machine's own disk.
    #[default]
    Dir,
    /// Btrfs on a loop image.
    Btrfs,
    /// XFS with reflinks on a loop image.
    Xfs,
}

/// Makes a host's pool and mounts it, in the host's namespace only: it is unmounted, and its loop device freed, by the end
/// of the host.
///
/// # Errors
/// The disk is full, or the file system cannot be made or mounted.
pub fn make(host: &Host, kind: PoolKind) -> Result<()> {
    let pool = host.layout.pool(host.name());
    fs::create_dir_all(&pool).with_context(|| format!("cannot make {}", pool.display()))?;
    let image = image(&pool);
    let mut mkfs = match kind {
        PoolKind::Dir => return make_folders(&pool),
        PoolKind::Btrfs => command::command("mkfs.btrfs", ["-q", "-f"]),
        PoolKind::Xfs => command::command("mkfs.xfs", ["-q", "-f", "-m", "reflink=1"]),
    };
    let file = File::create(&image).with_context(|| format!("cannot make {}", image.display()))?;
    file.set_len(IMAGE_BYTES)?;
    command::succeed(mkfs.arg(&image), command::SHORT)?;
    let arguments = [
        "-o".as_ref(),
        "loop".as_ref(),
        image.as_os_str(),
        pool.as_os_str(),
    ];
    host.run("mount", arguments)?;
    make_folders(&host.path(&pool))
}

fn make_folders(pool: &Path) -> Result<()> {
    let overlay = pool.join("overlay");
    fs::create_dir_all(&overlay).with_context(|| format!("cannot make {}", overlay.display()))
}

/// The loop image of a pool.
#[must_use]
pub fn image(pool: &Path) -> PathBuf {
    pool.with_extension("img")
}
