//! The versions of the programs that this crate drives, and the oldest ones it works with.

use std::fmt;

/// The oldest CRIU that restores tasks on Linux 6.13 and later; older ones fail at their start (vDSO layout).
pub const MINIMUM_CRIU: Version = Version {
    major: 4,
    minor: 1,
    patch: 1,
};

/// The oldest runc whose checkpoint hands external network namespaces, cgroup freezer paths and the configuration file
/// annotation on to CRIU the way this crate expects.
pub const MINIMUM_RUNC: Version = Version {
    major: 1,
    minor: 1,
    patch: 0,
};

/// A program's version. Missing parts count as zero; what follows a `-`, `+` or `~` is ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
    /// Third number.
    pub patch: u32,
}

impl Version {
    /// Reads `4.1.1`, `v4.2` or `1.1.5+ds1`; `None` where the text does not start with a number.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix('v').unwrap_or(text);
        let core = text.split(['-', '+', '~', ' ']).next()?;
        let mut parts = core.split('.').map(|part| part.parse::<u32>().ok());
        let major = parts.next()??;
        let minor = match parts.next() {
            Some(part) => part?,
            None => 0,
        };
        let patch = match parts.next() {
            Some(part) => part?,
            None => 0,
        };
        Some(Self { major, minor, patch })
    }

    /// Finds the version in what `criu --version` prints (`Version: 4.2.1`).
    pub fn of_criu(output: &str) -> Option<Self> {
        output
            .lines()
            .find_map(|line| line.strip_prefix("Version:"))
            .and_then(Self::parse)
    }

    /// Finds the version in what `runc --version` prints (`runc version 1.1.5+ds1`).
    pub fn of_runc(output: &str) -> Option<Self> {
        output
            .lines()
            .find_map(|line| line.strip_prefix("runc version "))
            .and_then(Self::parse)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::{MINIMUM_CRIU, MINIMUM_RUNC, Version};

    fn version(major: u32, minor: u32, patch: u32) -> Version {
        Version { major, minor, patch }
    }

    #[test]
    fn what_the_programs_print_is_understood() {
        let criu = "Version: 4.2.1\nGitID: v4.2.1\n";
        assert_eq!(Version::of_criu(criu), Some(version(4, 2, 1)));
        let runc = "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\ngo: go1.19.8\n";
        assert_eq!(Version::of_runc(runc), Some(version(1, 1, 5)));
        assert_eq!(Version::parse("1.3.0-rc.2"), Some(version(1, 3, 0)));
        assert_eq!(Version::parse("v4.2"), Some(version(4, 2, 0)));
    }

    #[test]
    fn nonsense_is_not_a_version() {
        for text in ["", "unknown", "v", "4.x", "4.1.y", "99999999999.1"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert_eq!(Version::of_criu("4.2.1"), None);
        assert_eq!(Version::of_runc("true 9.1\nLicense: version 3 or later"), None);
    }

    #[test]
    fn order_is_numeric_and_the_minimum_itself_is_enough() {
        assert!(version(4, 10, 0) > version(4, 9, 9));
        assert!(version(4, 1, 1) >= MINIMUM_CRIU);
        assert!(version(4, 1, 0) < MINIMUM_CRIU);
        assert!(version(1, 0, 9) < MINIMUM_RUNC);
    }
}
