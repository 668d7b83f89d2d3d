//! Where it was measured.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::command::{self, command};

/// What the figures depend on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Kernel and architecture.
    pub kernel: String,
    /// The processor's name.
    pub processor: String,
    /// Cores, shared by both hosts and the client.
    pub cores: usize,
    /// Memory in GiB, rounded.
    pub memory_gib: u64,
    /// CRIU's version.
    pub criu: String,
    /// runc's version.
    pub runc: String,
    /// rsync's version.
    pub rsync: String,
}

impl Machine {
    /// Looks at this machine.
    ///
    /// # Errors
    /// A program that the bench needs is missing.
    pub fn look() -> Result<Self> {
        let uname = rustix::system::uname();
        let cpu = fs::read_to_string("/proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let kib: u64 = field(&memory, "MemTotal")
            .and_then(|text| text.split(' ').next()?.parse().ok())
            .unwrap_or(0);
        Ok(Self {
            kernel: format!(
                "Linux {} {}",
                uname.release().to_string_lossy(),
                uname.machine().to_string_lossy()
            ),
            processor: field(&cpu, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (kib + (512 << 10)) >> 20,
            criu: version("criu")?,
            runc: version("runc")?,
            rsync: version("rsync")?,
        })
    }
}

/// A `PATH` on which the CRIU that `make setup` installed comes first.
#[must_use]
pub fn path_with_criu() -> OsString {
    let prefix = std::env::var_os("TRANSHIP_PREFIX").unwrap_or_else(|| "/opt/tranship".into());
    let mut path = PathBuf::from(prefix).join("criu/sbin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    path
}

/// The first word with a digit that `PROGRAM --version` prints.
fn version(program: &str) -> Result<String> {
    let mut command = command(program, ["--version"]);
    let text = command::succeed(command.env("PATH", path_with_criu()), command::SHORT)?.text();
    let number = text
        .split_whitespace()
        .find(|word| word.starts_with(|letter: char| letter.is_ascii_digit()));
    Ok(number.unwrap_or(&text).to_owned())
}

/// The value of the first `NAME : VALUE` line.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text = "model\t\t: 85\nmodel name\t: Some CPU\n";
        assert_eq!(field(text, "model name"), Some("Some CPU"));
        assert_eq!(field(text, "cores"), None);
    }
}
