//! What a container wrote: `container.log` in its bundle, one JSON object a record, as in Docker's `json-file`.
//!
//! ```text
//!   {"log":"a line\n","stream":"stdout","time":"2026-01-02T03:04:05.678901234Z"}
//!   {"log":"no line end yet","stream":"stderr","time":"..."}
//!   {"log":"not \ufffd UTF-8\n","hex":"6e6f7420ff205554462d380a","stream":"stdout","time":"..."}
//! ```
//!
//! A record whose text does not end a line is continued by the stream's next one: a line of more than 16 KiB is cut, and
//! one that is not ended is written after a quarter of a second. Bytes that are not UTF-8 are kept exactly in `hex`, beside a
//! text for people. `record` is the form, `tail` finds the last lines, `read` gives them, and those to come.

mod read;
pub(crate) mod record;
mod tail;

pub use read::{LogOptions, read};
