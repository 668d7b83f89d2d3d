//! Archives that somebody made to do harm, or that were damaged on the way. Each is refused with a reason, and nothing of
//! it is left (which [`Store::refusal`] checks).

use std::fs;

use proptest::prelude::*;
use tar::EntryType;

use super::Store;
use super::archives::{Oci, Tar, docker, gzip, zstd};

fn refusal(archive: &[u8]) -> String {
    Store::new().refusal(archive)
}

fn assert_refused(archive: &[u8], reason: &str) {
    let error = refusal(archive);
    assert!(error.contains(reason), "{error:?} does not say {reason:?}");
}

#[test]
fn a_path_with_dots_does_not_lead_out() {
    for path in ["../evil", "a/../../evil", "..", "./..", "a/..", "/../evil"] {
        assert_refused(&Tar::new().file(path, "x").end(), "leads out of the layer");
    }
}

#[test]
fn an_absolute_path_is_one_of_the_layers() {
    let store = Store::new();
    let tree = store.tree(&store.import(&Tar::new().file("/im-evil/x", "x").end()).unwrap());
    assert!(tree.join("im-evil/x").exists() && !std::path::Path::new("/im-evil").exists());
}

#[test]
fn a_link_does_not_lead_out() {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let absolute = outside.path().to_str().unwrap();
    let relative = format!("../../../../../../../..{absolute}");
    for target in [absolute, &relative, "..", "/", "/proc/self/root"] {
        let link = || Tar::new().link(EntryType::Symlink, "way", target);
        assert_refused(
            &link().file("way/evil", "x").end(),
            "leads out of the layer through a link",
        );
        assert_refused(
            &link().dir("way/evil").end(),
            "leads out of the layer through a link",
        );
        assert_refused(
            &link().file("way/.wh..wh..opq", "").end(),
            "leads out of the layer through a link",
        );
        assert_refused(
            &link().link(EntryType::Link, "hard", "way/passwd").end(),
            "leads out of the layer through a link",
        );
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert_refused(
        &Tar::new()
            .link(EntryType::Symlink, "way", "nowhere")
            .file("way/x", "x")
            .end(),
        "leads through a link to nothing",
    );
    assert_refused(
        &Tar::new()
            .link(EntryType::Symlink, "a", "b")
            .link(EntryType::Symlink, "b", "a")
            .file("a/x", "")
            .end(),
        "leads through too many links",
    );
}

#[test]
fn a_file_replaces_a_link_and_is_not_written_through_it() {
    let outside = tempfile::NamedTempFile::new_in("/var/tmp").unwrap();
    let target = outside.path().to_str().unwrap();
    let store = Store::new();
    let archive = Tar::new()
        .link(EntryType::Symlink, "f", target)
        .file("f", "evil")
        .end();
    let tree = store.tree(&store.import(&archive).unwrap());
    assert_eq!(fs::read_to_string(tree.join("f")).unwrap(), "evil");
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "");

    let mode = outside.as_file().metadata().unwrap().permissions();
    let archive = Tar::new().entry(EntryType::Symlink, "f", target, &[], |header| {
        header.set_mode(0o777);
        header.set_uid(1000);
    });
    store.import(&archive.end()).unwrap();
    let now = outside.as_file().metadata().unwrap();
    assert_eq!(
        (now.permissions(), std::os::unix::fs::MetadataExt::uid(&now)),
        (mode, 0)
    );
}

#[test]
fn a_hard_link_has_its_target_in_the_layer() {
    for (target, reason) in [
        ("../../../../etc/passwd", "leads out of the layer"),
        ("/etc/passwd", "which the layer does not have yet"),
        ("", "a link to nothing"),
        ("hard", "which the layer does not have yet"),
    ] {
        assert_refused(&Tar::new().link(EntryType::Link, "hard", target).end(), reason);
    }
    assert_refused(
        &Tar::new().dir("d").link(EntryType::Link, "hard", "d").end(),
        "make the hard link",
    );
}

#[test]
fn whiteouts_of_nothing_and_attributes_of_the_overlay_are_refused() {
    for name in [".wh.", "d/.wh..", "d/.wh..."] {
        assert_refused(&Tar::new().file(name, "").end(), "a whiteout of nothing");
    }
    for name in [
        "trusted.overlay.redirect",
        "trusted.overlay.opaque",
        "trusted.overlay.metacopy",
    ] {
        let key = format!("SCHILY.xattr.{name}");
        let archive = Tar::new().pax(&[(&key, b"/etc")]).dir("d").end();
        assert_refused(&archive, "belongs to the overlay file system");
    }
}

#[test]
fn numbers_that_are_none_are_refused_before_they_are_used() {
    let with =
        |change: fn(&mut tar::Header)| Tar::new().entry(EntryType::Regular, "f", "", &[], change).end();
    assert_refused(
        &with(|header| header.set_uid(u64::from(u32::MAX))),
        "an owner that is no id",
    );
    assert_refused(&with(|header| header.set_gid(1 << 40)), "an owner that is no id");
    assert_refused(
        &with(|header| header.set_mtime(u64::MAX)),
        "a time that is no number",
    );
    assert_refused(
        &with(|header| header.set_entry_type(EntryType::new(b'V'))),
        "of a kind ('V')",
    );
    for size in [1 << 20, 1 << 60, u64::MAX] {
        let mut archive = Tar::new().entry(EntryType::Regular, "f", "", b"xy", |_| {}).end();
        let mut header = tar::Header::new_gnu();
        header.as_mut_bytes().copy_from_slice(&archive[..512]);
        header.set_size(size);
        header.set_cksum();
        archive[..512].copy_from_slice(header.as_bytes());
        let error = refusal(&archive);
        assert!(
            error.contains("ends within \"f\"") || error.contains("size overflow"),
            "{size}: {error}"
        );
    }
}

#[test]
fn headers_without_an_end_are_not_read_into_memory() {
    let name = "n".repeat(3 << 20);
    let archive = Tar::new()
        .pax(&[("comment", name.as_bytes())])
        .file("f", "x")
        .end();
    assert_refused(&archive, "a header of more than 2097152 bytes");
    let member = Tar::new()
        .file("oci-layout", "{}")
        .pax(&[("comment", name.as_bytes())]);
    assert_refused(
        &member.file("index.json", "{}").end(),
        "a header of more than 2097152 bytes",
    );
    let path = format!("{}x", "d/".repeat(2100));
    let archive = Tar::new().pax(&[("path", path.as_bytes())]).file("f", "x").end();
    assert_refused(&archive, "is longer than any path");
}

#[test]
fn devices_are_made_and_harm_nobody() {
    let store = Store::new();
    let mut tar = Tar::new();
    for minor in 0..200 {
        tar = tar.entry(EntryType::Block, &format!("dev/disk{minor}"), "", &[], |header| {
            header.set_device_major(8).unwrap();
            header.set_device_minor(minor).unwrap();
        });
    }
    let tree = store.tree(&store.import(&tar.end()).unwrap());
    assert_eq!(fs::read_dir(tree.join("dev")).unwrap().count(), 200);
}

#[test]
fn what_is_no_archive_is_refused() {
    assert_refused(&b"hello world, ".repeat(400), "no tar archive, or is damaged");
    assert_refused(b"\xfd7zXZ\0rest", "compressed with xz: use gzip, zstd or none");
    assert_refused(b"BZh91AY", "compressed with bzip2");
    assert_refused(b"\x1f\x8bgarbage", "cannot be read to its end");
    assert_refused(b"\x28\xb5\x2f\xfdgarbage", "cannot be read to its end");
}

#[test]
fn an_archive_cut_off_anywhere_is_an_error() {
    let layers = vec![
        Tar::new()
            .dir("d")
            .file("d/f", vec![7; 3000])
            .link(EntryType::Symlink, "l", "d")
            .end(),
    ];
    let whole = [
        layers[0].clone(),
        Oci::of(&layers, gzip).end(),
        docker(&layers, &["a:b"]),
    ];
    let store = Store::new();
    for (number, archive) in whole.iter().enumerate() {
        // The last block of zeroes is there for tapes; without it nothing is missing.
        for cut in (0..archive.len() - 1024)
            .step_by(509)
            .chain((0..archive.len() - 1024).step_by(512))
        {
            let error = store.refusal(&archive[..cut]);
            assert!(!error.is_empty(), "archive {number} cut at {cut}");
        }
    }
    for packed in [gzip(&layers[0]), zstd(&layers[0])] {
        for cut in 1..packed.len() {
            store.refusal(&packed[..cut]);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_damage_leaves_anything_that_is_not_what_it_is_called(at in 0_usize..9000, bits in 1_u8..) {
        let layers = vec![Tar::new().dir("d").file("d/f", vec![7; 3000]).end()];
        let mut archive = Oci::of(&layers, |bytes| bytes.to_vec()).end();
        let at = at % archive.len();
        archive[at] ^= bits;
        let store = Store::new();
        if let Ok(image) = store.import(&archive) {
            prop_assert_eq!(image.layers, vec![format!("sha256:{}", super::archives::hex(&layers[0]))]);
        }
    }
}
