//! The file system below a host's storage drivers.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::host::Host;
use crate::command;

/// Size of a loop image; it is sparse.
const IMAGE_BYTES: u64 = 16 << 30;

/// Size of a small one: some images and containers fit, and it is filled in a moment.
const SMALL_BYTES: u64 = 512 << 20;

/// What takes up the rest of a small disk.
const FILLER: &str = "filler";

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
    /// Half a GiB of ext4 on a loop image, which holds the daemon's state as well: a disk that can be full.
    Small,
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
        // Nothing is put aside for root, who the daemon is.
        PoolKind::Small => command::command("mkfs.ext4", ["-q", "-F", "-m", "0"]),
    };
    let file = File::create(&image).with_context(|| format!("cannot make {}", image.display()))?;
    file.set_len(if kind == PoolKind::Small {
        SMALL_BYTES
    } else {
        IMAGE_BYTES
    })?;
    command::succeed(mkfs.arg(&image), command::SHORT)?;
    let arguments = [
        "-o".as_ref(),
        "loop".as_ref(),
        image.as_os_str(),
        pool.as_os_str(),
    ];
    host.run("mount", arguments)?;
    make_folders(&host.path(&pool))?;
    if kind == PoolKind::Small {
        share(host, &pool)?;
    }
    Ok(())
}

/// Puts the daemon's state on the pool's disk.
fn share(host: &Host, pool: &Path) -> Result<()> {
    let (state, place) = (host.layout.state_dir(host.name()), pool.join("state"));
    fs::create_dir_all(&state).with_context(|| format!("cannot make {}", state.display()))?;
    fs::create_dir(host.path(&place)).with_context(|| format!("cannot make {}", place.display()))?;
    host.run("mount", ["--bind".as_ref(), place.as_os_str(), state.as_os_str()])?;
    Ok(())
}

/// Fills a small disk to the last byte.
///
/// # Errors
/// The disk is not a small one of its own, or something else goes wrong than that it is full.
pub fn fill(host: &Host) -> Result<()> {
    let pool = host.layout.pool(host.name());
    ensure!(
        image(&pool).exists(),
        "the disk of {} is not its own",
        host.name()
    );
    let filler = host.path(pool.join(FILLER));
    let mut file = File::create(&filler).with_context(|| format!("cannot make {}", filler.display()))?;
    // In large pieces first, then in what the file system can still give.
    for piece in [1 << 20, 4 << 10, 1] {
        let bytes = vec![0x5a; piece];
        loop {
            match file.write(&bytes) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error).context("cannot fill the disk"),
            }
        }
    }
    // Blocks are given for good when they are written back.
    match file.sync_all() {
        Err(error) if error.kind() != ErrorKind::StorageFull => Err(error).context("cannot fill the disk"),
        _ => Ok(()),
    }
}

/// Gives back what [`fill`] has taken.
///
/// # Errors
/// It was not filled.
pub fn empty(host: &Host) -> Result<()> {
    let filler = host.path(host.layout.pool(host.name()).join(FILLER));
    fs::remove_file(&filler).with_context(|| format!("cannot remove {}", filler.display()))
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
