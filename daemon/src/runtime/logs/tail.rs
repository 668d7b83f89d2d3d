//! The place in a log from which its last lines are read, found from its end.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::record::{self, MAX_RECORD_BYTES};

/// Read at once on the way back.
const BLOCK_BYTES: u64 = 4096;

/// The offset of the record that begins the last `lines` lines of a log of `length` bytes. Lines of two streams that
/// are cut in records count as one each time they change.
pub(super) fn start_of_last(file: &File, length: u64, lines: u64) -> io::Result<u64> {
    let mut start = length;
    let mut seen = 0;
    while start > 0 {
        let begins = record_start(file, start)?;
        // The last one counts whether it ends its line or not.
        if start == length || ends_a_line(file, begins, start)? {
            if seen == lines {
                break;
            }
            seen += 1;
        }
        start = begins;
    }
    Ok(start)
}

/// Where the record begins whose last byte is at `end - 1`.
fn record_start(file: &File, end: u64) -> io::Result<u64> {
    let mut block = [0; BLOCK_BYTES as usize];
    // Its own line end is not the one that is looked for.
    let mut until = end - 1;
    while until > 0 {
        let from = until.saturating_sub(BLOCK_BYTES);
        let bytes = block
            .get_mut(..usize::try_from(until - from).unwrap_or(0))
            .unwrap_or_default();
        file.read_exact_at(bytes, from)?;
        if let Some(at) = bytes.iter().rposition(|&byte| byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        until = from;
    }
    Ok(0)
}

fn ends_a_line(file: &File, begins: u64, end: u64) -> io::Result<bool> {
    let length = usize::try_from(end - begins).unwrap_or(usize::MAX);
    if length > MAX_RECORD_BYTES {
        return Ok(false);
    }
    let mut line = vec![0; length];
    file.read_exact_at(&mut line, begins)?;
    Ok(record::decode(&line).is_some_and(|chunk| chunk.data.last() == Some(&b'\n')))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;

    fn log(texts: &[&str]) -> (File, Vec<u8>) {
        let mut bytes = Vec::new();
        for text in texts {
            record::encode(&mut bytes, "stdout", text.as_bytes(), "2026-01-02T03:04:05Z");
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (file, bytes)
    }

    fn last(texts: &[&str], lines: u64) -> String {
        let (file, bytes) = log(texts);
        let start = start_of_last(&file, bytes.len() as u64, lines).unwrap();
        let rest = &bytes[usize::try_from(start).unwrap()..];
        let chunks = rest.split(|&byte| byte == b'\n').filter_map(record::decode);
        String::from_utf8(chunks.flat_map(|chunk| chunk.data.to_vec()).collect()).unwrap()
    }

    #[test]
    fn the_last_lines_are_whole_lines() {
        let texts = ["a\n", "b1", "b2\n", "c\n"];
        assert_eq!(last(&texts, 0), "");
        assert_eq!(last(&texts, 1), "c\n");
        assert_eq!(last(&texts, 2), "b1b2\nc\n");
        assert_eq!(last(&texts, 9), "a\nb1b2\nc\n");
        assert_eq!(last(&["a\n", "b\n", "open"], 2), "b\nopen");
        assert_eq!(last(&[], 3), "");
    }

    #[test]
    fn a_backslash_before_an_n_is_not_a_line_end() {
        assert_eq!(last(&["a\n", "not\\n", "b\n"], 1), "not\\nb\n");
    }

    proptest! {
        #[test]
        fn as_many_lines_as_asked_for_however_long(
            lengths in proptest::collection::vec(0_usize..9000, 0..12),
            wanted in 0_usize..14,
        ) {
            let lines: Vec<String> = lengths.iter().map(|&length| "x".repeat(length) + "\n").collect();
            let texts: Vec<&str> = lines.iter().map(String::as_str).collect();
            let expected = texts[texts.len().saturating_sub(wanted)..].concat();
            prop_assert_eq!(last(&texts, wanted as u64), expected);
        }
    }
}
