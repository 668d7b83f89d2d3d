//! Where the programs of the workspace are: side by side in the target directory, with tests one level below.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// Path of a program of this workspace, such as `transhipd`.
///
/// # Errors
/// It has not been built.
pub fn find(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("cannot tell where this program is")?;
    let folders = own.ancestors().skip(1).take(2);
    let found = folders
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!(
            "{name} is not beside {}: build it first (`make build`)",
            own.display()
        ),
    }
}
