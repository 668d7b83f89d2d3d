//! The archive as a file that has no name: it is gone when the import ends, however it ends.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest as _, Sha256};
use tranship_proto::ids::Digest;

use super::decompress::decompress;
use super::error::{ExtractError, ImportError};
use super::room::Room;

const BUFFER_BYTES: usize = 256 << 10;

/// An archive, decompressed.
pub(super) struct Spool {
    file: File,
    /// Its length.
    pub bytes: u64,
    /// The hash of all of it: for a root file system the layer's.
    pub digest: Digest,
}

impl Spool {
    /// Reads the stream to its end.
    pub(super) fn fill(reader: impl Read, directory: &Path) -> Result<Self, ImportError> {
        let spool = |source| ImportError::Spool {
            directory: directory.to_owned(),
            source,
        };
        let io = |source| {
            spool(ExtractError::File {
                action: "write to",
                path: "the spool".to_owned(),
                source,
            })
        };
        let mut file = tempfile::tempfile_in(directory).map_err(io)?;
        let mut room = Room::of(file.try_clone().map_err(io)?.into());
        let mut stream = decompress(reader)?;
        let mut hash = Sha256::new();
        let mut bytes = 0_u64;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let length = match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(ImportError::Read { source }),
            };
            let part = buffer.get(..length).unwrap_or_default();
            room.take(length as u64).map_err(spool)?;
            file.write_all(part).map_err(io)?;
            hash.update(part);
            bytes += length as u64;
        }
        Ok(Self {
            file,
            bytes,
            digest: Digest::from_sha256(&hash.finalize().into()),
        })
    }

    /// Some of it, from `offset` on.
    pub(super) fn part(&self, offset: u64, bytes: u64) -> Part<'_> {
        Part {
            file: &self.file,
            begin: offset,
            at: 0,
            bytes,
        }
    }

    /// All of it.
    pub(super) fn whole(&self) -> Part<'_> {
        self.part(0, self.bytes)
    }
}

/// A stretch of the spool, with a position of its own.
pub(super) struct Part<'a> {
    file: &'a File,
    begin: u64,
    at: u64,
    bytes: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.bytes.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let place = self
            .begin
            .checked_add(self.at)
            .ok_or(io::ErrorKind::InvalidInput)?;
        let length = self
            .file
            .read_at(buffer.get_mut(..wanted).unwrap_or_default(), place)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.bytes.checked_add_signed(by),
        };
        // Beyond the end nothing is read, and whoever expects more finds it missing.
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
