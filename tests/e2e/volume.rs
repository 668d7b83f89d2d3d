//! A volume with everything that file systems have in it arrives as it was.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, Mode, XattrFlags};
use tranship_storage_drivers::digest::{tree_hash, tree_listing};
use tranship_tests::scenario::Scenario;
use tranship_tests::testbed::Host;

const SMALL_FILES: usize = 10_000;
const SPARSE_BYTES: u64 = 1 << 30;

#[test]
fn a_volume_of_many_kinds_of_files_arrives_as_it_was() -> Result<()> {
    let scenario = Scenario::begin(&["busybox"])?;
    let (a, b) = (scenario.host("a")?, scenario.host("b")?);
    a.tranship(&["volume", "create", "odd"])?;
    fill(&place(a)?)?;
    a.tranship(&[
        "run", "-d", "--name", "idle", "-v", "odd:/odd", "busybox", "sleep", "86400",
    ])?;

    for (from, to) in [(a, b), (b, a)] {
        let before = place(from)?;
        let (hash, listing) = (tree_hash(&before)?, tree_listing(&before)?);
        let moved = from.migrate("idle", to.name())?;
        let after = place(to)?;
        if tree_hash(&after)? != hash {
            let now = tree_listing(&after)?;
            let changed: Vec<_> = listing
                .iter()
                .zip(&now)
                .filter(|(was, is)| was != is)
                .take(10)
                .collect();
            anyhow::bail!(
                "{} entries became {}; the first that differ: {changed:#?}",
                listing.len(),
                now.len()
            );
        }
        let disk = fs::metadata(after.join("sparse"))?.blocks() * 512;
        ensure!(disk < 8 << 20, "the sparse file takes {disk} bytes on disk");
        ensure!(
            moved.bytes_sent < 200 << 20,
            "{} bytes were sent: holes travelled",
            moved.bytes_sent
        );
        ensure!(!before.exists(), "the volume is still at {}", before.display());
        let seen = to.exec("idle", &["cat", "/odd/d42/f4242"])?;
        ensure!(seen == "small file 4242", "the container reads {seen:?}");
    }
    scenario.end()
}

/// Where the volume's files are, on the machine.
fn place(host: &Host) -> Result<PathBuf> {
    let volume = host.tranship_json(&["volume", "inspect", "odd"])?;
    Ok(volume["mountpoint"]
        .as_str()
        .context("a volume has a mountpoint")?
        .into())
}

fn fill(root: &Path) -> Result<()> {
    for number in 0..SMALL_FILES {
        let folder = root.join(format!("d{}", number % 100));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("f{number}")), format!("small file {number}"))?;
    }
    let sparse = File::create(root.join("sparse"))?;
    sparse.set_len(SPARSE_BYTES)?;
    sparse.write_all_at(b"in the middle", SPARSE_BYTES / 2 + 123)?;
    sparse.write_all_at(b"the end", SPARSE_BYTES - 7)?;

    let file = root.join("d1/f1");
    fs::hard_link(&file, root.join("hard-link"))?;
    chown(&file, Some(1234), Some(5678))?;
    fs::set_permissions(&file, Permissions::from_mode(0o4751))?;
    rustix::fs::lsetxattr(&file, "user.colour", b"\0blue\n", XattrFlags::empty())?;
    // cap_net_bind_service+ep, as setcap(8) writes it.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    rustix::fs::lsetxattr(
        root.join("d2/f2"),
        "security.capability",
        &capability,
        XattrFlags::empty(),
    )?;
    let time = UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    File::options()
        .write(true)
        .open(root.join("d3/f3"))?
        .set_modified(time)?;
    symlink("../../nowhere", root.join("dangling"))?;
    node(&root.join("fifo"), FileType::Fifo, 0)?;
    node(
        &root.join("null"),
        FileType::CharacterDevice,
        rustix::fs::makedev(1, 3),
    )?;
    fs::write(
        root.join(std::ffi::OsStr::from_bytes(b"not\xffutf8 \n")),
        b"odd name",
    )?;
    fs::create_dir(root.join("empty"))?;
    fs::set_permissions(root.join("empty"), Permissions::from_mode(0o1777))?;
    File::open(root)?.set_modified(time)?;
    Ok(())
}

fn node(path: &Path, kind: FileType, device: u64) -> Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(0o640), device)?;
    Ok(())
}
