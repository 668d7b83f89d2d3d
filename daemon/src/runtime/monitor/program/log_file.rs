//! Appending to the log. A container never waits for it longer than one write takes: a disk that is full loses output, and
//! says so in the log when it is not full any more.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::super::logs::record::{self, MAX_TEXT_BYTES};

/// How long a line may stay without its end before it is written as it is, so that a prompt is seen.
const PARTIAL_AFTER: Duration = Duration::from_millis(250);

/// Which output of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// A line that has not ended yet; never longer than a record.
#[derive(Default)]
struct Partial {
    bytes: Vec<u8>,
    since: Option<Instant>,
}

/// The log of a container, written by its monitor alone.
pub(super) struct LogFile {
    file: File,
    stdout: Partial,
    stderr: Partial,
    lost_bytes: u64,
    /// Whether the last write ended in the middle of a record.
    torn: bool,
}

impl LogFile {
    /// Opens the log to append to it; it outlives the container's stay on another host.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .mode(0o640)
            .open(path)?;
        let torn = !ends_a_record(&file)?;
        Ok(Self {
            file,
            stdout: Partial::default(),
            stderr: Partial::default(),
            lost_bytes: 0,
            torn,
        })
    }

    /// Takes what the container wrote: whole lines go to the file, the beginning of another is kept for a moment.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let time = jiff::Timestamp::now().to_string();
        let mut records = Vec::with_capacity(bytes.len() + 256);
        let partial = self.partial(stream);
        for part in bytes.split_inclusive(|&byte| byte == b'\n') {
            let mut part = part;
            while !part.is_empty() {
                let room = MAX_TEXT_BYTES - partial.bytes.len();
                let (now, later) = part.split_at(room.min(part.len()));
                partial.bytes.extend_from_slice(now);
                part = later;
                if partial.bytes.len() == MAX_TEXT_BYTES || partial.bytes.ends_with(b"\n") {
                    record::encode(&mut records, stream.name(), &partial.bytes, &time);
                    partial.bytes.clear();
                }
            }
        }
        partial.since = if partial.bytes.is_empty() {
            None
        } else {
            partial.since.or_else(|| Some(Instant::now()))
        };
        self.append(&records, bytes.len());
    }

    /// When [`LogFile::flush_due`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        [self.stdout.since, self.stderr.since]
            .into_iter()
            .flatten()
            .min()
            .map(|since| since + PARTIAL_AFTER)
    }

    /// Writes the beginnings of lines that have waited long enough.
    pub(super) fn flush_due(&mut self, now: Instant) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = self.partial(stream);
            if partial.since.is_some_and(|since| now >= since + PARTIAL_AFTER) {
                self.flush(stream);
            }
        }
    }

    /// Writes everything that is left.
    pub(super) fn finish(&mut self) {
        self.flush(Stream::Stdout);
        self.flush(Stream::Stderr);
    }

    fn flush(&mut self, stream: Stream) {
        let text = std::mem::take(&mut self.partial(stream).bytes);
        self.partial(stream).since = None;
        if !text.is_empty() {
            let mut record = Vec::new();
            record::encode(
                &mut record,
                stream.name(),
                &text,
                &jiff::Timestamp::now().to_string(),
            );
            self.append(&record, text.len());
        }
    }

    fn partial(&mut self, stream: Stream) -> &mut Partial {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn append(&mut self, records: &[u8], byte_count: usize) {
        if records.is_empty() {
            return;
        }
        let mut whole = Vec::new();
        if self.torn {
            whole.push(b'\n');
        }
        if self.lost_bytes > 0 {
            let note = format!(
                "[{} bytes of output were lost: the log could not be written]\n",
                self.lost_bytes
            );
            record::encode(
                &mut whole,
                "stderr",
                note.as_bytes(),
                &jiff::Timestamp::now().to_string(),
            );
        }
        whole.extend_from_slice(records);
        match self.file.write_all(&whole) {
            Ok(()) => {
                self.torn = false;
                self.lost_bytes = 0;
            }
            Err(_) => {
                self.torn = true;
                self.lost_bytes += byte_count as u64;
            }
        }
    }
}

fn ends_a_record(file: &File) -> io::Result<bool> {
    let Some(last) = file.metadata()?.len().checked_sub(1) else {
        return Ok(true);
    };
    let mut byte = [0];
    file.read_exact_at(&mut byte, last)?;
    Ok(byte == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(path: &Path) -> Vec<String> {
        let bytes = std::fs::read(path).unwrap();
        let chunks = bytes.split(|&byte| byte == b'\n').filter_map(record::decode);
        chunks
            .map(|chunk| String::from_utf8(chunk.data.to_vec()).unwrap())
            .collect()
    }

    #[test]
    fn lines_are_records_and_a_partial_line_waits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        log.write(Stream::Stdout, b"one\ntwo\nth");
        assert_eq!(records(&path), ["one\n", "two\n"]);
        log.write(Stream::Stderr, b"error\n");
        log.write(Stream::Stdout, b"ree\n");
        assert_eq!(records(&path), ["one\n", "two\n", "error\n", "three\n"]);
        assert!(log.due().is_none());
        log.write(Stream::Stdout, b"prompt> ");
        let due = log.due().unwrap();
        log.flush_due(due - Duration::from_millis(1));
        assert_eq!(records(&path).len(), 4);
        log.flush_due(due);
        assert_eq!(records(&path).last().unwrap(), "prompt> ");
    }

    #[test]
    fn a_line_without_end_is_cut_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        let long = "x".repeat(40_000);
        log.write(Stream::Stdout, long.as_bytes());
        log.finish();
        let records = records(&path);
        assert_eq!(
            records.iter().map(String::len).collect::<Vec<_>>(),
            [16_384, 16_384, 7_232]
        );
        assert_eq!(records.concat(), long);
    }

    #[test]
    fn a_torn_record_of_an_earlier_writer_does_not_spoil_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, br#"{"log":"to"#).unwrap();
        let mut log = LogFile::open(&path).unwrap();
        log.write(Stream::Stdout, b"after\n");
        assert_eq!(records(&path), ["after\n"]);
    }

    #[test]
    fn a_full_disk_loses_output_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = LogFile::open(&path).unwrap();
        let good = std::mem::replace(
            &mut log.file,
            OpenOptions::new().write(true).open("/dev/full").unwrap(),
        );
        log.write(Stream::Stdout, b"gone\n");
        log.file = good;
        log.write(Stream::Stdout, b"here\n");
        assert_eq!(
            records(&path),
            [
                "[5 bytes of output were lost: the log could not be written]\n",
                "here\n"
            ]
        );
    }
}
