//! What the test programs share: places on a real disk, and trees with everything in them.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "only tests use this")]

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lsetxattr, makedev,
    mknodat, utimensat,
};
use tempfile::TempDir;
use tranship_proto::v1::{EntryKind, TreeEntry};
use tranship_storage_drivers::digest::tree_listing;
use tranship_storage_drivers::tree::{TreeError, TreePart, TreeReader, TreeSummary, TreeWriter};

/// A new directory on a real disk: /tmp may be a tmpfs, which differs in what it can hold. `TRANSHIP_TEST_DIR` names
/// another place, to try another file system.
pub fn place() -> TempDir {
    let parent = std::env::var_os("TRANSHIP_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::Builder::new().prefix("st-").tempdir_in(parent).unwrap()
}

/// A directory below a place.
pub fn directory(place: &TempDir, name: &str) -> PathBuf {
    let path = place.path().join(name);
    fs::create_dir(&path).unwrap();
    path
}

pub fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn set_owner(path: &Path, owner: u32, group: u32) {
    let (owner, group) = (Uid::from_raw(owner), Gid::from_raw(group));
    chownat(CWD, path, Some(owner), Some(group), AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

pub fn make_node(path: &Path, kind: FileType, device: (u32, u32)) {
    mknodat(
        CWD,
        path,
        kind,
        Mode::from_raw_mode(0o640),
        makedev(device.0, device.1),
    )
    .unwrap();
}

pub fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// `user::rwx,user:1000:r-x,group::r-x,mask::r-x,other::---`, as the kernel stores it.
pub fn acl() -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (1u16, 7u16, u32::MAX),
        (2, 5, 1000),
        (4, 5, u32::MAX),
        (0x10, 5, u32::MAX),
        (0x20, 0, u32::MAX),
    ] {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// `cap_net_raw=ep`, as the kernel stores it (version 2, no root id).
pub fn capability() -> Vec<u8> {
    [0x0200_0001u32, 1 << 13, 0, 0, 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// Fills a directory with one of everything that must survive a move, the overlay's marks included.
pub fn fill_with_everything(root: &Path) {
    fill(root);
    make_node(&root.join("whiteout"), FileType::CharacterDevice, (0, 0));
    set_xattr(&root.join("opaque"), "trusted.overlay.opaque", b"y");
    set_mtime(root, 1_600_000_000, 1);
}

/// Fills a directory with one of everything that a process in a container can make.
pub fn fill(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::create_dir(at("etc")).unwrap();
    fs::write(at("etc/passwd"), b"root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(at("empty"), b"").unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"in the middle", 5 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    let large: Vec<u8> = (0..(3 << 20) + 17u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(at("large"), large).unwrap();
    fs::write(root.join(OsStr::from_bytes(b"odd \xff\xfe\n\\name")), b"odd").unwrap();
    symlink("../etc/passwd", at("symlink")).unwrap();
    symlink("/nowhere", root.join(OsStr::from_bytes(b"dangling\t"))).unwrap();
    fs::hard_link(at("etc/passwd"), at("hard")).unwrap();
    fs::hard_link(at("symlink"), at("zz symlink again")).unwrap();
    make_node(&at("fifo"), FileType::Fifo, (0, 0));
    fs::hard_link(at("fifo"), at("fifo again")).unwrap();
    make_node(&at("socket"), FileType::Socket, (0, 0));
    make_node(&at("null"), FileType::CharacterDevice, (1, 3));
    make_node(&at("block"), FileType::BlockDevice, (259, 70_000));
    fs::write(at("tool"), b"#!/bin/sh\n").unwrap();
    set_owner(&at("tool"), 1000, 1001);
    set_mode(&at("tool"), 0o6755);
    set_xattr(&at("tool"), "security.capability", &capability());
    set_xattr(&at("tool"), "user.comment", b"with\0zero");
    set_xattr(&at("symlink"), "trusted.note", b"on a symlink");
    set_xattr(&at("fifo"), "trusted.note", b"");
    for name in ["opaque", "inherits", "closed", "closed/in"] {
        fs::create_dir(at(name)).unwrap();
    }
    set_xattr(&at("inherits"), "system.posix_acl_default", &acl());
    set_xattr(&at("etc/passwd"), "system.posix_acl_access", &acl());
    fs::write(at("closed/in/side"), b"x").unwrap();
    set_owner(&at("closed/in"), 4_000_000_000, 3);
    set_owner(&at("symlink"), 7, 8);
    set_mode(&at("closed/in"), 0o1555);
    set_mode(&at("closed"), 0o555);
    let dated = [
        ("etc/passwd", -5, 999_999_999),
        ("symlink", 1, 2),
        ("fifo", 3, 4),
        ("null", 5, 6),
        ("closed/in", 7, 8),
    ];
    for (name, seconds, nanoseconds) in dated {
        set_mtime(&at(name), seconds, nanoseconds);
    }
    for (number, name) in ["closed", "etc", "inherits", "opaque", "."]
        .into_iter()
        .enumerate()
    {
        set_mtime(&at(name), 1_600_000_000, 123_456_789 + number as i64);
    }
}

pub fn writer(root: &Path) -> TreeWriter {
    TreeWriter::create(File::open(root).unwrap().into()).unwrap()
}

pub fn write_all(root: &Path, parts: impl IntoIterator<Item = TreePart>) -> Result<TreeSummary, TreeError> {
    let mut writer = writer(root);
    for part in parts {
        writer.apply(part)?;
    }
    writer.finish()
}

pub fn copy(from: &Path, to: &Path) -> TreeSummary {
    write_all(to, TreeReader::open(from).unwrap().map(Result::unwrap)).unwrap()
}

/// Fails with the lines in which two trees differ.
pub fn same_trees(one: &Path, other: &Path) {
    let (one, other) = (tree_listing(one).unwrap(), tree_listing(other).unwrap());
    let only = |here: &[String], there: &[String]| -> Vec<String> {
        here.iter()
            .filter(|line| !there.contains(line))
            .cloned()
            .collect()
    };
    assert!(
        one == other,
        "only in one: {:#?}\nonly in the other: {:#?}",
        only(&one, &other),
        only(&other, &one)
    );
}

/// An entry with plain attributes.
pub fn entry(kind: EntryKind, path: &str) -> TreePart {
    let path = path.as_bytes().to_vec();
    TreePart::Entry(TreeEntry {
        kind: kind.into(),
        path,
        mode: 0o755,
        ..TreeEntry::default()
    })
}

pub fn file(path: &str, size: u64) -> TreePart {
    let path = path.as_bytes().to_vec();
    TreePart::Entry(TreeEntry {
        kind: EntryKind::File.into(),
        path,
        mode: 0o644,
        size,
        ..TreeEntry::default()
    })
}

pub fn symlink_to(path: &str, target: &str) -> TreePart {
    let (path, link_target) = (path.as_bytes().to_vec(), target.as_bytes().to_vec());
    TreePart::Entry(TreeEntry {
        kind: EntryKind::Symlink.into(),
        path,
        link_target,
        ..TreeEntry::default()
    })
}

pub fn hard_link(path: &str, target: &str) -> TreePart {
    let (path, link_target) = (path.as_bytes().to_vec(), target.as_bytes().to_vec());
    TreePart::Entry(TreeEntry {
        kind: EntryKind::Hardlink.into(),
        path,
        link_target,
        ..TreeEntry::default()
    })
}

pub fn data(offset: u64, bytes: &[u8]) -> TreePart {
    TreePart::Data {
        offset,
        bytes: bytes.to_vec(),
    }
}
