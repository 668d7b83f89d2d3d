//! One record of a log.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tranship_proto::v1::{LogChunk, OutputStream};

/// Longest text of a record; longer lines are cut. Docker's size.
pub(crate) const MAX_TEXT_BYTES: usize = 16 << 10;

/// Longest record that is read: every byte of a text escaped, and its hexadecimal form.
pub(crate) const MAX_RECORD_BYTES: usize = 10 * MAX_TEXT_BYTES;

#[derive(Debug, Serialize, Deserialize)]
struct Record<'a> {
    log: Cow<'a, str>,
    /// The bytes, where `log` could not hold them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
    stream: Cow<'a, str>,
    time: Cow<'a, str>,
}

/// Appends a record of `text` to `to`, with its line end.
pub(crate) fn encode(to: &mut Vec<u8>, stream: &str, text: &[u8], time: &str) {
    let log = String::from_utf8_lossy(text);
    let hex = matches!(log, Cow::Owned(_)).then(|| to_hex(text));
    let record = Record {
        log,
        hex,
        stream: stream.into(),
        time: time.into(),
    };
    // Texts cannot fail to be written as JSON; if one did, the record would be empty and skipped by readers.
    to.extend(serde_json::to_vec(&record).unwrap_or_default());
    to.push(b'\n');
}

/// The record in `line`; none if it is not one, as after a crash of the machine.
pub(crate) fn decode(line: &[u8]) -> Option<LogChunk> {
    let record: Record<'_> = serde_json::from_slice(line).ok()?;
    let stream = match record.stream.as_ref() {
        "stdout" => OutputStream::Stdout,
        "stderr" => OutputStream::Stderr,
        _ => return None,
    };
    let data = match &record.hex {
        Some(hex) => from_hex(hex)?,
        None => record.log.into_owned().into_bytes(),
    };
    let time: jiff::Timestamp = record.time.parse().ok()?;
    Some(LogChunk {
        stream: stream.into(),
        data,
        time_ms: time.as_millisecond(),
    })
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2);
    pairs
        .map(|pair| {
            u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16)
                .ok()
                .filter(|_| pair.len() == 2)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TIME: &str = "2026-01-02T03:04:05.678901234Z";

    #[test]
    fn the_form_on_disk_is_dockers() {
        let mut line = Vec::new();
        encode(&mut line, "stdout", b"say \"hi\"\n", TIME);
        let expected = r#"{"log":"say \"hi\"\n","stream":"stdout","time":"2026-01-02T03:04:05.678901234Z"}"#;
        assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn a_damaged_record_is_none() {
        for line in [
            &b""[..],
            b"{",
            b"\0\0\0\0",
            br#"{"log":"x","stream":"stdin","time":"2026-01-02T03:04:05Z"}"#,
            br#"{"log":"x","stream":"stdout","time":"yesterday"}"#,
            br#"{"log":"x","hex":"abc","stream":"stdout","time":"2026-01-02T03:04:05Z"}"#,
            br#"{"log":"x","hex":"zz","stream":"stdout","time":"2026-01-02T03:04:05Z"}"#,
        ] {
            assert_eq!(decode(line), None, "{}", String::from_utf8_lossy(line));
        }
    }

    proptest! {
        #[test]
        fn every_byte_survives(text: Vec<u8>) {
            let mut line = Vec::new();
            encode(&mut line, "stderr", &text, TIME);
            prop_assert!(line.len() < MAX_RECORD_BYTES);
            prop_assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1);
            let chunk = decode(&line).unwrap();
            prop_assert_eq!(&chunk.data[..], &text[..]);
            prop_assert_eq!(chunk.stream(), OutputStream::Stderr);
            prop_assert_eq!(chunk.time_ms % 1000, 678);
        }
    }

    #[test]
    fn the_longest_text_fits_the_longest_record() {
        for worst in [0x01, 0xff] {
            let mut line = Vec::new();
            encode(&mut line, "stdout", &[worst; MAX_TEXT_BYTES], TIME);
            assert!(line.len() <= MAX_RECORD_BYTES, "{worst}: {}", line.len());
        }
    }
}
