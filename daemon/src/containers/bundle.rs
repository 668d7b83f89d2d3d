//! The files of a bundle that a container sees as its own: hostname, hosts, resolv.conf.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tranship_proto::v1::ContainerSpec;

/// The host's resolver configuration, which containers get a copy of.
const HOST_RESOLV_CONF: &str = "/etc/resolv.conf";

/// A file or directory of the daemon's that could not be made, read or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct FileError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The kernel's answer.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// An error of `action` on `path`.
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self {
            action,
            path: path.to_owned(),
            source,
        }
    }
}

/// Makes a directory with its parents, for root alone. One that is there stays as it is.
///
/// # Errors
/// [`FileError`].
pub fn make_directory(path: &Path) -> Result<(), FileError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|source| FileError::new("make the directory", path, source))
}

/// Removes a directory with all that is in it. One that is not there is no error; one below which something is mounted
/// is, and stays as it is: what is mounted belongs to somebody else.
///
/// # Errors
/// [`FileError`].
pub fn remove_directory(path: &Path) -> Result<(), FileError> {
    let mounts = Path::new("/proc/self/mountinfo");
    let table = fs::read_to_string(mounts).map_err(|source| FileError::new("read", mounts, source))?;
    if let Some(mounted) = mounted_below(&table, path) {
        return Err(FileError::new(
            "remove what is mounted on",
            &mounted,
            io::ErrorKind::ResourceBusy.into(),
        ));
    }
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FileError::new("remove the directory", path, source))
        }
        _ => Ok(()),
    }
}

/// A mount point at or below `path`, by the kernel's table of mounts.
fn mounted_below(table: &str, path: &Path) -> Option<PathBuf> {
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape)
        .find(|point| point.starts_with(path))
}

/// The table writes a blank as `\040`, and so on.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let code = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(decoded) if byte == b'\\' => {
                bytes.push(decoded);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Writes the bundle's files of `/etc`. Doing it again gives the same files.
///
/// # Errors
/// [`FileError`].
pub fn write_files(bundle: &Path, spec: &ContainerSpec, ip: &str) -> Result<(), FileError> {
    make_directory(bundle)?;
    write(&bundle.join("hostname"), &format!("{}\n", spec.hostname))?;
    write(&bundle.join("hosts"), &hosts(spec, ip))?;
    write(
        &bundle.join("resolv.conf"),
        &resolv_conf(Path::new(HOST_RESOLV_CONF))?,
    )
}

/// Writes the runtime configuration, which may name secrets of the environment: for root alone.
///
/// # Errors
/// [`FileError`].
pub fn write_config(path: &Path, config: &str) -> Result<(), FileError> {
    let private = fs::Permissions::from_mode(0o600);
    fs::write(path, config)
        .and_then(|()| fs::set_permissions(path, private))
        .map_err(|source| FileError::new("write", path, source))
}

fn write(path: &Path, text: &str) -> Result<(), FileError> {
    let world_readable = fs::Permissions::from_mode(0o644);
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, world_readable))
        .map_err(|source| FileError::new("write", path, source))
}

fn hosts(spec: &ContainerSpec, ip: &str) -> String {
    let own = if ip.is_empty() { "127.0.1.1" } else { ip };
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{}\n",
        spec.hostname
    )
}

fn resolv_conf(host: &Path) -> Result<String, FileError> {
    match fs::read_to_string(host) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(source) => Err(FileError::new("read", host, source)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_name_the_container_and_are_readable_by_its_users() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("b");
        let spec = ContainerSpec {
            hostname: "web".into(),
            ..Default::default()
        };
        write_files(&bundle, &spec, "10.77.0.50").unwrap();
        write_files(&bundle, &spec, "10.77.0.50").unwrap();
        assert_eq!(fs::read_to_string(bundle.join("hostname")).unwrap(), "web\n");
        assert!(
            fs::read_to_string(bundle.join("hosts"))
                .unwrap()
                .contains("\n10.77.0.50\tweb\n")
        );
        assert_eq!(
            fs::metadata(bundle.join("resolv.conf"))
                .unwrap()
                .permissions()
                .mode()
                & 0o777,
            0o644
        );
    }

    #[test]
    fn what_is_mounted_below_a_directory_is_seen() {
        let table =
            "36 25 0:32 / /run/a\\040b/rootfs rw - overlay overlay rw\n37 25 0:33 / /run/c rw - tmpfs x rw\n";
        assert_eq!(
            mounted_below(table, Path::new("/run/a b")),
            Some("/run/a b/rootfs".into())
        );
        assert_eq!(mounted_below(table, Path::new("/run/c")), Some("/run/c".into()));
        assert_eq!(mounted_below(table, Path::new("/run/a")), None);
    }

    #[test]
    fn removing_what_is_not_there_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        remove_directory(&dir.path().join("missing")).unwrap();
    }
}
