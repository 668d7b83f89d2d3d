//! Any bytes as the payload of a frame of pages: refused, or runs in order with exactly their content.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tranship_proto::pages::{Pages, encode_table};

fuzz_target!(|payload: &[u8]| {
    if let Ok(pages) = Pages::decode(payload) {
        let mut again = encode_table(pages.process, &pages.runs);
        again.extend_from_slice(pages.data);
        assert_eq!(again, payload);
    }
});
