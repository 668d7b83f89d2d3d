//! Compressed or not, told by the first bytes.

use std::io::{self, BufRead, BufReader, Read};

use super::error::ImportError;

/// Largest window of a zstd stream as a power of two: 128 MiB, what `zstd --long` asks for; the reader holds it in memory.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const BUFFER_BYTES: usize = 128 << 10;

/// The stream, decompressed if it is compressed.
pub(super) fn decompress<'a>(reader: impl Read + 'a) -> Result<Box<dyn Read + 'a>, ImportError> {
    let read = |source| ImportError::Read { source };
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
    let begin = fill(&mut reader).map_err(read)?;
    match begin {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(reader).map_err(read)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(read)?;
            Ok(Box::new(decoder))
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Err(ImportError::Compression("xz")),
        [b'B', b'Z', b'h', ..] => Err(ImportError::Compression("bzip2")),
        _ => Ok(Box::new(reader)),
    }
}

/// The first bytes. A reader that gives one byte at a time fills nothing, but nobody's does so here: at the least a whole
/// message of the stream.
fn fill<R: Read>(reader: &mut BufReader<R>) -> io::Result<&[u8]> {
    reader.fill_buf()
}
