//! Where the threads of each process had their stack pointers.

use std::collections::BTreeMap;
use std::path::Path;

use super::ImageError;
use super::framing::{CORE, PSTREE, Records};
use super::messages::{Core, Process};
use crate::memory::PAGE_BYTES;

/// The threads of each process, from `pstree.img`.
pub fn threads(images_dir: &Path) -> Result<BTreeMap<u32, Vec<u32>>, ImageError> {
    let path = images_dir.join("pstree.img");
    let mut records = Records::open(&path, PSTREE)?.ok_or_else(|| ImageError::Malformed {
        path: path.clone(),
        what: "it is empty",
    })?;
    let mut threads = BTreeMap::new();
    while let Some(process) = records.next::<Process>()? {
        threads.insert(process.pid, process.threads);
    }
    Ok(threads)
}

/// The pages that stack pointers of these threads point into, in ascending order.
pub fn stack_pages(images_dir: &Path, threads: &[u32]) -> Result<Vec<u64>, ImageError> {
    let mut pages = Vec::with_capacity(threads.len());
    for thread in threads {
        let path = images_dir.join(format!("core-{thread}.img"));
        let malformed = |what| ImageError::Malformed {
            path: path.clone(),
            what,
        };
        let records = Records::open(&path, CORE)?.ok_or_else(|| malformed("it is empty"))?;
        let core: Core = records.one()?;
        let pointer = stack_pointer(core).ok_or_else(|| malformed("it has no stack pointer"))?;
        pages.push(pointer / PAGE_BYTES * PAGE_BYTES);
    }
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}

fn stack_pointer(core: Core) -> Option<u64> {
    let x86 = core.x86.and_then(|thread| thread.registers);
    let arm = core.arm.and_then(|thread| thread.registers);
    x86.map(|registers| registers.stack_pointer)
        .or(arm.map(|registers| registers.stack_pointer))
}
