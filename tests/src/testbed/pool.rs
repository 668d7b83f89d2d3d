//! The file system below a host's storage drivers.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::host::Host;
use crate::command;
use crate::tranship::wait_for;

/// What was killed has let go of its files.
const SOON: Duration = Duration::from_secs(10);

/// Size of a loop image; it is sparse.
const IMAGE_BYTES: u64 = 16 << 30;

/// Size of a small one: some images and containers fit, and it is filled in a moment.
const SMALL_BYTES: u64 = 512 << 20;

/// Smallest of what mkfs.xfs makes, and room for copies.
const GROUND_BYTES: u64 = 2 << 30;

/// The disk and its copy, on their XFS.
const DISK: &str = "disk.img";
const COPY: &str = "copy.img";

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
    /// The same on a disk that can be copied at any instant, as it would be if the power were cut then ([`copy_disk`]): a file that is
    /// used without the page cache, on an XFS whose files share blocks.
    Cut,
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
        PoolKind::Small => make_small(),
        PoolKind::Cut => return make_cut(host),
    };
    let bytes = if kind == PoolKind::Small {
        SMALL_BYTES
    } else {
        IMAGE_BYTES
    };
    make_file(&image, bytes)?;
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

/// Nothing is put aside for root, who the daemon is.
fn make_small() -> Command {
    command::command("mkfs.ext4", ["-q", "-F", "-m", "0"])
}

/// Puts the daemon's state on the pool's disk.
fn share(host: &Host, pool: &Path) -> Result<()> {
    let (state, place) = (host.layout.state_dir(host.name()), pool.join("state"));
    for path in [state.clone(), host.path(&place)] {
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    host.run("mount", ["--bind".as_ref(), place.as_os_str(), state.as_os_str()])?;
    Ok(())
}

fn make_cut(host: &Host) -> Result<()> {
    let pool = host.layout.pool(host.name());
    let (image, ground) = (image(&pool), ground(&pool));
    fs::create_dir_all(&ground).with_context(|| format!("cannot make {}", ground.display()))?;
    make_file(&image, GROUND_BYTES)?;
    let mut mkfs = command::command("mkfs.xfs", ["-q", "-f", "-m", "reflink=1"]);
    command::succeed(mkfs.arg(&image), command::SHORT)?;
    host.run(
        "mount",
        [
            "-o".as_ref(),
            "loop".as_ref(),
            image.as_os_str(),
            ground.as_os_str(),
        ],
    )?;
    let disk = host.path(ground.join(DISK));
    make_file(&disk, SMALL_BYTES)?;
    command::succeed(make_small().arg(&disk), command::SHORT)?;
    mount_disk(host)?;
    make_folders(&host.path(&pool))
}

/// Mounts the disk, and puts the daemon's state on it.
fn mount_disk(host: &Host) -> Result<()> {
    let pool = host.layout.pool(host.name());
    let disk = ground(&pool).join(DISK);
    let arguments = [
        "--find".as_ref(),
        "--show".as_ref(),
        "--direct-io=on".as_ref(),
        disk.as_os_str(),
    ];
    let device = host.run("losetup", arguments)?.text();
    let mounted = host.run("mount", [device.trim().as_ref(), pool.as_os_str()]);
    // The kernel keeps it for as long as it is mounted.
    host.run("losetup", ["--detach", device.trim()])?;
    mounted?;
    share(host, &pool)
}

/// Copies a disk as it is in this instant: what was brought to it, and what had got there besides. Neither sectors that are half
/// written nor writes that come in another order are in that.
///
/// # Errors
/// The disk is not of the kind [`PoolKind::Cut`].
pub fn copy_disk(host: &Host) -> Result<()> {
    let ground = ground(&host.layout.pool(host.name()));
    let (disk, copy) = (ground.join(DISK), ground.join(COPY));
    host.run(
        "cp",
        ["--reflink=always".as_ref(), disk.as_os_str(), copy.as_os_str()],
    )?;
    Ok(())
}

/// Puts the copy in the disk's place. Nobody may use the disk any more.
///
/// # Errors
/// Somebody does, or there is no copy.
pub fn use_copy(host: &Host) -> Result<()> {
    let pool = host.layout.pool(host.name());
    let ground = ground(&pool);
    for path in [host.layout.state_dir(host.name()), pool] {
        wait_for("the disk not to be used", SOON, || {
            let unmounted = host.run("umount", [path.as_os_str()]);
            unmounted.map(|_| true)
        })?;
    }
    host.run("mv", [ground.join(COPY), ground.join(DISK)])?;
    mount_disk(host)
}

fn ground(pool: &Path) -> PathBuf {
    pool.with_extension("ground")
}

fn make_file(path: &Path, bytes: u64) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(file.set_len(bytes)?)
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
