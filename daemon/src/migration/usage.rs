//! What a container occupies: so that a destination can say beforehand whether it has the room.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes a tree occupies on its disk, holes not counted and hard links counted once.
///
/// # Errors
/// A directory cannot be read. What vanishes meanwhile is not counted.
pub fn tree_bytes(root: &Path) -> io::Result<u64> {
    let mut seen = std::collections::HashSet::new();
    let mut directories = vec![root.to_owned()];
    let mut bytes = 0;
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino())) {
                continue;
            }
            bytes += metadata.blocks() * 512;
            if metadata.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(bytes)
}

/// Memory of a process that no file holds, in memory and in swap, in bytes; none of one that has ended.
#[must_use]
pub fn private_bytes(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    1024 * (kib("RssAnon:").unwrap_or(0) + kib("VmSwap:").unwrap_or(0))
}

/// Memory this machine can give without swapping, in bytes: `MemAvailable` of /proc/meminfo.
///
/// # Errors
/// /proc cannot be read.
pub fn memory_available_bytes() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kib.map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::other("/proc/meminfo has no MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_one_that_ended_has_none() {
        assert!(private_bytes(std::process::id().cast_signed()) > 1 << 16);
        assert_eq!(private_bytes(i32::MAX), 0);
    }

    #[test]
    fn a_hole_and_a_second_name_cost_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("full"), vec![1; 1 << 20]).unwrap();
        let full = tree_bytes(dir.path()).unwrap();
        assert!(full >= 1 << 20);
        fs::File::create(dir.path().join("sparse"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        fs::hard_link(dir.path().join("full"), dir.path().join("again")).unwrap();
        assert!(tree_bytes(dir.path()).unwrap() < full + (1 << 16));
    }

    #[test]
    fn this_machine_has_memory() {
        assert!(memory_available_bytes().unwrap() > 1 << 20);
    }
}
