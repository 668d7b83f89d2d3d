//! The messages of `proto/proto/tranship/v1`, generated. The `.proto` files carry the documentation.

#![allow(
    missing_docs,
    unsafe_code,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]

include!(concat!(env!("OUT_DIR"), "/tranship.v1.rs"));
