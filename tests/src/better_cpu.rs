//! A CPU that can save more of a process than any host's can load: CRIU's description of one.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::broken_criu::real_criu;
use crate::testbed::Host;

/// Writes to `path` how CRIU describes a host's CPU, with all states of registers that there could be.
///
/// # Errors
/// CRIU fails, or describes a CPU in another way than is known here.
pub fn describe(host: &Host, path: &Path) -> Result<()> {
    let scratch = TempDir::new()?;
    let directory = scratch.path().as_os_str();
    host.run(
        real_criu(),
        [
            "cpuinfo".as_ref(),
            "dump".as_ref(),
            "--images-dir".as_ref(),
            directory,
        ],
    )?;
    let image = fs::read(scratch.path().join("cpuinfo.img"))?;
    Ok(fs::write(path, with_every_register(&image)?)?)
}

/// CRIU's description of a CPU, with all states of registers that there could be: two magic numbers, a length, a message whose first field
/// is the CPU, and of the same field in that the last one counts.
fn with_every_register(image: &[u8]) -> Result<Vec<u8>> {
    const CPU: u8 = 1 << 3 | 2;
    const REGISTER_STATES: u8 = 8 << 3;
    let (magic, message) = image
        .split_at_checked(8)
        .context("an image has two magic numbers")?;
    let (tag, described) = message
        .get(4..)
        .and_then(<[u8]>::split_first)
        .context("a message")?;
    ensure!(*tag == CPU, "field {tag} is no CPU");
    let length_bytes = described.iter().take_while(|byte| **byte >= 0x80).count() + 1;
    let mut cpu = described[length_bytes..].to_vec();
    cpu.push(REGISTER_STATES);
    cpu.extend(varint(u64::MAX));
    let mut message = vec![CPU];
    message.extend(varint(u64::try_from(cpu.len())?));
    message.extend(cpu);
    Ok([magic, &u32::try_from(message.len())?.to_le_bytes(), &message].concat())
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}
