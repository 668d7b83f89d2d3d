//! Paths put together without the standard library.

use core::ffi::c_char;

/// Longest path, with its closing zero.
const MAX: usize = 256;

/// A path that ends with a zero byte. One that does not fit is empty and stays so.
#[derive(Clone, Copy)]
pub struct Path {
    bytes: [u8; MAX],
    length: usize,
}

impl Path {
    /// An empty path, to which something can be added.
    pub const fn new() -> Self {
        Self {
            bytes: [0; MAX],
            length: 0,
        }
    }

    /// The path with `part` behind it.
    pub fn with(mut self, part: &[u8]) -> Self {
        let end = self.length + part.len();
        let fits = self.is_open() && end < MAX;
        let place = self.bytes.get_mut(self.length..end).filter(|_| fits);
        if let Some(place) = place {
            for (to, from) in place.iter_mut().zip(part) {
                *to = *from;
            }
            self.length = end;
        } else {
            self.bytes = [0; MAX];
            self.length = MAX;
        }
        self
    }

    /// The path with a number behind it; one that is negative does not fit.
    pub fn with_number(self, number: i32) -> Self {
        let Ok(mut left) = u32::try_from(number) else {
            return self.with(&[0; MAX]);
        };
        let mut digits = [b'0'; 10];
        let mut first = digits.len();
        for (index, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (left % 10) as u8;
            left /= 10;
            first = index;
            if left == 0 {
                break;
            }
        }
        self.with(digits.get(first..).unwrap_or_default())
    }

    /// Whether everything fitted and there is anything.
    pub fn is_whole(&self) -> bool {
        self.is_open() && self.length > 0
    }

    /// For C.
    pub fn as_ptr(&self) -> *const c_char {
        self.bytes.as_ptr().cast()
    }

    const fn is_open(&self) -> bool {
        self.length < MAX
    }
}

/// Whether these are digits alone.
pub fn is_number(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::Path;
    use std::ffi::CStr;

    fn text(path: &Path) -> String {
        let bytes = CStr::from_bytes_until_nul(&path.bytes).unwrap();
        bytes.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_path_is_whole_or_empty() {
        let path = Path::new().with(b"/proc/").with_number(120);
        assert_eq!(text(&path), "/proc/120");
        assert_eq!(text(&path.with(b"/").with_number(0)), "/proc/120/0");
        assert_eq!(text(&Path::new().with_number(i32::MAX)), "2147483647");
        assert!(path.is_whole() && !Path::new().is_whole());
        for long in [path.with(&[b'x'; 247]), path.with_number(-1)] {
            assert!(!long.with(b"y").is_whole());
            assert_eq!(text(&long.with(b"y")), "");
        }
        assert!(path.with(&[b'x'; 246]).is_whole());
    }
}
