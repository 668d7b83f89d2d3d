//! A container's log goes with it, so that `logs` shows all of it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::runtime::ContainerPaths;

/// Name of the file in its tree.
const NAME: &str = "container.log";

/// A directory to send, with the log alone. The file is the log itself under a second name.
///
/// # Errors
/// The bundle cannot be written.
pub fn to_send(paths: &ContainerPaths) -> io::Result<PathBuf> {
    let directory = to_receive(paths)?;
    match fs::hard_link(paths.log(), directory.join(NAME)) {
        // A container that has no log has nothing to send.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(directory),
    }
}

/// An empty directory to receive it in.
///
/// # Errors
/// The bundle cannot be written.
pub fn to_receive(paths: &ContainerPaths) -> io::Result<PathBuf> {
    forget(paths)?;
    let directory = paths.moving_log();
    DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    Ok(directory)
}

/// Makes what was received the log of a container that has written nothing here yet. Its monitor may hold the file open, so
/// its content is replaced and not the file.
///
/// # Errors
/// What was received is no regular file, or the log cannot be written.
pub fn take(paths: &ContainerPaths) -> io::Result<()> {
    let received = paths.moving_log().join(NAME);
    let mut from = match File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(&received)
    {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return forget(paths),
        from => from?,
    };
    let about = from.metadata()?;
    if !about.is_file() || about.nlink() != 1 {
        return Err(io::Error::other(
            "what was received as the log is no file of its own",
        ));
    }
    let mut log = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(paths.log())?;
    io::copy(&mut from, &mut log)?;
    forget(paths)
}

/// Removes what was sent or received.
///
/// # Errors
/// It cannot be removed.
pub fn forget(paths: &ContainerPaths) -> io::Result<()> {
    match fs::remove_dir_all(paths.moving_log()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
