//! Frames that reached the source after the container had left its network there: carried along, and handed over first.

use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::error::NetworkError;

/// Most frames that are carried along.
pub(super) const MOST_FRAMES: usize = 4096;

/// Most bytes of them.
pub(super) const MOST_BYTES: usize = 1 << 20;

/// Before each frame its length, little-endian.
const LENGTH_BYTES: usize = 4;

/// Longest file of them.
const MOST_FILE_BYTES: usize = MOST_BYTES + MOST_FRAMES * LENGTH_BYTES;

/// Writes frames to a file.
///
/// # Errors
/// It cannot be written.
pub fn save_arrivals(path: &Path, frames: &[Vec<u8>]) -> Result<(), NetworkError> {
    let mut bytes = Vec::new();
    for frame in frames {
        bytes.extend_from_slice(&(frame.len() as u32).to_le_bytes());
        bytes.extend_from_slice(frame);
    }
    std::fs::write(path, bytes).map_err(|source| NetworkError::File {
        what: "write",
        path: path.to_owned(),
        source,
    })
}

/// Reads a file that another host has written; without one there are none.
///
/// # Errors
/// It is longer than it may be, is cut short, or cannot be read.
pub fn load_arrivals(path: &Path) -> Result<Vec<Vec<u8>>, NetworkError> {
    let bytes = read(path, MOST_FILE_BYTES)?;
    parse(&bytes).ok_or_else(|| NetworkError::File {
        what: "make sense of the frames in",
        path: path.to_owned(),
        source: std::io::ErrorKind::InvalidData.into(),
    })
}

/// A file of another host's making, of so many bytes at most; nothing when there is none.
pub(super) fn read(path: &Path, most: usize) -> Result<Vec<u8>, NetworkError> {
    let failed = |source| NetworkError::File {
        what: "read",
        path: path.to_owned(),
        source,
    };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => std::fs::File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(Vec::new()),
        Err(error) => return Err(failed(error.into())),
    };
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, most as u64 + 1), &mut bytes)
        .map_err(failed)?;
    if bytes.len() > most {
        return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

fn parse(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
        let (frame, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
        frames.push(frame.to_vec());
        bytes = rest;
    }
    (frames.len() <= MOST_FRAMES).then_some(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_as_they_went_in_and_a_file_cut_short_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arrivals");
        assert_eq!(load_arrivals(&path).unwrap(), Vec::<Vec<u8>>::new());
        let frames = vec![b"one".to_vec(), vec![], vec![7; 1514]];
        save_arrivals(&path, &frames).unwrap();
        assert_eq!(load_arrivals(&path).unwrap(), frames);
        let whole = std::fs::read(&path).unwrap();
        let ends = [0, 7, 11, whole.len()];
        for length in (0..whole.len()).filter(|length| !ends.contains(length)) {
            assert_eq!(parse(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn a_file_with_too_much_in_it_is_refused() {
        assert_eq!(parse(&[0; 4 * MOST_FRAMES + 4]), None);
        assert!(parse(&[0; 4 * MOST_FRAMES]).is_some());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("arrivals");
        std::fs::write(&path, vec![0; MOST_FILE_BYTES + 1]).unwrap();
        assert!(load_arrivals(&path).is_err());
    }
}
