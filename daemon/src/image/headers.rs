//! A bound on what a tar parser reads before it hands out an entry. It reads long names and extended headers into memory
//! as long as they are; here the stream ends them.

use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

use super::limits::MAX_HEADER_BYTES;

/// What may still be read; counts what has been.
#[derive(Clone)]
pub(super) struct Headers {
    left: Rc<Cell<Option<u64>>>,
    position: Rc<Cell<u64>>,
}

/// The reader to give to the parser, and the bound to move it on with.
pub(super) fn guard<R>(inner: R) -> (Guarded<R>, Headers) {
    let headers = Headers {
        left: Rc::new(Cell::new(None)),
        position: Rc::new(Cell::new(0)),
    };
    (
        Guarded {
            inner,
            headers: headers.clone(),
        },
        headers,
    )
}

impl Headers {
    /// The next entry, if its headers are not longer than any file's.
    pub(super) fn next<T>(&self, entries: &mut impl Iterator<Item = io::Result<T>>) -> Option<io::Result<T>> {
        self.left.set(Some(MAX_HEADER_BYTES));
        let entry = entries.next();
        self.left.set(None);
        entry
    }

    /// Bytes read by now.
    pub(super) fn position(&self) -> u64 {
        self.position.get()
    }
}

/// A reader with a bound.
pub(super) struct Guarded<R> {
    inner: R,
    headers: Headers,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        if let Some(left) = self.headers.left.get() {
            let left = left
                .checked_sub(length as u64)
                .ok_or_else(|| io::Error::other(format!("a header of more than {MAX_HEADER_BYTES} bytes")))?;
            self.headers.left.set(Some(left));
        }
        self.headers
            .position
            .set(self.headers.position.get().saturating_add(length as u64));
        Ok(length)
    }
}

impl<R: Seek> Seek for Guarded<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}
