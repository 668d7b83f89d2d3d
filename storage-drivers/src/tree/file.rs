//! The content of one file, hole by hole.

use std::os::fd::OwnedFd;

use rustix::buffer::spare_capacity;
use rustix::fs::{SeekFrom, Stat, seek};
use rustix::io::{Errno, pread};
use tranship_proto::limits::MAX_DATA_BYTES;

use super::TreePart;
use super::error::{Context, TreeError, shown};

/// A file that is being read.
pub(super) struct FileData {
    fd: OwnedFd,
    path: Vec<u8>,
    size: u64,
    position: u64,
    /// End of the stretch of data that `position` lies in.
    data_end: u64,
}

impl FileData {
    pub(super) fn new(fd: OwnedFd, path: Vec<u8>, stat: &Stat) -> Self {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        Self {
            fd,
            path,
            size,
            position: 0,
            data_end: 0,
        }
    }

    /// The next piece of data; `None` at the end of the file. The size is the one of the entry: what is appended
    /// meanwhile does not count.
    pub(super) fn next_piece(&mut self) -> Result<Option<TreePart>, TreeError> {
        if self.position >= self.size || (self.position >= self.data_end && !self.find_data()?) {
            return Ok(None);
        }
        let offset = self.position;
        let length = (self.data_end - offset).min(u64::from(MAX_DATA_BYTES));
        let bytes = self.read(offset, usize::try_from(length).unwrap_or(0))?;
        self.position += length;
        Ok(Some(TreePart::Data { offset, bytes }))
    }

    /// Moves to the next stretch of data; false when only a hole is left.
    ///
    /// The number of blocks would not do to tell a file without holes: those of its attributes count as well.
    fn find_data(&mut self) -> Result<bool, TreeError> {
        // Most files begin with data, and most of those have no hole: one question answers both.
        if self.position == 0 && self.find_end(0)? {
            return Ok(true);
        }
        self.position = match seek(&self.fd, SeekFrom::Data(self.position)) {
            Ok(start) if start < self.size => start,
            Ok(_) | Err(Errno::NXIO) => return Ok(false),
            Err(error) => return Err(error).context("find the data of", &self.path),
        };
        if self.find_end(self.position)? {
            return Ok(true);
        }
        // Punched or cut since the last question.
        Err(TreeError::Changed {
            path: shown(&self.path),
        })
    }

    /// Finds the end of the data at `start`; false when there are none.
    fn find_end(&mut self, start: u64) -> Result<bool, TreeError> {
        match seek(&self.fd, SeekFrom::Hole(start)) {
            Ok(end) => self.data_end = end.min(self.size),
            Err(Errno::NXIO) => {
                return Err(TreeError::Changed {
                    path: shown(&self.path),
                });
            }
            Err(error) => return Err(error).context("find the holes of", &self.path),
        }
        Ok(self.data_end > start)
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, TreeError> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let at = offset + bytes.len() as u64;
            match pread(&self.fd, spare_capacity(&mut bytes), at) {
                Ok(0) => {
                    return Err(TreeError::Changed {
                        path: shown(&self.path),
                    });
                }
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("read", &self.path),
            }
        }
        bytes.truncate(length);
        Ok(bytes)
    }
}
