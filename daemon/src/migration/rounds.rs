//! The chain of images that pre-dumps leave in a migration's staging, at either end.
//!
//! ```text
//! round-0    round-1/parent -> ../round-0    images/parent -> ../round-1
//! ```
//! CRIU follows these links. At the destination they are the source's word, so they are looked at before CRIU is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// How CRIU calls the link to the images before.
const PARENT: &str = "parent";

/// Name of the file beside them that CRIU keeps pages in, up to its number.
const PAGES: &str = "pages-";

/// The directory of a round.
#[must_use]
pub fn directory(staging: &Path, round: u32) -> PathBuf {
    staging.join(name(round))
}

/// What the images after this many rounds call the last of them.
#[must_use]
pub fn parent(rounds: u32) -> Option<String> {
    rounds.checked_sub(1).map(|last| format!("../{}", name(last)))
}

fn name(round: u32) -> String {
    format!("round-{round}")
}

/// Empties what a round holds of memory: it was sent. CRIU looks at what pages there are in it, but not at them.
///
/// # Errors
/// What the kernel says.
pub fn empty(round: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(round)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PAGES) {
            File::options().write(true).open(entry.path())?.set_len(0)?;
        }
    }
    Ok(())
}

/// Checks that every link leads to the round before and nowhere else.
///
/// # Errors
/// One is missing, or is another.
pub fn check(staging: &Path) -> io::Result<()> {
    let mut rounds = 0;
    while directory(staging, rounds).is_dir() {
        check_parent(&directory(staging, rounds), parent(rounds))?;
        rounds += 1;
    }
    check_parent(&staging.join("images"), parent(rounds))
}

fn check_parent(images: &Path, expected: Option<String>) -> io::Result<()> {
    let found = match std::fs::read_link(images.join(PARENT)) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if found.as_deref() == expected.as_deref().map(Path::new) {
        return Ok(());
    }
    let images = images.display();
    Err(io::Error::other(format!(
        "{images} names {found:?} as the images before it, not {expected:?}"
    )))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_chain_leads_from_the_dump_to_the_first_round_and_nowhere_else() {
        let staging = tempfile::tempdir().unwrap();
        let path = staging.path();
        fs::create_dir(path.join("images")).unwrap();
        check(path).unwrap();
        for round in 0..2 {
            fs::create_dir(directory(path, round)).unwrap();
            if let Some(parent) = parent(round) {
                symlink(parent, directory(path, round).join(PARENT)).unwrap();
            }
        }
        assert!(check(path).is_err(), "the dump forgets its rounds");
        let link = path.join("images").join(PARENT);
        for (target, right) in [("../round-1", true), ("../round-0", false), ("/etc", false)] {
            symlink(target, &link).unwrap();
            assert_eq!(check(path).is_ok(), right, "{target}");
            fs::remove_file(&link).unwrap();
        }
        symlink("../round-1", &link).unwrap();
        fs::remove_file(directory(path, 1).join(PARENT)).unwrap();
        assert!(check(path).is_err(), "a round forgets the one before");
        fs::create_dir(directory(path, 1).join(PARENT)).unwrap();
        assert!(check(path).is_err(), "a directory is no link");
    }

    #[test]
    fn only_pages_are_emptied() {
        let round = tempfile::tempdir().unwrap();
        for name in ["pages-1.img", "pagemap-1.img"] {
            fs::write(round.path().join(name), "content").unwrap();
        }
        empty(round.path()).unwrap();
        let size = |name| fs::metadata(round.path().join(name)).unwrap().len();
        assert_eq!((size("pages-1.img"), size("pagemap-1.img")), (0, 7));
    }
}
