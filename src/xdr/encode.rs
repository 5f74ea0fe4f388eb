//! Encoding into a growing buffer.

use super::padding;

/// Appends XDR items to a buffer.
#[derive(Debug, Default)]
pub struct Encoder {
    buf: Vec<u8>,
}

impl Encoder {
    /// An encoder with room for `capacity` bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            buf: Vec::with_capacity(capacity),
        }
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Nothing was written yet.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.buf
    }

    /// Ends the encoding.
    pub fn into_vec(self) -> Vec<u8> {
        self.buf
    }

    /// Unsigned 32-bit integer.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Unsigned hyper.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Signed hyper.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.buf.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Boolean.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u32(u32::from(value))
    }

    /// Opaque data of fixed length, padded.
    pub fn fixed(&mut self, data: &[u8]) -> &mut Self {
        self.buf.extend_from_slice(data);
        self.pad(data.len())
    }

    /// Opaque data of variable length: count, data, padding. Also strings.
    ///
    /// # Panics
    /// If `data` is longer than an XDR count can say (4 GiB), which no caller
    /// can hold in a request.
    pub fn opaque(&mut self, data: &[u8]) -> &mut Self {
        let len = u32::try_from(data.len()).expect("opaque data of 4 GiB");
        self.u32(len);
        self.fixed(data)
    }

    /// The padding after `len` bytes of opaque data that travel elsewhere.
    pub fn pad(&mut self, len: usize) -> &mut Self {
        self.buf.extend_from_slice(&[0; 3][..padding(len)]);
        self
    }

    /// Overwrites a 32-bit integer written before at byte `at`.
    pub fn patch_u32(&mut self, at: usize, value: u32) {
        self.buf[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_big_endian_and_padded_to_four_bytes() {
        let mut enc = Encoder::default();
        enc.u32(1)
            .u64(2)
            .i64(-1)
            .bool(true)
            .opaque(b"abcde")
            .fixed(b"xyz");
        assert_eq!(
            enc.as_slice(),
            [
                0, 0, 0, 1, // u32
                0, 0, 0, 0, 0, 0, 0, 2, // u64
                255, 255, 255, 255, 255, 255, 255, 255, // i64
                0, 0, 0, 1, // bool
                0, 0, 0, 5, b'a', b'b', b'c', b'd', b'e', 0, 0, 0, // opaque
                b'x', b'y', b'z', 0, // fixed
            ]
        );
    }

    #[test]
    fn a_patched_word_replaces_what_was_there() {
        let mut enc = Encoder::default();
        enc.u32(0).u32(7);
        enc.patch_u32(0, 9);
        assert_eq!(enc.as_slice(), [0, 0, 0, 9, 0, 0, 0, 7]);
    }
}
