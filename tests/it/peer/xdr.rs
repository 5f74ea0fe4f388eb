//! XDR (RFC 4506) for the double: small, complete enough, and on purpose not
//! the codec of the client, so that both cannot agree on one mistake.

use bytes::Bytes;

/// The bytes do not follow the XDR of what was expected there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadXdr;

pub(crate) type Decoded<T> = Result<T, BadXdr>;

/// A cursor over one received message. Opaque data are slices of it, so a
/// WRITE of a megabyte is not copied before it reaches the file.
#[derive(Debug, Clone)]
pub(crate) struct Dec {
    buf: Bytes,
    pos: usize,
    /// See [`Dec::payload`].
    misplaces: bool,
}

impl Dec {
    pub(crate) fn new(buf: Bytes) -> Self {
        Self {
            buf,
            pos: 0,
            misplaces: true,
        }
    }

    /// The data of every WRITE are those that were sent.
    pub(crate) fn rightly(mut self) -> Self {
        self.misplaces = false;
        self
    }

    /// Bytes not yet consumed.
    pub(crate) fn remaining(&self) -> usize {
        self.buf.len() - self.pos
    }

    /// Offset of the next byte from the start of the message.
    pub(crate) fn position(&self) -> usize {
        self.pos
    }

    /// `len` bytes and their padding to a multiple of four.
    fn take(&mut self, len: usize) -> Decoded<Bytes> {
        let padded = len.checked_next_multiple_of(4).ok_or(BadXdr)?;
        if padded > self.remaining() {
            return Err(BadXdr);
        }
        let data = self.buf.slice(self.pos..self.pos + len);
        self.pos += padded;
        Ok(data)
    }

    pub(crate) fn fixed<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        let data = self.take(N)?;
        <[u8; N]>::try_from(&data[..]).map_err(|_| BadXdr)
    }

    pub(crate) fn u32(&mut self) -> Decoded<u32> {
        Ok(u32::from_be_bytes(self.fixed()?))
    }

    pub(crate) fn u64(&mut self) -> Decoded<u64> {
        Ok(u64::from_be_bytes(self.fixed()?))
    }

    pub(crate) fn bool(&mut self) -> Decoded<bool> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(BadXdr),
        }
    }

    /// Variable-length opaque data or a string of at most `max` bytes.
    pub(crate) fn opaque(&mut self, max: usize) -> Decoded<Bytes> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(BadXdr);
        }
        self.take(len)
    }

    /// The data of a WRITE, as Linux 6.1's server takes them, unless it is to be
    /// [right](Self::rightly): what begins behind the first page of the record is taken from the
    /// beginning of its page.
    pub(crate) fn payload(&mut self, max: usize) -> Decoded<Bytes> {
        const PAGE: usize = 4096;
        let data = self.opaque(max)?;
        let at = self.pos - data.len().next_multiple_of(4);
        match at / PAGE {
            0 => Ok(data),
            _ if !self.misplaces => Ok(data),
            page => Ok(self.buf.slice(page * PAGE..page * PAGE + data.len())),
        }
    }

    /// A counted array of at most `max` items.
    pub(crate) fn array<T>(
        &mut self,
        max: usize,
        mut item: impl FnMut(&mut Self) -> Decoded<T>,
    ) -> Decoded<Vec<T>> {
        let count = self.u32()? as usize;
        if count > max {
            return Err(BadXdr);
        }
        (0..count).map(|_| item(self)).collect()
    }

    /// A bitmap4. Words beyond the fourth are read and forgotten: no attribute
    /// of this server has such a number.
    pub(crate) fn bitmap(&mut self) -> Decoded<Bits> {
        let words = self.array(64, Self::u32)?;
        let mut bits = 0u128;
        for (i, word) in words.iter().take(4).enumerate() {
            bits |= u128::from(*word) << (32 * i);
        }
        Ok(Bits(bits))
    }
}

/// A bitmap4 of attribute numbers (or any other small numbers).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Bits(pub(crate) u128);

impl Bits {
    pub(crate) fn of(numbers: &[u32]) -> Self {
        let mut bits = Self::default();
        for number in numbers {
            bits.set(*number);
        }
        bits
    }

    pub(crate) fn has(self, number: u32) -> bool {
        self.0 >> number & 1 == 1
    }

    pub(crate) fn set(&mut self, number: u32) {
        self.0 |= 1 << number;
    }

    pub(crate) fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The numbers in ascending order, which is the order of attribute values.
    pub(crate) fn iter(self) -> impl Iterator<Item = u32> {
        (0..128).filter(move |n| self.has(*n))
    }
}

/// Builds one message.
#[derive(Debug, Default, Clone)]
pub(crate) struct Enc(pub(crate) Vec<u8>);

impl Enc {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn u32(&mut self, v: u32) -> &mut Self {
        self.fixed(&v.to_be_bytes())
    }

    pub(crate) fn u64(&mut self, v: u64) -> &mut Self {
        self.fixed(&v.to_be_bytes())
    }

    pub(crate) fn bool(&mut self, v: bool) -> &mut Self {
        self.u32(u32::from(v))
    }

    /// Fixed-length opaque data, padded.
    pub(crate) fn fixed(&mut self, data: &[u8]) -> &mut Self {
        self.0.extend_from_slice(data);
        self.0
            .resize(self.0.len() + data.len().wrapping_neg() % 4, 0);
        self
    }

    /// Variable-length opaque data or a string.
    pub(crate) fn opaque(&mut self, data: &[u8]) -> &mut Self {
        self.u32(u32::try_from(data.len()).unwrap_or(u32::MAX))
            .fixed(data)
    }

    /// A bitmap4 without trailing zero words.
    pub(crate) fn bitmap(&mut self, bits: Bits) -> &mut Self {
        let words: Vec<u32> = (0..4).map(|i| (bits.0 >> (32 * i)) as u32).collect();
        let used = words.iter().rposition(|w| *w != 0).map_or(0, |i| i + 1);
        self.u32(used as u32);
        for word in &words[..used] {
            self.u32(*word);
        }
        self
    }

    /// Bytes that are XDR already.
    pub(crate) fn raw(&mut self, data: &[u8]) -> &mut Self {
        self.0.extend_from_slice(data);
        self
    }

    /// Overwrites the four bytes at `at`.
    pub(crate) fn patch_u32(&mut self, at: usize, v: u32) {
        self.0[at..at + 4].copy_from_slice(&v.to_be_bytes());
    }
}
