//! External Data Representation (RFC 4506), the part that NFSv4.1 uses.
//!
//! Encoding appends to one growing buffer. Decoding walks over a received
//! record and is bounded by it: a length or count is checked against what is
//! left before anything is allocated, and opaque data come out as slices of
//! the record, uncopied.

mod decode;
mod encode;

pub use decode::{DecodeError, Decoder};
pub use encode::Encoder;

/// Bytes of padding that follow `len` bytes of opaque data (RFC 4506 §4.10).
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}
