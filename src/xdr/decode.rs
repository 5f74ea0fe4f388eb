//! Bounded decoding of a received record.

use bytes::{Buf, Bytes};

use super::padding;

/// Why a record did not decode. Each names the field, so that a log line says
/// what the peer got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The record ended before the field did.
    #[error("record ends inside {0}")]
    Short(&'static str),
    /// A length or count is larger than the field allows.
    #[error("{0} is too long")]
    TooLong(&'static str),
    /// A value that the protocol does not define.
    #[error("{0} has an undefined value")]
    Invalid(&'static str),
}

/// Reads XDR items off the front of a record.
#[derive(Clone, Debug)]
pub struct Decoder {
    rest: Bytes,
}

impl Decoder {
    /// Starts at the front of `record`.
    pub fn new(record: Bytes) -> Self {
        Self { rest: record }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Unsigned 32-bit integer.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        if self.rest.len() < 4 {
            return Err(DecodeError::Short(field));
        }
        Ok(self.rest.get_u32())
    }

    /// Unsigned hyper.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        if self.rest.len() < 8 {
            return Err(DecodeError::Short(field));
        }
        Ok(self.rest.get_u64())
    }

    /// Signed hyper.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, DecodeError> {
        self.u64(field).map(u64::cast_signed)
    }

    /// Boolean. RFC 4506 §4.4 allows 0 and 1 only; other values are taken as
    /// true, as every implementation does.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        self.u32(field).map(|v| v != 0)
    }

    /// Opaque data of fixed length.
    pub fn fixed<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        if self.rest.len() < N + padding(N) {
            return Err(DecodeError::Short(field));
        }
        let mut out = [0; N];
        self.rest.copy_to_slice(&mut out);
        self.rest.advance(padding(N));
        Ok(out)
    }

    /// Opaque data of variable length, at most `max` bytes, as a slice of the
    /// record.
    pub fn opaque(&mut self, field: &'static str, max: usize) -> Result<Bytes, DecodeError> {
        let len = self.u32(field)? as usize;
        if len > max {
            return Err(DecodeError::TooLong(field));
        }
        if self.rest.len() < len {
            return Err(DecodeError::Short(field));
        }
        let data = self.rest.split_to(len);
        // Some servers leave out the padding of the very last field.
        self.rest.advance(padding(len).min(self.rest.len()));
        Ok(data)
    }

    /// The count of an array whose elements take at least `element` bytes
    /// each: what cannot fit into the rest of the record is refused, so the
    /// caller may allocate for the count.
    pub fn count(&mut self, field: &'static str, element: usize) -> Result<usize, DecodeError> {
        let count = self.u32(field)? as usize;
        if count > self.rest.len() / element.max(1) {
            return Err(DecodeError::TooLong(field));
        }
        Ok(count)
    }

    /// Splits off the next `len` bytes (plus padding) as a decoder of its own.
    pub fn sub(&mut self, field: &'static str, max: usize) -> Result<Self, DecodeError> {
        self.opaque(field, max).map(Self::new)
    }

    /// The rest of the record.
    pub fn into_rest(self) -> Bytes {
        self.rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoder(data: &'static [u8]) -> Decoder {
        Decoder::new(Bytes::from_static(data))
    }

    #[test]
    fn a_length_beyond_the_record_is_refused_before_anything_is_allocated() {
        let mut dec = decoder(&[0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4]);
        assert_eq!(
            dec.opaque("data", usize::MAX),
            Err(DecodeError::Short("data"))
        );
        let mut dec = decoder(&[0x3b, 0x9a, 0xca, 0x00, 0, 0, 0, 0]);
        assert_eq!(dec.count("words", 4), Err(DecodeError::TooLong("words")));
    }

    #[test]
    fn a_length_beyond_the_fields_limit_is_refused() {
        let mut dec = decoder(&[0, 0, 0, 5, 1, 2, 3, 4, 5, 0, 0, 0]);
        assert_eq!(dec.opaque("fh", 4), Err(DecodeError::TooLong("fh")));
    }

    #[test]
    fn padding_is_skipped_whatever_it_holds() {
        let mut dec = decoder(&[0, 0, 0, 1, 7, 9, 9, 9, 0, 0, 0, 2]);
        assert_eq!(dec.opaque("a", 8).unwrap().as_ref(), [7]);
        assert_eq!(dec.u32("b"), Ok(2));
        assert_eq!(dec.remaining(), 0);
    }

    #[test]
    fn every_item_ends_with_an_error_when_the_record_is_short() {
        assert_eq!(decoder(&[0, 0, 0]).u32("x"), Err(DecodeError::Short("x")));
        assert_eq!(decoder(&[0; 7]).u64("x"), Err(DecodeError::Short("x")));
        assert_eq!(
            decoder(&[0; 11]).fixed::<12>("x"),
            Err(DecodeError::Short("x"))
        );
    }
}
