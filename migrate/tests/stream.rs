//! A bulk stream as a network delivers it: in small pieces, cut short, damaged or made up.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;
use tranship_migrate::error::HostError;
use tranship_migrate::transport::{TransportError, TreeSink, receive_trees, send_end, send_hello, send_tree};
use tranship_migrate::trees::{Tree, TreeName, TreeReport};
use tranship_proto::frame::{FrameHeader, FrameKind, HEADER_BYTES};
use tranship_proto::v1::StreamHello;
use tranship_storage_drivers::digest::tree_hash;

struct Below(PathBuf);

impl TreeSink for Below {
    fn open(&self, name: &TreeName) -> Result<OwnedFd, HostError> {
        let path = self.0.join(name.to_string());
        std::fs::create_dir(&path).map_err(|error| HostError::new("make a tree", error))?;
        Ok(std::fs::File::open(path).unwrap().into())
    }

    fn close(&self, _report: &TreeReport) -> Result<(), HostError> {
        Ok(())
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn sample(dir: &Path) -> Tree {
    let path = dir.join("sample");
    std::fs::create_dir_all(path.join("a/b")).unwrap();
    std::fs::write(path.join("a/b/small"), b"content").unwrap();
    std::fs::write(path.join("large"), vec![3; 700_000]).unwrap();
    std::os::unix::fs::symlink("a/b/small", path.join("link")).unwrap();
    std::fs::hard_link(path.join("large"), path.join("a/large-too")).unwrap();
    Tree {
        name: TreeName::Rootfs,
        path,
    }
}

/// The bytes of a stream that holds one tree.
fn stream_of(tree: &Tree) -> Vec<u8> {
    let mut bytes = Vec::new();
    runtime().block_on(async {
        send_tree(&mut bytes, 0, tree).await.unwrap();
        send_end(&mut bytes).await.unwrap();
    });
    bytes
}

fn receive(bytes: &[u8]) -> (Result<Vec<TreeReport>, TransportError>, TempDir) {
    let dir = TempDir::new().unwrap();
    let sink = Arc::new(Below(dir.path().to_owned()));
    let mut stream = bytes;
    let result = runtime().block_on(receive_trees(&mut stream, sink));
    (result, dir)
}

#[test]
fn a_tree_arrives_as_it_was_sent() {
    let dir = TempDir::new().unwrap();
    let tree = sample(dir.path());
    let (result, arrived) = receive(&stream_of(&tree));
    assert_eq!(result.unwrap()[0].bytes, 700_007);
    assert_eq!(
        tree_hash(&tree.path).unwrap(),
        tree_hash(&arrived.path().join("rootfs")).unwrap()
    );
}

#[test]
fn bytes_that_arrive_one_at_a_time_make_the_same_tree() {
    let dir = TempDir::new().unwrap();
    let tree = sample(dir.path());
    let bytes = stream_of(&tree);
    let arrived = TempDir::new().unwrap();
    let sink = Arc::new(Below(arrived.path().to_owned()));
    runtime().block_on(async {
        let (mut near, mut far) = tokio::io::duplex(1);
        let sending = tokio::spawn(async move {
            tokio::io::AsyncWriteExt::write_all(&mut near, &bytes)
                .await
                .unwrap();
        });
        receive_trees(&mut far, sink).await.unwrap();
        sending.await.unwrap();
    });
    assert_eq!(
        tree_hash(&tree.path).unwrap(),
        tree_hash(&arrived.path().join("rootfs")).unwrap()
    );
}

#[test]
fn a_stream_cut_at_any_point_is_an_error() {
    let dir = TempDir::new().unwrap();
    let bytes = stream_of(&sample(dir.path()));
    for end in (0..bytes.len())
        .step_by(4_099)
        .chain(bytes.len() - 40..bytes.len())
    {
        let (result, _dir) = receive(&bytes[..end]);
        assert!(
            matches!(result, Err(TransportError::Cut(_))),
            "cut at {end}: {result:?}"
        );
    }
}

#[test]
fn a_flipped_bit_anywhere_is_an_error() {
    let dir = TempDir::new().unwrap();
    let bytes = stream_of(&sample(dir.path()));
    for at in (0..bytes.len()).step_by(6_007) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        let (result, _dir) = receive(&damaged);
        assert!(
            result.is_err(),
            "a flipped bit at {at} of {} went unnoticed",
            bytes.len()
        );
    }
}

#[test]
fn a_tree_nobody_reserved_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut tree = sample(dir.path());
    tree.name = TreeName::Volume("x".parse().unwrap());
    let bytes = stream_of(&tree);
    let twice = [&bytes[..bytes.len() - HEADER_BYTES], &bytes[..]].concat();
    assert!(matches!(receive(&twice).0, Err(TransportError::Place { .. })));
}

#[test]
fn a_greeting_has_these_bytes() {
    let mut bytes = Vec::new();
    let hello = StreamHello {
        page_stream: 0,
        migration_id: "M".to_owned(),
        data_token: vec![1, 2],
    };
    runtime().block_on(send_hello(&mut bytes, &hello)).unwrap();
    assert_eq!(bytes[..8], [1, 0, 0, 0, 7, 0, 0, 0]);
    assert_eq!(bytes[HEADER_BYTES..], [10, 1, b'M', 18, 2, 1, 2]);
}

#[test]
fn an_entry_in_the_middle_of_another_tree_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut bytes = stream_of(&sample(dir.path()));
    let begin = FrameHeader::decode(bytes[..HEADER_BYTES].try_into().unwrap()).unwrap();
    let second = HEADER_BYTES + begin.length as usize;
    bytes[second + 2] = 1;
    assert!(matches!(
        receive(&bytes).0,
        Err(TransportError::Order {
            got: FrameKind::Entry,
            ..
        })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn made_up_bytes_are_refused_and_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(receive(&bytes).0.is_err());
    }

    #[test]
    fn made_up_frames_are_refused_or_end_well(frames in proptest::collection::vec(
        (1_u8..7, 0_u16..2, proptest::collection::vec(any::<u8>(), 0..40), 0_u64..100), 0..12)
    ) {
        let mut bytes = Vec::new();
        for (kind, tree, payload, offset) in frames {
            bytes.extend_from_slice(&[kind, 0]);
            bytes.extend_from_slice(&tree.to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&payload);
        }
        if let (Ok(reports), _dir) = receive(&bytes) {
            prop_assert!(reports.is_empty(), "a tree with a made-up digest was taken");
        }
    }
}
