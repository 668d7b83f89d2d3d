//! What all of CRIU's images have in common: two magic numbers, then messages, each behind its length.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use prost::Message;

use super::ImageError;

/// First word of every image.
const COMMON: u32 = 0x5456_4319;

/// Largest image that is read: a page map of six million runs of pages.
const MAX_IMAGE: u64 = 128 << 20;

/// A kind of image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its second word.
    magic: u32,
    /// Its longest message.
    max_message: u64,
}

/// The areas of an address space: one message, some 60 bytes an area.
pub const MM: Kind = Kind {
    magic: 0x5749_2820,
    max_message: MAX_IMAGE,
};
/// The resident pages: messages of some 20 bytes.
pub const PAGEMAP: Kind = Kind {
    magic: 0x5608_4025,
    max_message: 1 << 10,
};
/// The tree of processes: a message each, with the ids of its threads.
pub const PSTREE: Kind = Kind {
    magic: 0x5027_3030,
    max_message: 4 << 20,
};
/// A thread: one message with its registers.
pub const CORE: Kind = Kind {
    magic: 0x5505_3847,
    max_message: 1 << 20,
};

/// Opens a file as an image is opened: nothing that a name could lead elsewhere, nothing that could wait for a writer.
pub fn open(path: &Path) -> Result<(File, u64), ImageError> {
    let failed = |source| ImageError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(failed(io::ErrorKind::InvalidInput.into()));
    }
    Ok((file, metadata.len()))
}

/// The messages of one image.
pub struct Records<R> {
    reader: R,
    left: u64,
    kind: Kind,
    path: PathBuf,
    buffer: Vec<u8>,
}

impl Records<BufReader<File>> {
    /// Opens an image. `None` where the file is empty: CRIU leaves such ones for what there is nothing to say of.
    pub fn open(path: &Path, kind: Kind) -> Result<Option<Self>, ImageError> {
        let (file, bytes) = open(path)?;
        if bytes == 0 {
            return Ok(None);
        }
        Self::new(BufReader::with_capacity(64 << 10, file), bytes, kind, path).map(Some)
    }
}

impl<R: Read> Records<R> {
    /// Reads the magic numbers of an image of `bytes` bytes.
    pub fn new(reader: R, bytes: u64, kind: Kind, path: &Path) -> Result<Self, ImageError> {
        if bytes > MAX_IMAGE {
            return Err(ImageError::TooLarge {
                path: path.to_owned(),
                bytes,
                limit: MAX_IMAGE,
            });
        }
        let mut records = Self {
            reader,
            left: bytes,
            kind,
            path: path.to_owned(),
            buffer: Vec::new(),
        };
        if records.word()? != COMMON || records.word()? != kind.magic {
            return Err(records.malformed("it does not begin with its magic numbers"));
        }
        Ok(records)
    }

    /// The next message; `None` at the end of the image.
    pub fn next<M: Message + Default>(&mut self) -> Result<Option<M>, ImageError> {
        if self.left == 0 {
            return Ok(None);
        }
        let length = u64::from(self.word()?);
        if length > self.left || length > self.kind.max_message {
            return Err(self.malformed("a message is longer than it can be"));
        }
        self.left -= length;
        // Bounded by the size of the file and the kind's own limit, both checked.
        self.buffer.resize(usize::try_from(length).unwrap_or_default(), 0);
        self.reader
            .read_exact(&mut self.buffer)
            .map_err(|source| self.unreadable(source))?;
        M::decode(self.buffer.as_slice())
            .map(Some)
            .map_err(|_| self.malformed("a message is no message"))
    }

    /// The only message.
    pub fn one<M: Message + Default>(mut self) -> Result<M, ImageError> {
        self.next()?.ok_or_else(|| self.malformed("it has no message"))
    }

    /// An error that names this image.
    pub fn malformed(&self, what: &'static str) -> ImageError {
        ImageError::Malformed {
            path: self.path.clone(),
            what,
        }
    }

    fn unreadable(&self, source: io::Error) -> ImageError {
        ImageError::Read {
            path: self.path.clone(),
            source,
        }
    }

    fn word(&mut self) -> Result<u32, ImageError> {
        let mut bytes = [0; 4];
        let Some(left) = self.left.checked_sub(4) else {
            return Err(self.malformed("it ends in the middle of a number"));
        };
        self.left = left;
        self.reader
            .read_exact(&mut bytes)
            .map_err(|source| self.unreadable(source))?;
        Ok(u32::from_le_bytes(bytes))
    }
}

/// Writes images message by message.
pub struct Writer<W: Write> {
    writer: BufWriter<W>,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Writes the magic numbers.
    pub fn new(writer: W, kind: Kind) -> io::Result<Self> {
        let mut writer = BufWriter::with_capacity(64 << 10, writer);
        writer.write_all(&COMMON.to_le_bytes())?;
        writer.write_all(&kind.magic.to_le_bytes())?;
        Ok(Self {
            writer,
            buffer: Vec::new(),
        })
    }

    /// Writes a message.
    pub fn put(&mut self, message: &impl Message) -> io::Result<()> {
        self.buffer.clear();
        // Its buffer grows as needed, which is all that could fail.
        message.encode(&mut self.buffer).map_err(io::Error::other)?;
        let length = u32::try_from(self.buffer.len()).map_err(io::Error::other)?;
        self.writer.write_all(&length.to_le_bytes())?;
        self.writer.write_all(&self.buffer)
    }

    /// Writes what is left.
    pub fn finish(mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
