//! What the kernel's bits of an area are called in `/proc/PID/smaps`.

/// The names that CRIU reads. The kernel has not moved these bits since they were made.
const NAMES: [(u64, &str); 14] = [
    (0x0000_0100, "gd"),
    (0x0000_0400, "pf"),
    (0x0000_2000, "lo"),
    (0x0000_4000, "io"),
    (0x0000_8000, "sr"),
    (0x0001_0000, "rr"),
    (0x0002_0000, "dc"),
    (0x0020_0000, "nr"),
    (0x0040_0000, "ht"),
    (0x0200_0000, "wf"),
    (0x0400_0000, "dd"),
    (0x2000_0000, "hg"),
    (0x4000_0000, "nh"),
    (0x8000_0000, "mg"),
];

/// Bits from here on move from kernel to kernel, and two of them matter to CRIU (shadow stacks, droppable memory).
const MOVING: u64 = !0 << 32;

/// Of those, the ones that were always protection keys.
const KEYS: u64 = 0xF << 32;

/// The names of an area's bits; `None` where only the kernel itself can tell.
pub fn names(flags: u64) -> Option<String> {
    if flags & MOVING & !KEYS != 0 {
        return None;
    }
    let set = NAMES.iter().filter(|(bit, _)| flags & bit != 0);
    Some(set.map(|(_, name)| format!("{name} ")).collect())
}

/// Those names of a line of the kernel's own that [`names`] knows, in its order.
pub fn known(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let set = NAMES.iter().filter(|(_, name)| words.contains(name));
    set.map(|(_, name)| format!("{name} ")).collect()
}
