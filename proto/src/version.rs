//! Which protocol two hosts speak. The version travels outside every versioned message, so it can be read first.

/// Versions this build speaks, oldest first.
///
/// 1: stop and copy; trees over one data stream.
pub const SUPPORTED: &[u32] = &[1];

/// The version a new conversation is opened with.
pub const NEWEST: u32 = 1;

/// The newest version in both lists, or `None` where they have none in common.
#[must_use]
pub fn newest_common(ours: &[u32], theirs: &[u32]) -> Option<u32> {
    ours.iter()
        .copied()
        .filter(|version| theirs.contains(version))
        .max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_both_know_is_chosen() {
        assert_eq!(newest_common(&[1, 2, 3], &[2, 3, 4]), Some(3));
        assert_eq!(newest_common(&[3, 1], &[1]), Some(1));
        assert_eq!(newest_common(&[1], &[2]), None);
        assert_eq!(newest_common(&[], &[1]), None);
    }

    #[test]
    fn a_conversation_is_opened_with_a_version_this_build_speaks() {
        assert_eq!(SUPPORTED.iter().max(), Some(&NEWEST));
    }
}
