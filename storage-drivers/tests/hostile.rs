//! What a peer must not be able to do with a stream, one attempt a test.
//!
//! Each attempt must be refused for its own reason, and the directory beside the root must be as it was.

#![allow(clippy::unwrap_used, reason = "only tests use this")]

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use common::{
    data, directory, entry, file, hard_link, place, set_mtime, set_xattr, symlink_to, write_all, writer,
};
use rustix::fs::FileType;
use tempfile::TempDir;
use tranship_proto::limits::{MAX_DATA_BYTES, MAX_FILE_BYTES};
use tranship_proto::v1::{EntryKind, TreeEntry, Xattr};
use tranship_storage_drivers::digest::tree_listing;
use tranship_storage_drivers::tree::{Refusal, TreeError, TreePart, TreeReader};

/// A root to write into, and a directory beside it that must stay as it is.
struct Bench {
    place: TempDir,
    root: PathBuf,
    before: Vec<String>,
}

impl Bench {
    fn new() -> Self {
        let place = place();
        let (root, outside) = (directory(&place, "root"), directory(&place, "outside"));
        fs::write(outside.join("secret"), "untouched").unwrap();
        fs::create_dir_all(outside.join("a/b")).unwrap();
        fs::write(outside.join("a/b/secret"), "untouched").unwrap();
        let before = tree_listing(&outside).unwrap();
        Self { place, root, before }
    }

    fn outside(&self) -> PathBuf {
        self.place.path().join("outside")
    }

    fn outside_is_untouched(&self) {
        assert_eq!(tree_listing(&self.outside()).unwrap(), self.before);
        assert_eq!(
            fs::read_dir(self.place.path()).unwrap().count(),
            2,
            "something was made beside the root"
        );
    }

    /// The last part is refused for `reason`, all before it are taken.
    fn refuses(&self, parts: impl IntoIterator<Item = TreePart>, reason: Refusal) {
        let mut parts: Vec<_> = parts.into_iter().collect();
        let last = parts.pop().unwrap();
        let mut writer = writer(&self.root);
        for part in parts {
            writer.apply(part).unwrap();
        }
        match writer.apply(last) {
            Err(TreeError::Refused { source, .. }) => assert_eq!(source, reason),
            other => panic!("not refused for {reason:?}: {other:?}"),
        }
        assert!(matches!(writer.apply(file("later", 0)), Err(TreeError::Failed)));
        assert!(matches!(writer.finish(), Err(TreeError::Failed)));
        self.outside_is_untouched();
    }
}

fn folder(path: &str) -> TreePart {
    entry(EntryKind::Directory, path)
}

fn changed(part: TreePart, change: impl FnOnce(&mut TreeEntry)) -> TreePart {
    match part {
        TreePart::Entry(mut entry) => {
            change(&mut entry);
            TreePart::Entry(entry)
        }
        data => data,
    }
}

#[test]
fn a_symlink_is_not_written_through() {
    let bench = Bench::new();
    let outside = bench.outside();
    let link = || symlink_to("way", outside.to_str().unwrap());
    bench.refuses([link(), file("way/new", 0)], Refusal::NoParent);
    let bench = Bench::new();
    bench.refuses(
        [symlink_to("way", "../outside"), folder("way/new")],
        Refusal::NoParent,
    );
    let bench = Bench::new();
    bench.refuses(
        [symlink_to("way", "../outside"), file("way", 0)],
        Refusal::Duplicate,
    );
    let bench = Bench::new();
    bench.refuses(
        [symlink_to("file", "../outside/secret"), file("file", 1)],
        Refusal::Duplicate,
    );
}

#[test]
fn a_symlink_on_the_way_is_not_followed() {
    let way = || symlink_to("way", "../outside");
    Bench::new().refuses([way(), file("way/a/new", 0)], Refusal::NoParent);
    Bench::new().refuses([way(), file("way/a/b/new", 0)], Refusal::NoParent);
    Bench::new().refuses(
        [way(), folder("c"), hard_link("c/new", "way/a/secret")],
        Refusal::LinkTarget,
    );
    Bench::new().refuses([way(), hard_link("new", "way/a/b/secret")], Refusal::LinkTarget);
}

#[test]
fn a_path_does_not_climb() {
    for path in ["../outside/new", "..", "a/../../outside/new", "./new"] {
        Bench::new().refuses([folder("a"), file(path, 0)], Refusal::DotComponent);
    }
}

#[test]
fn a_path_is_relative() {
    let bench = Bench::new();
    let path = bench.outside().join("new");
    bench.refuses([file(path.to_str().unwrap(), 0)], Refusal::Absolute);
    Bench::new().refuses([file("/", 0)], Refusal::Absolute);
}

#[test]
fn a_path_has_no_empty_component_and_no_nul() {
    Bench::new().refuses([folder("a"), file("a//b", 0)], Refusal::EmptyComponent);
    Bench::new().refuses([folder("a"), file("a/", 0)], Refusal::EmptyComponent);
    Bench::new().refuses([file("a\0b", 0)], Refusal::Nul);
}

#[test]
fn a_name_has_an_end() {
    Bench::new().refuses([file(&"x".repeat(256), 0)], Refusal::TooLong);
    Bench::new().refuses([file(&"x/".repeat(3000), 0)], Refusal::TooLong);
}

#[test]
fn a_hard_link_does_not_reach_out() {
    let bench = Bench::new();
    let secret = bench.outside().join("secret");
    bench.refuses([hard_link("new", secret.to_str().unwrap())], Refusal::Absolute);
    Bench::new().refuses([hard_link("new", "../outside/secret")], Refusal::DotComponent);
    Bench::new().refuses(
        [symlink_to("way", "../outside"), hard_link("new", "way/secret")],
        Refusal::LinkTarget,
    );
    Bench::new().refuses([hard_link("new", "not sent")], Refusal::LinkTarget);
    Bench::new().refuses([hard_link("new", "")], Refusal::EmptyComponent);
    Bench::new().refuses([folder("a"), hard_link("a/b", "a")], Refusal::LinkTarget);
}

#[test]
fn a_hard_link_to_a_symlink_is_a_link_to_the_symlink() {
    let bench = Bench::new();
    write_all(
        &bench.root,
        [symlink_to("way", "../outside/secret"), hard_link("new", "way")],
    )
    .unwrap();
    assert!(
        fs::symlink_metadata(bench.root.join("new"))
            .unwrap()
            .file_type()
            .is_symlink()
    );
    assert_eq!(fs::metadata(bench.outside().join("secret")).unwrap().nlink(), 1);
}

#[test]
fn data_belong_to_the_last_file() {
    Bench::new().refuses([data(0, b"x")], Refusal::DataWithoutFile);
    Bench::new().refuses(
        [file("a", 1), folder("b"), data(0, b"x")],
        Refusal::DataWithoutFile,
    );
    Bench::new().refuses(
        [symlink_to("a", "../outside/secret"), data(0, b"x")],
        Refusal::DataWithoutFile,
    );
    Bench::new().refuses(
        [file("a", 1), hard_link("b", "a"), data(0, b"x")],
        Refusal::DataWithoutFile,
    );
    Bench::new().refuses(
        [entry(EntryKind::Fifo, "a"), data(0, b"x")],
        Refusal::DataWithoutFile,
    );
}

#[test]
fn data_keep_to_the_size_and_the_order() {
    Bench::new().refuses(
        [file("a", 1), data(0, b"xy")],
        Refusal::DataBeyondEnd { end: 2, size: 1 },
    );
    Bench::new().refuses(
        [file("a", 1), data(u64::MAX, b"x")],
        Refusal::DataBeyondEnd {
            end: u64::MAX,
            size: 1,
        },
    );
    Bench::new().refuses(
        [file("a", 9), data(4, b"xy"), data(5, b"z")],
        Refusal::DataOrder(5),
    );
    Bench::new().refuses(
        [file("a", 9), data(4, b"xy"), data(0, b"z")],
        Refusal::DataOrder(0),
    );
    Bench::new().refuses([file("a", 9), data(0, b"")], Refusal::DataLength(0));
    let long = MAX_DATA_BYTES as usize + 1;
    Bench::new().refuses(
        [file("a", 1 << 30), data(0, &vec![1; long])],
        Refusal::DataLength(long),
    );
    Bench::new().refuses(
        [file("a", MAX_FILE_BYTES + 1)],
        Refusal::FileSize(MAX_FILE_BYTES + 1),
    );
}

#[test]
fn a_size_alone_takes_no_room() {
    let bench = Bench::new();
    write_all(&bench.root, [file("a", 1 << 40)]).unwrap();
    let made = fs::metadata(bench.root.join("a")).unwrap();
    assert_eq!((made.len(), made.blocks()), (1 << 40, 0));
}

#[test]
fn a_path_comes_once() {
    Bench::new().refuses([file("a", 0), file("a", 0)], Refusal::Duplicate);
    Bench::new().refuses([folder("a"), folder("a")], Refusal::Duplicate);
    Bench::new().refuses([folder("a"), symlink_to("a", "b")], Refusal::Duplicate);
    Bench::new().refuses(
        [file("a", 0), file("b", 0), hard_link("b", "a")],
        Refusal::Duplicate,
    );
    Bench::new().refuses(
        [file("a", 0), entry(EntryKind::CharDevice, "a")],
        Refusal::Duplicate,
    );
}

#[test]
fn a_parent_comes_first_and_is_a_directory() {
    Bench::new().refuses([file("a/b", 0)], Refusal::NoParent);
    Bench::new().refuses([file("a", 0), file("a/b", 0)], Refusal::NoParent);
    Bench::new().refuses([folder("a"), file("a/b/c", 0)], Refusal::NoParent);
}

#[test]
fn the_root_is_a_directory_and_comes_first() {
    Bench::new().refuses([file("", 0)], Refusal::RootNotDirectory);
    Bench::new().refuses([symlink_to("", "../outside")], Refusal::RootNotDirectory);
    Bench::new().refuses([folder("a"), folder("")], Refusal::RootNotFirst);
    Bench::new().refuses([folder(""), folder("")], Refusal::RootNotFirst);
}

#[test]
fn a_root_with_something_in_it_is_not_written_into() {
    let bench = Bench::new();
    fs::write(bench.root.join("there"), "").unwrap();
    let root = fs::File::open(&bench.root).unwrap();
    let refused = tranship_storage_drivers::tree::TreeWriter::create(root.into());
    assert!(matches!(refused.map(|_| ()), Err(TreeError::Io { .. })));
}

#[test]
fn fields_out_of_range_are_refused() {
    let with = |change: fn(&mut TreeEntry)| [changed(file("a", 0), change)];
    Bench::new().refuses(with(|e| e.kind = 77), Refusal::Kind(77));
    Bench::new().refuses(with(|e| e.kind = 0), Refusal::Kind(0));
    Bench::new().refuses(with(|e| e.mode = 0o100_644), Refusal::Mode(0o100_644));
    Bench::new().refuses(with(|e| e.uid = u32::MAX), Refusal::Owner);
    Bench::new().refuses(with(|e| e.gid = u32::MAX), Refusal::Owner);
    Bench::new().refuses(with(|e| e.mtime_ns = 1_000_000_000), Refusal::Time(1_000_000_000));
    Bench::new().refuses(with(|e| e.device_major = 1), Refusal::StrayField);
    Bench::new().refuses(with(|e| e.link_target = b"b".to_vec()), Refusal::StrayField);
    let size_of_a_directory = changed(folder("a"), |e| e.size = 1);
    Bench::new().refuses([size_of_a_directory], Refusal::StrayField);
    let device = changed(entry(EntryKind::BlockDevice, "a"), |e| e.device_major = 4096);
    Bench::new().refuses(
        [device],
        Refusal::Device {
            major: 4096,
            minor: 0,
        },
    );
    Bench::new().refuses([symlink_to("a", "")], Refusal::SymlinkTarget);
    Bench::new().refuses([symlink_to("a", &"x".repeat(4096))], Refusal::SymlinkTarget);
    Bench::new().refuses([symlink_to("a", "x\0y")], Refusal::Nul);
}

#[test]
fn attributes_that_do_not_travel_are_refused() {
    let with = |name: &[u8], value: Vec<u8>| {
        let xattr = Xattr {
            name: name.to_vec(),
            value,
        };
        [changed(file("a", 0), |entry| entry.xattrs.push(xattr))]
    };
    for name in [
        &b"trusted.overlay.origin"[..],
        b"system.x",
        b"",
        b"user.",
        b"user.a\0b",
    ] {
        Bench::new().refuses(with(name, vec![1]), Refusal::Xattr);
    }
    Bench::new().refuses(with(b"user.large", vec![0; (64 << 10) + 1]), Refusal::Xattr);
}

#[test]
fn a_read_only_directory_is_filled_and_keeps_its_time() {
    let bench = Bench::new();
    let closed = changed(folder("closed"), |entry| {
        (entry.mode, entry.mtime_s) = (0o555, 1000)
    });
    let parts = [
        folder("open"),
        closed,
        file("closed/one", 0),
        file("open/two", 0),
        file("closed/three", 0),
    ];
    write_all(&bench.root, parts).unwrap();
    let closed = fs::metadata(bench.root.join("closed")).unwrap();
    assert_eq!((closed.mode() & 0o7777, closed.mtime()), (0o555, 1000));
    assert_eq!(fs::read_dir(bench.root.join("closed")).unwrap().count(), 2);
}

#[test]
fn a_default_access_list_is_not_inherited_by_what_the_stream_describes() {
    let bench = Bench::new();
    let acl = Xattr {
        name: b"system.posix_acl_default".to_vec(),
        value: common::acl(),
    };
    let inherits = changed(folder("inherits"), |entry| entry.xattrs.push(acl));
    let parts = [
        inherits,
        folder("inherits/a"),
        folder("b"),
        file("inherits/c", 0),
        folder("inherits/a/d"),
    ];
    write_all(&bench.root, parts).unwrap();
    let listing = tree_listing(&bench.root).unwrap();
    let with_lists: Vec<_> = listing.iter().filter(|line| line.contains("posix_acl")).collect();
    assert!(
        matches!(&with_lists[..], [only] if only.starts_with("inherits mode")),
        "{with_lists:?}"
    );
}

#[test]
fn attributes_of_the_root_are_those_of_its_entry() {
    let bench = Bench::new();
    set_xattr(&bench.root, "user.before", b"x");
    set_mtime(&bench.root, 5, 5);
    let root = changed(folder(""), |entry| {
        entry.xattrs.push(Xattr {
            name: b"user.sent".to_vec(),
            value: vec![1],
        })
    });
    write_all(&bench.root, [root]).unwrap();
    let line = tree_listing(&bench.root).unwrap().remove(0);
    assert!(
        line.contains("user.sent") && !line.contains("user.before"),
        "{line}"
    );
}

#[test]
fn a_device_made_by_the_stream_is_not_opened() {
    // Opening a fifo without a reader would wait for ever; the writer only names it.
    let bench = Bench::new();
    let fifo = changed(entry(EntryKind::Fifo, "fifo"), |entry| entry.mode = 0o600);
    write_all(&bench.root, [fifo, hard_link("again", "fifo")]).unwrap();
    assert!(
        fs::symlink_metadata(bench.root.join("again"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
}

#[test]
fn a_mount_inside_the_tree_stops_the_reader() {
    let bench = Bench::new();
    let mounted = bench.root.join("mounted");
    fs::create_dir(&mounted).unwrap();
    rustix::mount::mount(
        "st-tmpfs",
        &mounted,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    let last = TreeReader::open(&bench.root).unwrap().last();
    rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(
        matches!(&last, Some(Err(TreeError::OtherFileSystem { path })) if path.ends_with("mounted")),
        "{last:?}"
    );
}

#[test]
fn a_file_cut_while_it_is_read_is_an_error_that_names_it() {
    let bench = Bench::new();
    fs::write(bench.root.join("file"), vec![1; 3 << 20]).unwrap();
    let mut reader = TreeReader::open(&bench.root).unwrap();
    let first: Vec<_> = reader.by_ref().take(3).map(Result::unwrap).collect();
    assert_eq!(first.len(), 3);
    fs::write(bench.root.join("file"), b"short").unwrap();
    let error = reader.next().unwrap().unwrap_err();
    assert!(
        matches!(&error, TreeError::Changed { path } if path.ends_with("file")),
        "{error:?}"
    );
    assert!(reader.next().is_none());
}

#[test]
fn a_reader_leaves_no_trace_in_access_times() {
    let bench = Bench::new();
    fs::write(bench.root.join("file"), "x").unwrap();
    set_mtime(&bench.root.join("file"), 1000, 0);
    assert_eq!(
        TreeReader::open(&bench.root)
            .unwrap()
            .filter(Result::is_ok)
            .count(),
        3
    );
    assert_eq!(fs::metadata(bench.root.join("file")).unwrap().atime(), 1000);
}

#[test]
fn a_node_that_cannot_be_opened_is_read_all_the_same() {
    let bench = Bench::new();
    common::make_node(
        &bench.root.join("none"),
        FileType::CharacterDevice,
        (511, 1 << 17),
    );
    let parts: Vec<_> = TreeReader::open(&bench.root)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert!(matches!(&parts[1], TreePart::Entry(e) if (e.device_major, e.device_minor) == (511, 1 << 17)));
}
