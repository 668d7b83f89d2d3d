//! Paths of a tree: relative, `/` between components, as bytes.

use tranship_proto::limits::MAX_PATH_BYTES;

use super::error::Refusal;

/// Longest component, as Linux has it.
pub const MAX_COMPONENT_BYTES: usize = 255;

/// Checks a path that a peer sent: after this, no component leads anywhere but one level down.
///
/// # Errors
/// [`Refusal`] for an empty path, an absolute one, an empty, `.` or `..` component, a NUL byte, and anything too long.
pub fn check(path: &[u8]) -> Result<(), Refusal> {
    if path.len() >= MAX_PATH_BYTES {
        return Err(Refusal::TooLong);
    }
    if path.first() == Some(&b'/') {
        return Err(Refusal::Absolute);
    }
    if path.contains(&0) {
        return Err(Refusal::Nul);
    }
    path.split(|&byte| byte == b'/')
        .try_for_each(|component| match component {
            b"" => Err(Refusal::EmptyComponent),
            b"." | b".." => Err(Refusal::DotComponent),
            long if long.len() > MAX_COMPONENT_BYTES => Err(Refusal::TooLong),
            _ => Ok(()),
        })
}

/// The directory a path lies in (empty: the root) and its last component.
#[must_use]
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Whether `path` is `directory` or lies below it.
#[must_use]
pub fn is_within(path: &[u8], directory: &[u8]) -> bool {
    directory.is_empty()
        || path
            .strip_prefix(directory)
            .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_that_could_leave_the_root_is_refused() {
        assert_eq!(check(b"/etc/passwd"), Err(Refusal::Absolute));
        assert_eq!(check(b"a/../../b"), Err(Refusal::DotComponent));
        assert_eq!(check(b".."), Err(Refusal::DotComponent));
        assert_eq!(check(b"./a"), Err(Refusal::DotComponent));
        assert_eq!(check(b"a//b"), Err(Refusal::EmptyComponent));
        assert_eq!(check(b"a/"), Err(Refusal::EmptyComponent));
        assert_eq!(check(b""), Err(Refusal::EmptyComponent));
        assert_eq!(check(b"a\0b"), Err(Refusal::Nul));
        assert_eq!(check(&[b'x'; 256]), Err(Refusal::TooLong));
        assert_eq!(check(&b"x/".repeat(2048)), Err(Refusal::TooLong));
    }

    #[test]
    fn odd_names_are_names() {
        for good in [
            &b"a\nb"[..],
            b"\xff\xfe",
            b"...",
            b"..a",
            b"-rf",
            b"a b/c\\d",
            &[b'x'; 255],
        ] {
            assert_eq!(check(good), Ok(()), "{}", good.escape_ascii());
        }
    }

    #[test]
    fn a_sibling_with_the_same_beginning_is_not_within() {
        assert!(is_within(b"a/b", b"a"));
        assert!(is_within(b"a", b"a"));
        assert!(is_within(b"a", b""));
        assert!(!is_within(b"ab", b"a"));
        assert!(!is_within(b"a", b"a/b"));
    }

    proptest! {
        #[test]
        fn a_checked_path_joins_again_from_its_split(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            if check(&path).is_ok() {
                let (parent, name) = split(&path);
                prop_assert!(!name.is_empty() && !name.contains(&b'/'));
                prop_assert!(is_within(&path, parent));
                prop_assert_eq!(path.len(), parent.len() + name.len() + usize::from(!parent.is_empty()));
            }
        }
    }
}
