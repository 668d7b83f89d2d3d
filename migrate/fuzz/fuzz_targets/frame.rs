//! Any sixteen bytes: refused, or a header that encodes to the same bytes and keeps every limit.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tranship_proto::frame::{FrameHeader, HEADER_BYTES};

fuzz_target!(|bytes: [u8; HEADER_BYTES]| {
    if let Ok(header) = FrameHeader::decode(&bytes) {
        assert_eq!(header.encode(), bytes);
        assert!(header.length <= header.kind.max_length());
    }
});
