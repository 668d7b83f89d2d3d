//! Owner, mode, time and extended attributes of an entry of a tar archive.

use std::io::{self, Read};

use rustix::fs::{Gid, Mode, Timespec, Uid};
use tar::Entry;

use super::error::ExtractError;
use super::extract::bad_entry;
use super::place::InnerPath;

/// What an entry says about itself beside its content.
pub(super) struct Attributes {
    pub mode: Mode,
    pub owner: (Uid, Gid),
    pub time: Timespec,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Reads them from the header and, where there is one, from the extended header before it.
pub(super) fn read<R: Read>(entry: &mut Entry<'_, R>, path: &InnerPath) -> Result<Attributes, ExtractError> {
    let bad = |what: &str| bad_entry(path, what);
    let header = entry.header();
    let mode = header.mode().map_err(|_| bad("a mode that is no number"))?;
    let id = |number: io::Result<u64>| {
        let number = number.ok().and_then(|number| u32::try_from(number).ok());
        // The highest means "leave it" to the kernel.
        number
            .filter(|number| *number != u32::MAX)
            .ok_or_else(|| bad("an owner that is no id"))
    };
    let owner = (Uid::from_raw(id(header.uid())?), Gid::from_raw(id(header.gid())?));
    let seconds = header.mtime().map_err(|_| bad("a time that is no number"))?;
    let seconds = i64::try_from(seconds).map_err(|_| bad("a time that is no number"))?;
    let mut attributes = Attributes {
        mode: Mode::from_raw_mode(mode & 0o7777),
        owner,
        time: Timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        },
        xattrs: Vec::new(),
    };
    let damaged = |source| ExtractError::Damaged { source };
    let Some(extensions) = entry.pax_extensions().map_err(damaged)? else {
        return Ok(attributes);
    };
    for extension in extensions {
        let extension = extension.map_err(damaged)?;
        let key = extension
            .key()
            .map_err(|_| bad("an extended header that is no text"))?;
        let value = extension.value_bytes();
        if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
            if name.starts_with("trusted.overlay.") {
                return Err(bad("an attribute that belongs to the overlay file system"));
            }
            attributes.xattrs.push((name.to_owned(), value.to_vec()));
        } else if key == "mtime" {
            attributes.time = parse_time(value).ok_or_else(|| bad("a time that is no number"))?;
        } else if key.starts_with("GNU.sparse.") {
            return Err(bad(
                "holes written in a form (PAX) that is not supported: make it without --sparse",
            ));
        }
    }
    Ok(attributes)
}

/// Seconds and a fraction in decimal, as PAX writes them.
fn parse_time(text: &[u8]) -> Option<Timespec> {
    let text = std::str::from_utf8(text).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: i64 = digits.parse().ok()?;
    if seconds.starts_with('-') && nanoseconds > 0 {
        // -1.25 is 0.75 s after -2.
        return Some(Timespec {
            tv_sec: whole.checked_sub(1)?,
            tv_nsec: 1_000_000_000 - nanoseconds,
        });
    }
    Some(Timespec {
        tv_sec: whole,
        tv_nsec: nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_nanosecond_before_and_after_1970() {
        let time = |text: &str| parse_time(text.as_bytes()).map(|time| (time.tv_sec, time.tv_nsec));
        assert_eq!(time("1700000000"), Some((1_700_000_000, 0)));
        assert_eq!(time("12.5"), Some((12, 500_000_000)));
        assert_eq!(time("12.1234567891"), Some((12, 123_456_789)));
        assert_eq!(time("-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time("-3"), Some((-3, 0)));
        assert_eq!((time("x"), time("1.x"), time("")), (None, None, None));
    }
}
