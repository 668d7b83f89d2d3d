//! Trees and streams at random: whatever a tree holds survives the way through frames, and whatever a stream holds,
//! the writer neither panics nor touches anything but its root.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{directory, make_node, place, same_trees, set_mode, set_mtime, set_owner, set_xattr, writer};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;
use rustix::fs::FileType;
use tranship_proto::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use tranship_proto::v1::{EntryKind, TreeEntry, Xattr};
use tranship_storage_drivers::digest::{TreeDigest, tree_hash, tree_listing};
use tranship_storage_drivers::tree::{TreePart, TreeReader};

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Something to make in a directory that was made before it.
#[derive(Clone, Debug)]
struct Node {
    parent: prop::sample::Index,
    name: Vec<u8>,
    kind: Kind,
    mode: u32,
    owner: u32,
    mtime: (i64, i64),
    xattrs: Vec<(u8, Vec<u8>)>,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory,
    /// Pieces of data at offsets, and a hole at the end.
    File(Vec<(u32, Vec<u8>)>, u32),
    Symlink(Vec<u8>),
    /// Of what was made before and is no directory.
    HardLink(prop::sample::Index),
    Fifo,
    Socket,
    Device(u32, u32),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        "[a-c]{1,2}".prop_map(String::into_bytes),
        vec(
            prop_oneof![Just(b'\n'), Just(b'\\'), Just(0xff), 1u8..=255],
            1..12
        ),
        Just(vec![b'n'; 255]),
    ]
    .prop_filter("a name", |name| {
        !name.contains(&b'/') && name != b"." && name != b".."
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    let piece = (0..6_000_000u32, vec(any::<u8>(), 1..9000));
    prop_oneof![
        4 => Just(Kind::Directory),
        4 => (vec(piece, 0..4), 0..100_000u32).prop_map(|(pieces, hole)| Kind::File(pieces, hole)),
        2 => vec(1u8..=255, 1..40).prop_map(Kind::Symlink),
        3 => any::<prop::sample::Index>().prop_map(Kind::HardLink),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
        1 => (0..512u32, 0..1u32 << 18).prop_map(|(major, minor)| Kind::Device(major, minor)),
    ]
}

fn node() -> impl Strategy<Value = Node> {
    let time = (-1_000_000_000..4_000_000_000i64, 0..1_000_000_000i64);
    let xattrs = vec((0..3u8, vec(any::<u8>(), 0..60)), 0..3);
    (
        any::<prop::sample::Index>(),
        name(),
        kind(),
        0..0o10000u32,
        0..5_000_000u32,
        time,
        xattrs,
    )
        .prop_map(|(parent, name, kind, mode, owner, mtime, xattrs)| Node {
            parent,
            name,
            kind,
            mode,
            owner,
            mtime,
            xattrs,
        })
}

/// Makes the nodes whose names are free; attributes last, from the leaves up.
fn build(root: &Path, nodes: &[Node]) {
    let (mut directories, mut others): (Vec<PathBuf>, Vec<PathBuf>) = (vec![root.to_owned()], Vec::new());
    let mut made: Vec<(PathBuf, &Node)> = Vec::new();
    for node in nodes {
        let path = node.parent.get(&directories).join(OsStr::from_bytes(&node.name));
        if fs::symlink_metadata(&path).is_ok() || path.as_os_str().len() > 3000 {
            continue;
        }
        match &node.kind {
            Kind::Directory => fs::create_dir(&path).unwrap(),
            Kind::File(pieces, hole) => {
                let file = File::create_new(&path).unwrap();
                for (offset, bytes) in pieces {
                    file.write_all_at(bytes, u64::from(*offset)).unwrap();
                }
                file.set_len(file.metadata().unwrap().len() + u64::from(*hole))
                    .unwrap();
            }
            Kind::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).unwrap(),
            Kind::HardLink(_) if others.is_empty() => continue,
            Kind::HardLink(of) => {
                fs::hard_link(of.get(&others), &path).unwrap();
                continue;
            }
            Kind::Fifo => make_node(&path, FileType::Fifo, (0, 0)),
            Kind::Socket => make_node(&path, FileType::Socket, (0, 0)),
            Kind::Device(major, minor) => make_node(&path, FileType::CharacterDevice, (*major, *minor)),
        }
        if matches!(node.kind, Kind::Directory) {
            &mut directories
        } else {
            &mut others
        }
        .push(path.clone());
        made.push((path, node));
    }
    for (path, node) in made.iter().rev() {
        set_owner(path, node.owner, node.owner / 2);
        if !matches!(node.kind, Kind::Symlink(_)) {
            set_mode(path, node.mode);
        }
        for (number, value) in &node.xattrs {
            set_xattr(path, &format!("trusted.st{number}"), value);
        }
        set_mtime(path, node.mtime.0, node.mtime.1);
    }
}

/// The frame of a part, as it goes over a wire.
fn frame(part: &TreePart) -> (FrameHeader, Vec<u8>) {
    let (kind, offset, payload) = match part {
        TreePart::Entry(entry) => (FrameKind::Entry, 0, entry.encode_to_vec()),
        TreePart::Data { offset, bytes } => (FrameKind::Data, *offset, bytes.clone()),
    };
    (
        FrameHeader {
            kind,
            tree: 3,
            length: payload.len() as u32,
            offset,
        },
        payload,
    )
}

fn data_bytes(part: &TreePart) -> u64 {
    match part {
        TreePart::Entry(_) => 0,
        TreePart::Data { bytes, .. } => bytes.len() as u64,
    }
}

fn part(wire: &[u8; HEADER_BYTES], payload: &[u8]) -> Option<TreePart> {
    let header = FrameHeader::decode(wire).ok()?;
    match header.kind {
        FrameKind::Entry => TreeEntry::decode(payload).ok().map(TreePart::Entry),
        FrameKind::Data => Some(TreePart::Data {
            offset: header.offset,
            bytes: payload.to_vec(),
        }),
        _ => None,
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_tree_survives_the_way_through_frames(nodes in vec(node(), 0..40)) {
        let place = place();
        let (from, to) = (directory(&place, "from"), directory(&place, "to"));
        build(&from, &nodes);
        let (mut sent, mut received) = (TreeDigest::new(), TreeDigest::new());
        let mut reader = TreeReader::open(&from).unwrap();
        let mut writer = writer(&to);
        for read in &mut reader {
            let (header, payload) = frame(&read.unwrap());
            sent.frame(&header, &payload);
            let wire = header.encode();
            received.frame(&FrameHeader::decode(&wire).unwrap(), &payload);
            writer.apply(part(&wire, &payload).unwrap()).unwrap();
        }
        prop_assert_eq!(writer.finish().unwrap(), reader.summary());
        prop_assert_eq!(sent.value(), received.value());
        same_trees(&from, &to);
        prop_assert_eq!(tree_hash(&from).unwrap(), tree_hash(&to).unwrap());
        // To the block on ext4 and btrfs; XFS allocates ahead.
        let again = TreeReader::open(&to).unwrap().map(|read| data_bytes(&read.unwrap())).sum::<u64>();
        let most = reader.summary().bytes + nodes.len() as u64 * (64 << 10);
        prop_assert!(again <= most, "holes were filled: {} bytes became {}", reader.summary().bytes, again);
    }

    #[test]
    fn one_change_anywhere_changes_the_hash(nodes in vec(node(), 1..12), which: prop::sample::Index, what in 0..4u8) {
        let place = place();
        let root = directory(&place, "root");
        build(&root, &nodes);
        let before = tree_hash(&root).unwrap();
        let mut paths: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        prop_assume!(!paths.is_empty());
        let path = which.get(&paths);
        let metadata = fs::symlink_metadata(path).unwrap();
        match what {
            0 => set_mtime(path, metadata.mtime(), (metadata.mtime_nsec() + 1) % 1_000_000_000),
            1 => set_owner(path, metadata.uid() + 1, metadata.gid()),
            2 => set_xattr(path, "trusted.st-changed", b""),
            _ => {
                let time = fs::metadata(&root).unwrap();
                fs::rename(path, root.join("renamed")).unwrap();
                set_mtime(&root, time.mtime(), time.mtime_nsec());
            }
        }
        prop_assert_ne!(tree_hash(&root).unwrap(), before);
    }
}

/// Paths that lead out, back, through links, and sometimes nowhere but down.
fn evil_path(outside: PathBuf) -> impl Strategy<Value = Vec<u8>> {
    let component = prop_oneof![
        20 => "[a-c]",
        2 => Just("..".to_owned()),
        1 => Just(".".to_owned()),
        1 => Just(String::new()),
        2 => Just("outside".to_owned()),
        1 => Just("\0".to_owned()),
        1 => Just("x".repeat(300)),
    ];
    let outside = outside.into_os_string().into_encoded_bytes();
    prop_oneof![
        8 => prop_oneof![6 => vec(component.clone(), 1..2), 3 => vec(component, 0..4)].prop_map(|components| components.join("/").into_bytes()),
        1 => Just(outside.clone()),
        1 => Just([&outside[..], b"/secret"].concat()),
    ]
}

fn evil_entry(outside: PathBuf) -> impl Strategy<Value = TreePart> {
    let xattr = (
        prop_oneof![Just("user.a"), Just("trusted.overlay.redirect"), Just("system.x")],
        vec(any::<u8>(), 0..9),
    )
        .prop_map(|(name, value)| Xattr {
            name: name.into(),
            value,
        });
    let numbers = (
        0..10i32,
        prop_oneof![9 => 0..0o10000u32, 1 => any::<u32>()],
        0..3u32,
        -5..5i64,
        0..20u64,
    );
    (
        evil_path(outside.clone()),
        prop_oneof![
            evil_path(outside.clone()),
            Just(outside.into_os_string().into_encoded_bytes())
        ],
        numbers,
        vec(xattr, 0..2),
    )
        .prop_map(|(path, target, (kind, mode, owner, mtime_s, size), xattrs)| {
            let is_link = kind == EntryKind::Symlink as i32 || kind == EntryKind::Hardlink as i32;
            TreePart::Entry(TreeEntry {
                kind,
                path,
                mode,
                uid: owner,
                gid: owner,
                mtime_s,
                mtime_ns: 0,
                size: if kind == EntryKind::File as i32 { size } else { 0 },
                link_target: if is_link { target } else { Vec::new() },
                device_major: 0,
                device_minor: 0,
                xattrs,
            })
        })
}

fn evil_stream(outside: PathBuf) -> impl Strategy<Value = Vec<TreePart>> {
    let data =
        (0..20u64, vec(any::<u8>(), 0..9)).prop_map(|(offset, bytes)| TreePart::Data { offset, bytes });
    vec(prop_oneof![4 => evil_entry(outside), 1 => data], 0..40)
}

/// Gives the parts to writers until none is left: a refused part ends a tree, and the next begins anew in a new root.
fn feed(place: &Path, parts: Vec<TreePart>) -> usize {
    let mut taken = 0;
    let mut number = 0;
    let mut open = |place: &Path| {
        number += 1;
        let root = place.join("roots").join(number.to_string());
        fs::create_dir(&root).unwrap();
        let mut writer = writer(&root);
        // Each tree has a way out, should anything take it.
        writer.apply(common::symlink_to("c", "../../outside")).unwrap();
        writer
    };
    let mut current = open(place);
    for part in parts {
        match current.apply(part) {
            Ok(()) => taken += 1,
            Err(_) => current = open(place),
        }
    }
    let _ = current.finish();
    taken
}

fn untouched(place: &Path, before: &[String]) {
    let outside = tree_listing(&place.join("outside")).unwrap();
    assert_eq!(outside, before);
    let names: BTreeSet<_> = fs::read_dir(place)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "something was made beside the roots: {names:?}");
}

/// The place is the same for every case, so that paths can name it.
fn with_outside(test: impl Fn(&Path, &[String])) {
    let place = place();
    directory(&place, "roots");
    let outside = directory(&place, "outside");
    fs::write(outside.join("secret"), "untouched").unwrap();
    // Something to find behind a symlink: a way of two components leads to a directory.
    fs::create_dir_all(outside.join("a/b/c")).unwrap();
    let before = tree_listing(&outside).unwrap();
    test(place.path(), &before);
}

#[test]
fn no_stream_of_evil_parts_touches_anything_but_its_root() {
    with_outside(|place, before| {
        let taken = std::cell::Cell::new(0);
        let config = ProptestConfig {
            cases: 600,
            ..config()
        };
        let mut runner = proptest::test_runner::TestRunner::new(config);
        let result = runner.run(&evil_stream(place.join("outside")), |parts| {
            taken.set(taken.get() + feed(place, parts));
            untouched(place, before);
            fs::remove_dir_all(place.join("roots")).unwrap();
            fs::create_dir(place.join("roots")).unwrap();
            Ok(())
        });
        assert!(result.is_ok(), "{result:?}");
        assert!(
            taken.get() > 1000,
            "only {} parts were good enough to be taken",
            taken.get()
        );
    });
}

#[test]
fn no_bit_flipped_in_a_good_stream_touches_anything_but_its_root() {
    with_outside(|place, before| {
        let from = self::common::place();
        common::fill_with_everything(from.path());
        fs::remove_file(from.path().join("large")).unwrap();
        let frames: Vec<_> = TreeReader::open(from.path())
            .unwrap()
            .map(|read| frame(&read.unwrap()))
            .collect();
        let flips = vec(
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..8u8),
            1..4,
        );
        let mut runner = proptest::test_runner::TestRunner::new(config());
        let result = runner.run(&flips, |flips| {
            let mut wires: Vec<_> = frames
                .iter()
                .map(|(header, payload)| [&header.encode()[..], payload].concat())
                .collect();
            for (frame, byte, bit) in flips {
                let wire = &mut wires[frame.index(frames.len())];
                let byte = byte.index(wire.len());
                wire[byte] ^= 1 << bit;
            }
            let parts = wires.iter().filter_map(|wire| {
                let (header, payload) = wire.split_first_chunk()?;
                part(header, payload)
            });
            feed(place, parts.collect());
            untouched(place, before);
            fs::remove_dir_all(place.join("roots")).unwrap();
            fs::create_dir(place.join("roots")).unwrap();
            Ok(())
        });
        assert!(result.is_ok(), "{result:?}");
    });
}
