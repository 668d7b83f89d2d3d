//! The members of an image archive, found without reading them.

use std::collections::BTreeMap;
use std::io::Read as _;

use tar::EntryType;

use super::error::ImportError;
use super::headers::guard;
use super::limits::{MAX_DOCUMENT_BYTES, MAX_MEMBERS};
use super::spool::{Part, Spool};

const BLOCK_BYTES: u64 = 512;

/// Where a member lies in the spool, or where it leads.
enum Member {
    File { offset: u64, bytes: u64 },
    Link(String),
}

/// What is in an image archive, by name.
pub(super) struct Members<'a> {
    spool: &'a Spool,
    members: BTreeMap<String, Member>,
}

impl<'a> Members<'a> {
    /// The members, or none when the archive is not laid out as an image is: then it is a root file system.
    pub(super) fn find(spool: &'a Spool) -> Result<Option<Self>, ImportError> {
        let damaged = |source| ImportError::Damaged { source };
        let (reader, headers) = guard(spool.whole());
        let mut archive = tar::Archive::new(reader);
        let mut entries = archive.entries_with_seek().map_err(damaged)?;
        let mut members = BTreeMap::new();
        let mut end = 0;
        while let Some(entry) = headers.next(&mut entries) {
            let entry = entry.map_err(damaged)?;
            end = entry.raw_file_position().saturating_add(entry.size());
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let name = path.trim_start_matches("./").trim_end_matches('/');
            if name.is_empty() {
                continue;
            }
            if !is_of_an_image(name) {
                return Ok(None);
            }
            let member = match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => Member::File {
                    offset: entry.raw_file_position(),
                    bytes: entry.size(),
                },
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    Member::Link(String::from_utf8_lossy(&target).into_owned())
                }
                _ => continue,
            };
            if members.len() == MAX_MEMBERS {
                return Err(ImportError::TooMuch {
                    what: "members",
                    limit: MAX_MEMBERS as u64,
                });
            }
            members.insert(name.to_owned(), member);
        }
        if members.is_empty() {
            return Ok(None);
        }
        // The parser takes the end of the file for the archive's; only a block of zeroes behind the last member is.
        let mark = end
            .checked_next_multiple_of(BLOCK_BYTES)
            .and_then(|at| at.checked_add(BLOCK_BYTES));
        if mark.is_none_or(|mark| mark > spool.bytes) {
            return Err(ImportError::Cut);
        }
        Ok(Some(Self { spool, members }))
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.members.contains_key(name)
    }

    /// A small member as a whole.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ImportError> {
        let (mut reader, bytes) = self.open(name)?;
        if bytes > MAX_DOCUMENT_BYTES {
            return Err(ImportError::TooMuch {
                what: "bytes in a document",
                limit: MAX_DOCUMENT_BYTES,
            });
        }
        let mut content = Vec::new();
        reader
            .read_to_end(&mut content)
            .map_err(|source| ImportError::Read { source })?;
        if content.len() as u64 == bytes {
            Ok(content)
        } else {
            Err(ImportError::Missing(name.to_owned()))
        }
    }

    /// A member and its length. Docker's older layout has links where two layers are the same.
    pub(super) fn open(&self, name: &str) -> Result<(Part<'a>, u64), ImportError> {
        let missing = || ImportError::Missing(name.to_owned());
        let member = match self.members.get(name).ok_or_else(missing)? {
            Member::Link(target) => self.members.get(&resolve(name, target)).ok_or_else(missing)?,
            file => file,
        };
        let Member::File { offset, bytes } = member else {
            return Err(missing());
        };
        Ok((self.spool.part(*offset, *bytes), *bytes))
    }
}

/// Where a link leads, within the archive: `../ID/layer.tar` from `ID/layer.tar`.
fn resolve(name: &str, target: &str) -> String {
    match target.strip_prefix("../") {
        Some(rest) => rest.to_owned(),
        None => match name.rsplit_once('/') {
            Some((folder, _)) if !target.contains('/') => format!("{folder}/{target}"),
            _ => target.to_owned(),
        },
    }
}

/// Whether the name is one that image archives have, and root file systems do not.
fn is_of_an_image(name: &str) -> bool {
    let is_id = |text: &str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
    match name.split_once('/') {
        None => {
            matches!(
                name,
                "oci-layout" | "index.json" | "manifest.json" | "repositories" | "blobs"
            ) || is_id(name)
                || name
                    .rsplit_once('.')
                    .is_some_and(|(stem, end)| is_id(stem) && matches!(end, "json" | "tar"))
        }
        Some(("blobs", rest)) => matches!(rest, "sha256" | "sha512") || rest.starts_with("sha"),
        Some((folder, file)) => is_id(folder) && matches!(file, "layer.tar" | "json" | "VERSION"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_images_are_told_from_files_of_a_root_file_system() {
        let id = "ab".repeat(32);
        for member in [
            "oci-layout",
            "blobs/sha256",
            &format!("blobs/sha256/{id}"),
            &format!("{id}.json"),
        ] {
            assert!(is_of_an_image(member), "{member}");
        }
        assert!(is_of_an_image(&format!("{id}/layer.tar")));
        for file in ["bin", "etc/passwd", "json", &format!("{id}/x"), "manifest.jso"] {
            assert!(!is_of_an_image(file), "{file}");
        }
    }

    #[test]
    fn links_between_layers_are_followed_within_the_archive() {
        assert_eq!(resolve("b/layer.tar", "../a/layer.tar"), "a/layer.tar");
        assert_eq!(resolve("b/layer.tar", "other.tar"), "b/other.tar");
        assert_eq!(resolve("b.tar", "a.tar"), "a.tar");
    }
}
