//! Root file systems that come as plain archives.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use tar::EntryType;

use super::Store;
use super::archives::{Tar, gzip, zstd};
use crate::image::ImageConfig;

/// `security.capability` of a file that may open raw sockets.
const CAPABILITY: &[u8] = &[1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn xattr(path: &std::path::Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = rustix::fs::lgetxattr(path, name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

/// An archive of everything; `long` is the path of a file in it.
fn everything(long: &str) -> Vec<u8> {
    Tar::new()
        .entry(EntryType::Directory, "./", "", &[], |header| {
            header.set_mode(0o711)
        })
        .entry(EntryType::Directory, "./d", "", &[], |header| {
            header.set_mode(0o2770);
            header.set_gid(70_000);
            header.set_mtime(1_000_000_000);
        })
        .pax(&[
            ("mtime", b"1234567890.123456789"),
            ("SCHILY.xattr.user.note", b"a\0b"),
            ("SCHILY.xattr.security.capability", CAPABILITY),
        ])
        .entry(EntryType::Regular, "d/suid", "", b"content", |header| {
            header.set_mode(0o4755);
            header.set_uid(1000);
        })
        .pax(&[("path", long.as_bytes())])
        .file("short", "long name")
        .link(EntryType::Symlink, "d/link", "/etc/passwd")
        .link(EntryType::Link, "d/hard", "./d/suid")
        .entry(EntryType::Fifo, "d/fifo", "", &[], |header| {
            header.set_mode(0o600)
        })
        .entry(EntryType::Char, "d/null", "", &[], |header| {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        })
        .file("d/holes", vec![0; 4 << 20])
        .file("late/without/a/directory", "x")
        .end()
}

#[test]
fn everything_a_file_system_has_arrives() {
    let store = Store::new();
    let long = format!("d/{}/{}", "n".repeat(200), "m".repeat(150));
    let tree = store.tree(&store.import(&everything(&long)).unwrap());
    let look = |path: &str| fs::symlink_metadata(tree.join(path)).unwrap();

    assert_eq!(look("").permissions().mode() & 0o7777, 0o711);
    let directory = look("d");
    assert_eq!(
        (directory.permissions().mode() & 0o7777, directory.gid()),
        (0o2770, 70_000)
    );
    assert_eq!(
        directory.mtime(),
        1_000_000_000,
        "the time is set after the last entry in it"
    );
    let suid = look("d/suid");
    assert_eq!(
        (suid.permissions().mode() & 0o7777, suid.uid(), suid.nlink()),
        (0o4755, 1000, 2)
    );
    assert_eq!((suid.mtime(), suid.mtime_nsec()), (1_234_567_890, 123_456_789));
    assert_eq!(xattr(&tree.join("d/suid"), "user.note").unwrap(), b"a\0b");
    assert_eq!(
        xattr(&tree.join("d/suid"), "security.capability").unwrap(),
        CAPABILITY
    );
    assert_eq!(look("d/hard").ino(), suid.ino());
    assert_eq!(fs::read_to_string(tree.join(&long)).unwrap(), "long name");
    assert_eq!(
        fs::read_link(tree.join("d/link")).unwrap().to_str(),
        Some("/etc/passwd")
    );
    assert_eq!(look("d/link").mtime(), 1_700_000_000);
    assert!(look("d/fifo").file_type().is_fifo());
    assert_eq!(look("d/null").rdev(), rustix::fs::makedev(1, 3));
    let holes = look("d/holes");
    assert_eq!((holes.len(), holes.blocks()), (4 << 20, 0), "zeroes take no room");
    assert_eq!(
        look("late/without").mtime(),
        0,
        "what the archive does not mention is the same everywhere"
    );
}

#[test]
fn the_same_content_is_the_same_image_however_it_is_packed() {
    let store = Store::new();
    let archive = Tar::new().dir("bin/").file("bin/run", "#!/bin/sh\n").end();
    let changes = ["CMD [\"/bin/run\"]", "ENV B=2 A=1", "LABEL z=1 a=2"];
    let first = store.import_as(&archive, "web", &changes).unwrap();
    for packed in [gzip(&archive), zstd(&archive), archive.clone()] {
        let again = store.import_as(&packed, "web", &changes).unwrap();
        assert_eq!((&again.digest, &again.layers), (&first.digest, &first.layers));
    }
    assert_eq!(first.names, ["web:latest"]);
    assert_eq!(first.size_bytes, archive.len() as u64);
    let config = ImageConfig::of(&first).unwrap();
    assert_eq!(
        (config.cmd, config.env),
        (vec!["/bin/run".to_owned()], vec!["B=2".into(), "A=1".into()])
    );
    let other = store.import_as(&archive, "web", &["CMD x"]).unwrap();
    assert_ne!(other.digest, first.digest);
    assert_eq!(other.layers, first.layers);
}

#[test]
fn a_later_entry_counts_and_directories_keep_what_is_in_them() {
    let store = Store::new();
    let archive = Tar::new()
        .file("d/kept", "1")
        .file("swap/a/b", "gone")
        .file("file", "old")
        .dir("d/")
        .file("swap", "now a file")
        .file("file", "new")
        .link(EntryType::Symlink, "way", "d")
        .file("way/through", "a link inside is followed")
        .file("way", "now a file")
        .file("d/last", "x")
        .end();
    let tree = store.tree(&store.import(&archive).unwrap());
    let read = |path: &str| fs::read_to_string(tree.join(path)).unwrap();
    assert_eq!(
        (read("d/kept"), read("swap"), read("file")),
        ("1".into(), "now a file".into(), "new".into())
    );
    assert_eq!(read("d/through"), "a link inside is followed");
    assert_eq!((read("way"), read("d/last")), ("now a file".into(), "x".into()));
}

#[test]
fn a_sparse_file_of_gnu_tar_is_read_with_its_holes() {
    let store = Store::new();
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = directory.path().join("sparse");
    let file = fs::File::create(&path).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"end", 10 << 20).unwrap();
    let tar = |format: &str| {
        let mut command = std::process::Command::new("tar");
        command
            .args(["-S", format, "-C"])
            .arg(directory.path())
            .args(["-cf", "-", "sparse"]);
        command.output().unwrap().stdout
    };
    let tree = store.tree(&store.import(&tar("--format=gnu")).unwrap());
    let found = fs::metadata(tree.join("sparse")).unwrap();
    assert_eq!(found.len(), (10 << 20) + 3);
    assert!(found.blocks() < 64, "{} blocks", found.blocks());
    assert!(fs::read(tree.join("sparse")).unwrap().ends_with(b"\0end"));
    let error = Store::new().refusal(&tar("--format=posix"));
    assert!(error.contains("make it without --sparse"), "{error}");
}

#[test]
fn an_empty_archive_is_an_empty_root_file_system_and_no_archive_is_none() {
    let store = Store::new();
    assert!(store.refusal(b"").contains("ends without its end mark"));
    let tree = store.tree(&store.import(&Tar::new().end()).unwrap());
    assert_eq!(fs::read_dir(tree).unwrap().count(), 0);
}
