//! What is moved: named trees of files. Their names travel in [`TreeBegin`](tranship_proto::v1::TreeBegin), and the
//! digests of all of them together name the one thing that may be resumed.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use tranship_proto::ids::{Digest, Name};

/// The name of a tree within a migration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TreeName {
    /// CRIU's images: the process state, and with stop and copy the memory too.
    Images,
    /// Images of a pre-dump: memory that was written since the round before.
    Round(u32),
    /// The container's writable layer.
    Rootfs,
    /// What the container has written to its standard output and error so far.
    Log,
    /// A volume.
    Volume(Name),
    /// A read-only layer of the image.
    Layer(Digest),
    /// Pages of memory, which are no files and have streams of their own.
    Memory,
}

/// A text that names no tree.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("no tree is called {0:?}")]
pub struct UnknownTree(pub String);

impl fmt::Display for TreeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Images => f.write_str("images"),
            Self::Round(number) => write!(f, "round:{number}"),
            Self::Rootfs => f.write_str("rootfs"),
            Self::Log => f.write_str("log"),
            Self::Volume(name) => write!(f, "volume:{name}"),
            Self::Layer(digest) => write!(f, "layer:{digest}"),
            Self::Memory => f.write_str("memory"),
        }
    }
}

impl FromStr for TreeName {
    type Err = UnknownTree;

    fn from_str(text: &str) -> Result<Self, UnknownTree> {
        let unknown = || UnknownTree(text.chars().take(100).collect());
        match text.split_once(':') {
            None if text == "images" => Ok(Self::Images),
            None if text == "rootfs" => Ok(Self::Rootfs),
            None if text == "log" => Ok(Self::Log),
            Some(("volume", name)) => name.parse().map(Self::Volume).map_err(|_| unknown()),
            Some(("round", number)) => number
                .parse()
                .ok()
                .filter(|round: &u32| round.to_string() == number)
                .map(Self::Round)
                .ok_or_else(unknown),
            Some(("layer", digest)) => digest.parse().map(Self::Layer).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

/// A tree at the source.
#[derive(Clone, Debug)]
pub struct Tree {
    /// Its name on the wire.
    pub name: TreeName,
    /// The directory it is read from.
    pub path: PathBuf,
}

/// What went over the wire for one tree, as both ends counted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeReport {
    /// Which tree.
    pub name: TreeName,
    /// Directories, files, links and so on.
    pub entries: u64,
    /// Bytes of file content; holes do not count.
    pub bytes: u64,
    /// BLAKE3 over everything sent for it.
    pub digest: [u8; 32],
}

/// The digest that names a checkpoint: BLAKE3 over each tree's name, a zero byte and its digest, in the order of the
/// names. Equal at both ends, or nothing is resumed.
#[must_use]
pub fn checkpoint_digest(trees: &[TreeReport]) -> [u8; 32] {
    let mut sorted: Vec<&TreeReport> = trees.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let mut hasher = blake3::Hasher::new();
    for tree in sorted {
        hasher.update(tree.name.to_string().as_bytes());
        hasher.update(&[0]);
        hasher.update(&tree.digest);
    }
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(name: &str, byte: u8) -> TreeReport {
        TreeReport {
            name: name.parse().unwrap(),
            entries: 1,
            bytes: 1,
            digest: [byte; 32],
        }
    }

    #[test]
    fn every_name_reads_back_as_it_was_written() {
        let layer = format!("layer:sha256:{}", "ab".repeat(32));
        for text in [
            "images",
            "round:0",
            "round:12",
            "rootfs",
            "log",
            "volume:data",
            layer.as_str(),
        ] {
            assert_eq!(text.parse::<TreeName>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_name_that_could_lead_elsewhere_is_refused() {
        for text in [
            "",
            "volume:",
            "volume:../x",
            "layer:x",
            "images:1",
            "round:",
            "round:01",
            "round:+1",
            "round:-1",
            "round:4294967296",
            "etc",
            "volume:a/b",
        ] {
            assert!(text.parse::<TreeName>().is_err(), "{text:?} was taken for a tree");
        }
    }

    #[test]
    fn the_order_of_arrival_does_not_change_the_checkpoint_but_any_byte_does() {
        let there = checkpoint_digest(&[report("images", 1), report("rootfs", 2), report("volume:a", 3)]);
        assert_eq!(
            there,
            checkpoint_digest(&[report("volume:a", 3), report("images", 1), report("rootfs", 2)])
        );
        assert_ne!(
            there,
            checkpoint_digest(&[report("volume:a", 3), report("images", 2), report("rootfs", 2)])
        );
        assert_ne!(
            there,
            checkpoint_digest(&[report("images", 1), report("rootfs", 2)])
        );
        assert_ne!(
            there,
            checkpoint_digest(&[report("images", 1), report("rootfs", 2), report("volume:b", 3)])
        );
    }
}
