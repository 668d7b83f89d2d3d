//! Names that a killed restore leaves in the container's files.
//!
//! CRIU gives each deleted-but-open file a name for the time of the restore (`NAME.cr.ID.ghost`) and refuses to make
//! one that exists. So a restore that was killed cannot be repeated on the same files before these names are gone.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use prost::Message;

/// Largest image that is read: the tables of open files, tens of bytes for each file.
const MAX_IMAGE: u64 = 256 << 20;

/// Value of a remap's type for a deleted file whose contents are in the images.
const GHOST: u32 = 1;

/// Why the names could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum GhostError {
    /// An image cannot be read.
    #[error("the image {} cannot be read: {source}", path.display())]
    Image {
        /// The image.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the container cannot be removed or a directory not be read.
    #[error("{} cannot be searched for names that a restore has left: {source}", path.display())]
    Tree {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

#[derive(Clone, PartialEq, Message)]
struct FileEntry {
    #[prost(message, optional, tag = "3")]
    regular: Option<Regular>,
}

#[derive(Clone, PartialEq, Message)]
struct Regular {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(bytes = "vec", tag = "6")]
    name: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Remap {
    #[prost(uint32, tag = "1")]
    original: u32,
    #[prost(uint32, tag = "2")]
    ghost: u32,
    #[prost(uint32, optional, tag = "3")]
    kind: Option<u32>,
}

/// Removes the names that a restore of these images may have left below `trees`: the rootfs and the volumes of a
/// container that does not run. Returns how many there were. Symbolic links are not followed.
pub fn remove_ghosts(images: &Path, trees: &[PathBuf]) -> Result<usize, GhostError> {
    let names = names(images)?;
    let mut removed = 0;
    if names.is_empty() {
        return Ok(removed);
    }
    let mut waiting = trees.to_vec();
    while let Some(directory) = waiting.pop() {
        let failed = |path: &Path, source| GhostError::Tree {
            path: path.to_owned(),
            source,
        };
        for entry in fs::read_dir(&directory).map_err(|source| failed(&directory, source))? {
            let entry = entry.map_err(|source| failed(&directory, source))?;
            let kind = entry
                .file_type()
                .map_err(|source| failed(&entry.path(), source))?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if names.contains(entry.file_name().as_encoded_bytes()) {
                fs::remove_file(entry.path()).map_err(|source| failed(&entry.path(), source))?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

/// The last parts of the names that CRIU gives to the ghosts of these images.
fn names(images: &Path) -> Result<HashSet<Vec<u8>>, GhostError> {
    let remaps: Vec<Remap> = entries(&images.join("remap-fpath.img"))?;
    let files: Vec<FileEntry> = if remaps.is_empty() {
        Vec::new()
    } else {
        entries(&images.join("files.img"))?
    };
    let mut names = HashSet::new();
    for remap in remaps
        .iter()
        .filter(|remap| remap.kind.unwrap_or_default() == GHOST)
    {
        let open = files
            .iter()
            .filter_map(|file| file.regular.as_ref())
            .find(|file| file.id == remap.original);
        if let Some(last) = open.and_then(|file| file.name.rsplit(|byte| *byte == b'/').next()) {
            names.insert([last, format!(".cr.{:x}.ghost", remap.ghost).as_bytes()].concat());
        }
    }
    Ok(names)
}

/// The messages of an image: two magic numbers, then each message behind its length. A missing image has none.
fn entries<M: Message + Default>(path: &Path) -> Result<Vec<M>, GhostError> {
    let failed = |source| GhostError::Image {
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    match fs::File::open(path) {
        Ok(file) => file.take(MAX_IMAGE).read_to_end(&mut bytes).map_err(failed)?,
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut rest = bytes.get(8..).unwrap_or_default();
    let mut messages = Vec::new();
    while let Some((length, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let (message, tail) = tail
            .split_at_checked(length)
            .ok_or_else(|| failed(io::ErrorKind::UnexpectedEof.into()))?;
        messages.push(M::decode(message).map_err(|source| failed(io::Error::other(source)))?);
        rest = tail;
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::{FileEntry, GHOST, Regular, Remap, remove_ghosts};
    use prost::Message;
    use std::fs;

    fn image(messages: &[impl Message]) -> Vec<u8> {
        let mut bytes = vec![0; 8];
        for message in messages {
            let message = message.encode_to_vec();
            bytes.extend(u32::try_from(message.len()).unwrap().to_le_bytes());
            bytes.extend(message);
        }
        bytes
    }

    #[test]
    fn only_the_names_of_these_images_ghosts_go() {
        let directory = tempfile::tempdir().unwrap();
        let images = directory.path().join("images");
        let tree = directory.path().join("tree");
        fs::create_dir_all(tree.join("deep")).unwrap();
        fs::create_dir(&images).unwrap();
        let file = FileEntry {
            regular: Some(Regular {
                id: 7,
                name: b"vol/deep/gone".to_vec(),
            }),
        };
        fs::write(images.join("files.img"), image(&[file])).unwrap();
        let remaps = [
            Remap {
                original: 7,
                ghost: 0x1f,
                kind: Some(GHOST),
            },
            Remap {
                original: 8,
                ghost: 2,
                kind: Some(0),
            },
        ];
        fs::write(images.join("remap-fpath.img"), image(&remaps)).unwrap();
        for name in [
            "deep/gone.cr.1f.ghost",
            "deep/gone.cr.2.ghost",
            "gone",
            "other.cr.1f.ghost",
        ] {
            fs::write(tree.join(name), "x").unwrap();
        }
        assert_eq!(remove_ghosts(&images, std::slice::from_ref(&tree)).unwrap(), 1);
        assert!(!tree.join("deep/gone.cr.1f.ghost").exists());
        assert!(tree.join("deep/gone.cr.2.ghost").exists() && tree.join("other.cr.1f.ghost").exists());
    }

    #[test]
    fn an_image_that_is_cut_off_is_an_error_and_none_is_fine() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(remove_ghosts(directory.path(), &[]).unwrap(), 0);
        fs::write(
            directory.path().join("remap-fpath.img"),
            [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 1],
        )
        .unwrap();
        assert!(remove_ghosts(directory.path(), &[]).is_err());
    }
}
