//! One layer on its way from an archive into the storage driver.

use std::io::{self, Read};

use sha2::{Digest as _, Sha256};
use tranship_proto::ids::Digest;
use tranship_storage_drivers::driver::{Outcome, StorageDriver};

use super::decompress::decompress;
use super::error::{ExtractError, ImportError};
use super::extract::extract;
use super::limits::MAX_UNPACKED_BYTES;

/// What an archive says about a layer.
pub(super) struct LayerSource {
    /// Its name in the archive.
    pub member: String,
    /// Hash of the bytes in the archive, where it gives one.
    pub blob: Option<Digest>,
    /// Hash of the uncompressed bytes.
    pub diff_id: Digest,
}

/// Brings the layer into the driver unless it is there, and checks both hashes in any case. Answers with its size in
/// uncompressed bytes.
pub(super) fn bring(
    stream: impl Read,
    number: usize,
    source: &LayerSource,
    driver: &dyn StorageDriver,
) -> Result<u64, ImportError> {
    let digest = source.diff_id.to_string();
    let failed = |source| ImportError::Layer {
        number,
        digest: digest.clone(),
        source,
    };
    let damaged = |source| failed(ExtractError::Damaged { source });
    let staged = if driver.has_layer(&source.diff_id)? {
        None
    } else {
        Some(driver.stage_layer(&source.diff_id)?)
    };
    let mut blob = Hashing::new(stream);
    let mut content = Hashing::new(decompress(&mut blob)?.take(MAX_UNPACKED_BYTES));
    if let Some(staged) = &staged {
        extract(&mut content, staged.open()?).map_err(failed)?;
    }
    io::copy(&mut content, &mut io::sink()).map_err(damaged)?;
    let (found, bytes) = content.finish();
    if bytes == MAX_UNPACKED_BYTES {
        return Err(failed(ExtractError::TooMuch {
            what: "unpacked bytes",
            limit: MAX_UNPACKED_BYTES,
        }));
    }
    io::copy(&mut blob, &mut io::sink()).map_err(damaged)?;
    if let Some(expected) = &source.blob {
        check(
            &format!("layer {number} as it is in the archive"),
            expected,
            &blob.finish().0,
        )?;
    }
    check(&format!("layer {number}"), &source.diff_id, &found)?;
    if let Some(staged) = staged {
        let outcome = staged.commit()?;
        tracing::debug!(layer = %found, bytes, new = outcome == Outcome::Changed, "a layer is there");
    }
    Ok(bytes)
}

/// Refuses what is not what it is called.
pub(super) fn check(what: &str, expected: &Digest, found: &Digest) -> Result<(), ImportError> {
    if expected == found {
        return Ok(());
    }
    Err(ImportError::Digest {
        what: what.to_owned(),
        expected: expected.to_string(),
        found: found.to_string(),
    })
}

/// The hash of a few bytes.
pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// A reader that hashes what goes through it.
struct Hashing<R> {
    inner: R,
    hash: Sha256,
    bytes: u64,
}

impl<R> Hashing<R> {
    fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    fn finish(self) -> (Digest, u64) {
        (Digest::from_sha256(&self.hash.finalize().into()), self.bytes)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(buffer.get(..length).unwrap_or_default());
        self.bytes += length as u64;
        Ok(length)
    }
}
