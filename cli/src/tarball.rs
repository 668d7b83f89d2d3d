//! A directory as a tar stream: what a layer needs, in constant memory.
//!
//! Owners, modes, times to the nanosecond, symlinks, hard links, devices, fifos and extended attributes (with them ACLs
//! and file capabilities) go along, the latter as PAX `SCHILY.xattr` records. Holes are filled: the daemon punches them
//! again where it can. A socket has no place in an archive and is left out.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

/// Longest name that fits the old header's field.
const NAME_BYTES: usize = 100;

/// Writes everything below `root` to `sink`.
///
/// # Errors
/// Something cannot be read or the sink not be written; the message names the path.
pub fn write_directory(root: &Path, sink: impl Write) -> io::Result<()> {
    let mut walk = Walk {
        root,
        builder: Builder::new(sink),
        links: HashMap::new(),
    };
    walk.directory(Path::new(""))?;
    walk.builder.into_inner()?.flush()
}

struct Walk<'a, W: Write> {
    root: &'a Path,
    builder: Builder<W>,
    /// First name of each file that has several.
    links: HashMap<(u64, u64), PathBuf>,
}

impl<W: Write> Walk<'_, W> {
    /// A directory and what is in it; `inside` is relative to the root.
    fn directory(&mut self, inside: &Path) -> io::Result<()> {
        let path = self.root.join(inside);
        let named = |error| at(&path, error);
        let metadata = fs::metadata(&path).map_err(named)?;
        if !inside.as_os_str().is_empty() {
            self.entry(inside, &metadata, EntryType::Directory, None)?;
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&path).map_err(named)? {
            names.push(entry.map_err(named)?.file_name());
        }
        names.sort();
        names.iter().try_for_each(|name| self.child(&inside.join(name)))
    }

    fn child(&mut self, inside: &Path) -> io::Result<()> {
        let path = self.root.join(inside);
        let metadata = fs::symlink_metadata(&path).map_err(|error| at(&path, error))?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return self.directory(inside);
        }
        if kind.is_socket() {
            eprintln!("tranship: {} is a socket and is left out", path.display());
            return Ok(());
        }
        if metadata.nlink() > 1 {
            let id = (metadata.dev(), metadata.ino());
            if let Some(first) = self.links.get(&id) {
                let first = first.clone();
                return self.entry(inside, &metadata, EntryType::Link, Some(first.as_os_str()));
            }
            self.links.insert(id, inside.to_owned());
        }
        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(|error| at(&path, error))?;
            return self.entry(inside, &metadata, EntryType::Symlink, Some(target.as_os_str()));
        }
        let entry_type = match kind {
            kind if kind.is_char_device() => EntryType::Char,
            kind if kind.is_block_device() => EntryType::Block,
            kind if kind.is_fifo() => EntryType::Fifo,
            _ => EntryType::Regular,
        };
        self.entry(inside, &metadata, entry_type, None)
    }

    fn entry(
        &mut self,
        inside: &Path,
        metadata: &Metadata,
        entry_type: EntryType,
        link: Option<&OsStr>,
    ) -> io::Result<()> {
        let path = self.root.join(inside);
        let mut records = vec![("mtime".to_owned(), pax_time(metadata).into_bytes())];
        let mut header = header(metadata, entry_type)?;
        let mut name = inside.as_os_str().as_bytes().to_vec();
        if entry_type == EntryType::Directory {
            name.push(b'/');
        }
        set_name(&mut header.as_old_mut().name, &name, "path", &mut records);
        if let Some(link) = link {
            set_name(
                &mut header.as_old_mut().linkname,
                link.as_bytes(),
                "linkpath",
                &mut records,
            );
        }
        if entry_type != EntryType::Link {
            records.extend(attributes(&path).map_err(|error| at(&path, error))?);
        }
        header.set_cksum();
        self.builder.append_pax_extensions(
            records
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_slice())),
        )?;
        match entry_type {
            EntryType::Regular => self.content(&path, &header, metadata.len()),
            _ => self.builder.append(&header, io::empty()),
        }
    }

    /// Exactly as many bytes as the header has promised.
    fn content(&mut self, path: &Path, header: &Header, length: u64) -> io::Result<()> {
        let file = File::open(path).map_err(|error| at(path, error))?;
        let mut exact = Exact { file, left: length };
        self.builder
            .append(header, &mut exact)
            .map_err(|error| at(path, error))
    }
}

/// A file read to a promised length: one that has become shorter is an error, one that has grown is cut.
struct Exact {
    file: File,
    left: u64,
}

impl Read for Exact {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            let problem = "became shorter while it was read; import again when nothing writes to it";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, problem));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn header(metadata: &Metadata, entry_type: EntryType) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry_type);
    header.set_mode(metadata.mode() & 0o7777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(if entry_type == EntryType::Regular {
        metadata.len()
    } else {
        0
    });
    if matches!(entry_type, EntryType::Char | EntryType::Block) {
        header.set_device_major(rustix::fs::major(metadata.rdev()))?;
        header.set_device_minor(rustix::fs::minor(metadata.rdev()))?;
    }
    Ok(header)
}

/// Puts a name into its field, and into a PAX record too where the field is too short.
fn set_name(field: &mut [u8; NAME_BYTES], name: &[u8], key: &str, records: &mut Vec<(String, Vec<u8>)>) {
    let length = name.len().min(NAME_BYTES);
    field[..length].copy_from_slice(&name[..length]);
    if name.len() > NAME_BYTES {
        records.push((key.to_owned(), name.to_vec()));
    }
}

/// Seconds with a fraction; the fraction counts upwards for times before 1970 too, as a decimal number has it.
fn pax_time(metadata: &Metadata) -> String {
    let (seconds, nanoseconds) = (metadata.mtime(), metadata.mtime_nsec());
    match (seconds, nanoseconds) {
        (seconds, 0) => seconds.to_string(),
        (seconds, nanoseconds) if seconds < 0 => {
            format!(
                "-{}.{:09}",
                (seconds + 1).unsigned_abs(),
                1_000_000_000 - nanoseconds
            )
        }
        (seconds, nanoseconds) => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// The extended attributes of a path, not following a link.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let names = match grown(|buffer| rustix::fs::llistxattr(path, buffer)) {
        Err(Errno::NOTSUP) => return Ok(Vec::new()),
        names => names?,
    };
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let text = str::from_utf8(name).map_err(io::Error::other)?;
        match grown(|buffer| rustix::fs::lgetxattr(path, name, buffer)) {
            // Taken away since it was listed.
            Err(Errno::NODATA) => {}
            value => found.push((format!("SCHILY.xattr.{text}"), value?)),
        }
    }
    Ok(found)
}

/// Asks with ever larger buffers; the kernel's own limit of 64 KiB is the last.
fn grown(ask: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 1 << 10];
    loop {
        match ask(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer.resize(64 << 10, 0),
            Err(error) => return Err(error),
        }
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tranship-tarball-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn names_links_times_and_contents_arrive() {
        let root = folder("names");
        let long = "n".repeat(180);
        fs::create_dir_all(root.join("d").join(&long)).unwrap();
        let file = root.join("d").join(&long).join("f");
        fs::write(&file, b"content").unwrap();
        fs::hard_link(&file, root.join("z-link")).unwrap();
        symlink("../elsewhere", root.join("sym")).unwrap();
        let mtime = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123_456_789);
        File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(mtime)
            .unwrap();

        let mut bytes = Vec::new();
        write_directory(&root, &mut bytes).unwrap();
        fs::remove_dir_all(&root).unwrap();

        let mut seen = Vec::new();
        for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let records = entry.pax_extensions().unwrap().unwrap();
            let time = records
                .map(|record| record.unwrap())
                .find(|record| record.key() == Ok("mtime"));
            let time = time.map(|record| record.value().unwrap().to_owned()).unwrap();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            let link = entry.link_name().unwrap().map(|name| name.display().to_string());
            seen.push((entry.path().unwrap().display().to_string(), link, content, time));
        }
        let names: Vec<_> = seen.iter().map(|entry| entry.0.as_str()).collect();
        let inner = format!("d/{long}/f");
        assert_eq!(names, ["d/", &format!("d/{long}/"), &inner, "sym", "z-link"]);
        assert_eq!(
            (seen[2].2.as_str(), seen[2].3.as_str()),
            ("content", "1000000.123456789")
        );
        assert_eq!(seen[3].1.as_deref(), Some("../elsewhere"));
        assert_eq!(seen[4].1.as_deref(), Some(inner.as_str()));
    }

    #[test]
    fn extended_attributes_are_pax_records() {
        let root = folder("xattr");
        fs::write(root.join("f"), b"").unwrap();
        let value = vec![0, 1, b'\n', 0xff];
        let outcome = rustix::fs::lsetxattr(
            root.join("f"),
            "user.test",
            &value,
            rustix::fs::XattrFlags::empty(),
        );
        let mut bytes = Vec::new();
        write_directory(&root, &mut bytes).unwrap();
        fs::remove_dir_all(&root).unwrap();
        outcome.expect("the file system for temporary files has extended attributes");
        // Looked for in the bytes: a value may hold line ends, which some readers take for the end of a record.
        let record = b"31 SCHILY.xattr.user.test=\x00\x01\n\xff\n";
        assert!(bytes.windows(record.len()).any(|window| window == record));
    }

    #[test]
    fn a_file_that_becomes_shorter_is_an_error() {
        let root = folder("short");
        fs::write(root.join("f"), b"abc").unwrap();
        let mut exact = Exact {
            file: File::open(root.join("f")).unwrap(),
            left: 5,
        };
        let error = io::copy(&mut exact, &mut io::sink()).unwrap_err();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
