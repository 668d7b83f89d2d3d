//! What is mounted where, from `/proc/thread-self/mountinfo`.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

const TABLE: &str = "/proc/thread-self/mountinfo";

/// One mount of the caller's mount namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// Where it is mounted.
    pub target: PathBuf,
    /// Kind of file system.
    pub kind: String,
    /// What is mounted, as the file system calls it.
    pub source: String,
    /// Options of the file system itself, quoted as the kernel prints them.
    options: Vec<u8>,
}

impl MountEntry {
    /// The value of an option that holds a path.
    #[must_use]
    pub fn path_option(&self, name: &str) -> Option<PathBuf> {
        self.options.split(|&byte| byte == b',').find_map(|option| {
            let value = option.strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
            Some(PathBuf::from(unquoted(value)))
        })
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|&byte| byte == b' ');
        let target = PathBuf::from(unquoted(fields.nth(4)?));
        fields.find(|&field| field == b"-")?;
        let kind = String::from_utf8_lossy(fields.next()?).into_owned();
        let source = unquoted(fields.next()?).to_string_lossy().into_owned();
        Some(Self {
            target,
            kind,
            source,
            options: fields.next()?.to_vec(),
        })
    }
}

/// All mounts, in the order in which they cover each other.
///
/// # Errors
/// When /proc is not there.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    let table = fs::read(TABLE)?;
    Ok(table
        .split(|&byte| byte == b'\n')
        .filter_map(MountEntry::parse)
        .collect())
}

/// The mount that is seen at `target`: of several on one directory, the last.
#[must_use]
pub fn topmost<'a>(mounts: &'a [MountEntry], target: &Path) -> Option<&'a MountEntry> {
    mounts
        .iter()
        .rev()
        .find(|mount| mount.target.as_os_str().as_bytes() == target.as_os_str().as_bytes())
}

/// Undoes the kernel's quoting: a backslash and three octal digits for a byte that would end a field.
fn unquoted(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, after @ ..] = rest {
        let octal = |digit: u8| digit.checked_sub(b'0').filter(|value| *value < 8);
        if let (b'\\', [a, b, c, next @ ..]) = (first, after)
            && let (Some(a @ 0..=3), Some(b), Some(c)) = (octal(*a), octal(*b), octal(*c))
        {
            bytes.push(a << 6 | b << 3 | c);
            rest = next;
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_found_by_its_quoted_directory() {
        let line = br"36 35 0:44 / /mnt/a\040b\134 rw,relatime shared:1 - overlay over\011lay rw,lowerdir=/l,upperdir=/u\040x,workdir=/w";
        let mount = MountEntry::parse(line).unwrap();
        assert_eq!(mount.target, Path::new("/mnt/a b\\"));
        assert_eq!(
            (mount.kind.as_str(), mount.source.as_str()),
            ("overlay", "over\tlay")
        );
        assert_eq!(mount.path_option("upperdir").unwrap(), Path::new("/u x"));
        assert_eq!(mount.path_option("upper"), None);
    }

    #[test]
    fn a_cut_line_is_no_mount() {
        assert_eq!(
            MountEntry::parse(b"36 35 0:44 / /mnt rw,relatime - overlay"),
            None
        );
        assert_eq!(MountEntry::parse(b""), None);
    }

    #[test]
    fn the_root_of_this_machine_is_mounted() {
        assert!(topmost(&mounts().unwrap(), Path::new("/")).is_some());
    }
}
