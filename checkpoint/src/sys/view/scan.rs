//! The question of CRIU's that is answered differently. Plain arithmetic, without the standard library.

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
pub const REQUEST: u32 = 0xC060_6610;

/// `PAGE_IS_PRESENT | PAGE_IS_SWAPPED`.
const HAS_CONTENT: u64 = 1 << 3 | 1 << 4;

/// `PAGE_IS_GUARD`.
const GUARD: u64 = 1 << 8;

/// The kernel's `struct pm_scan_arg`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ScanArgument {
    /// Bytes of this structure.
    pub size: u64,
    /// `PM_SCAN_*`.
    pub flags: u64,
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
    /// Answer: where the walk ended.
    pub walk_end: u64,
    /// Where the regions go.
    pub regions: u64,
    /// How many fit.
    pub regions_max: u64,
    /// 0, or how many pages are enough.
    pub pages_max: u64,
    /// Categories that count when they are absent.
    pub inverted: u64,
    /// Categories that must all hold.
    pub all_of: u64,
    /// Categories of which one must hold.
    pub any_of: u64,
    /// Categories to tell of.
    pub told: u64,
}

const _: () = assert!(size_of::<ScanArgument>() == 96);

impl ScanArgument {
    /// CRIU asks three things: whether the kernel knows the call (an empty range), where guard regions are (no content),
    /// and, before it copies memory, where there is content. Only the last one is answered differently.
    #[must_use]
    pub fn asks_for_content(&self) -> bool {
        self.any_of & HAS_CONTENT == HAS_CONTENT && self.start < self.end
    }

    /// The question for one guard region in the same range, where the asker does not know of such: CRIU before 4.2 cannot
    /// put them back, and must be let find out, which ends its dump. `region` is the address of three words.
    #[must_use]
    pub fn for_guards(&self, region: u64) -> Option<Self> {
        let question = Self {
            size: size_of::<Self>() as u64,
            start: self.start,
            end: self.end,
            regions: region,
            regions_max: 1,
            pages_max: 1,
            all_of: GUARD,
            told: GUARD,
            ..Self::default()
        };
        (self.told & GUARD == 0).then_some(question)
    }

    /// Answers that there is nothing.
    pub fn answer_nothing(&mut self) {
        self.walk_end = self.end;
    }
}

#[cfg(test)]
mod tests {
    use super::{HAS_CONTENT, ScanArgument};

    #[test]
    fn only_the_question_for_content_is_answered_differently() {
        let probe = ScanArgument {
            any_of: HAS_CONTENT,
            ..ScanArgument::default()
        };
        let guards = ScanArgument {
            end: 1 << 47,
            all_of: 1 << 8,
            ..ScanArgument::default()
        };
        assert!(!probe.asks_for_content() && !guards.asks_for_content());
        let mut content = ScanArgument {
            start: 4096,
            end: 8192,
            ..probe
        };
        assert!(content.asks_for_content());
        assert_eq!(content.for_guards(0).map(|guards| guards.end), Some(8192));
        let knowing = ScanArgument {
            told: 1 << 8,
            ..content
        };
        assert!(knowing.for_guards(0).is_none());
        content.answer_nothing();
        assert_eq!(content.walk_end, 8192);
    }
}
