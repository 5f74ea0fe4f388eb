//! The bytes of one segment, as the buffers they came in.
//!
//! Appending and splitting share buffers instead of copying them. Three rules
//! keep the cost of sharing bounded, whatever the sizes a caller writes in:
//!
//! - two neighbours that are small together become one buffer, so a file
//!   written byte by byte is not a list of bytes;
//! - a remnant smaller than half of the buffer it pins is copied out, so the
//!   memory held is at most twice the bytes held;
//! - a rope of very many pieces (overwritten all over) is copied into one, so
//!   that it can be sent with one gathering write.

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::Chunks;

/// Neighbours up to this size together are joined by copying.
const JOIN: usize = 8 << 10;

/// More pieces than this are joined into one. A full 1 MiB rope of appended
/// pieces stays below: any two neighbours are larger than [`JOIN`].
const MAX_CHUNKS: usize = 257;

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    /// The size of the buffer that `bytes` keeps alive.
    held: usize,
}

impl Chunk {
    fn new(bytes: Bytes) -> Chunk {
        let held = bytes.len();
        Chunk { bytes, held }
    }

    /// Appends by copying, into the buffer itself where nobody else has it.
    fn join(&mut self, more: &[u8]) {
        let mut buffer = match std::mem::take(&mut self.bytes).try_into_mut() {
            Ok(own) => own,
            Err(shared) => {
                let mut copy = BytesMut::with_capacity(2 * (shared.len() + more.len()));
                copy.extend_from_slice(&shared);
                copy
            }
        };
        buffer.extend_from_slice(more);
        self.held = buffer.capacity();
        self.bytes = buffer.freeze();
    }

    /// Lets go of a buffer of which little is left.
    fn compact(&mut self) {
        if self.bytes.len() * 2 < self.held {
            *self = Chunk::new(Bytes::copy_from_slice(&self.bytes));
        }
    }
}

/// A byte string in pieces.
#[derive(Debug, Default)]
pub(super) struct Rope {
    chunks: SmallVec<[Chunk; 2]>,
    len: usize,
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Rope {
        let mut rope = Rope::default();
        rope.push(bytes);
        rope
    }
}

impl Rope {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The pieces in order, sharing the buffers.
    pub(super) fn chunks(&self) -> Chunks {
        self.chunks.iter().map(|c| c.bytes.clone()).collect()
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.push_chunk(Chunk::new(bytes));
    }

    pub(super) fn append(&mut self, other: Rope) {
        for chunk in other.chunks {
            self.push_chunk(chunk);
        }
    }

    /// Keeps the first `at` bytes and gives the rest. `at` must not be larger
    /// than the rope.
    pub(super) fn split_off(&mut self, at: usize) -> Rope {
        debug_assert!(at <= self.len);
        let mut start = 0;
        let mut index = 0;
        while index < self.chunks.len() && start + self.chunks[index].bytes.len() <= at {
            start += self.chunks[index].bytes.len();
            index += 1;
        }
        let mut rest = Rope::default();
        rest.chunks.extend(self.chunks.drain(index..));
        if let Some(first) = rest.chunks.first_mut()
            && at > start
        {
            let mut head = Chunk {
                bytes: first.bytes.split_to(at - start),
                held: first.held,
            };
            first.compact();
            head.compact();
            self.chunks.push(head);
        }
        rest.len = self.len - at;
        self.len = at;
        rest
    }

    /// Puts `bytes` in the place of what is at `at`; both ends must lie inside.
    pub(super) fn overwrite(&mut self, at: usize, bytes: Bytes) {
        debug_assert!(at + bytes.len() <= self.len);
        let mut replaced = self.split_off(at);
        let rest = replaced.split_off(bytes.len());
        self.push(bytes);
        self.append(rest);
    }

    fn push_chunk(&mut self, chunk: Chunk) {
        if chunk.bytes.is_empty() {
            return;
        }
        self.len += chunk.bytes.len();
        match self.chunks.last_mut() {
            Some(last) if last.bytes.len() + chunk.bytes.len() <= JOIN => last.join(&chunk.bytes),
            _ => self.chunks.push(chunk),
        }
        if self.chunks.len() > MAX_CHUNKS {
            self.flatten();
        }
    }

    fn flatten(&mut self) {
        let mut whole = Vec::with_capacity(self.len);
        for chunk in self.chunks.drain(..) {
            whole.extend_from_slice(&chunk.bytes);
        }
        self.chunks.push(Chunk::new(whole.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(rope: &Rope) -> Vec<u8> {
        rope.chunks().concat()
    }

    #[test]
    fn large_pieces_are_shared_and_not_copied() {
        let (a, b) = (Bytes::from(vec![1; JOIN]), Bytes::from(vec![2; JOIN]));
        let mut rope = Rope::from(a.clone());
        rope.push(b.clone());
        let chunks = rope.chunks();
        assert_eq!(chunks[0].as_ptr(), a.as_ptr());
        assert_eq!(chunks[1].as_ptr(), b.as_ptr());
    }

    #[test]
    fn writing_byte_by_byte_does_not_make_a_list_of_bytes() {
        let mut rope = Rope::default();
        let expected: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
        for byte in &expected {
            rope.push(Bytes::copy_from_slice(&[*byte]));
        }
        assert_eq!(content(&rope), expected);
        assert!(rope.chunks.len() <= 2 * expected.len() / JOIN + 1);
    }

    #[test]
    fn overwriting_all_over_keeps_the_number_of_pieces_bounded() {
        let mut rope = Rope::from(Bytes::from(vec![0; 1 << 20]));
        let mut expected = vec![0; 1 << 20];
        for i in 0..2000 {
            let at = (i * 7919 * 64) % ((1 << 20) - 16);
            rope.overwrite(at, Bytes::from(vec![i as u8; 16]));
            expected[at..at + 16].fill(i as u8);
            assert!(rope.chunks.len() <= MAX_CHUNKS);
        }
        assert_eq!(rope.len(), expected.len());
        assert!(content(&rope) == expected);
    }

    #[test]
    fn a_small_remnant_does_not_pin_a_large_buffer() {
        let mut rope = Rope::from(Bytes::from(vec![7; 1 << 20]));
        let rest = rope.split_off(10);
        assert_eq!(rope.chunks[0].held, 10);
        assert_eq!(rest.chunks[0].held, 1 << 20);
        assert_eq!((rope.len(), rest.len()), (10, (1 << 20) - 10));
    }

    #[test]
    fn splitting_at_any_point_loses_nothing() {
        let pieces = [JOIN, 10, JOIN + 1, 3];
        let total: usize = pieces.iter().sum();
        for at in [0, 1, JOIN, JOIN + 5, JOIN + 10, 2 * JOIN, total - 1, total] {
            let mut rope = Rope::default();
            let mut expected = Vec::new();
            for (i, len) in pieces.iter().enumerate() {
                rope.push(Bytes::from(vec![i as u8; *len]));
                expected.extend(vec![i as u8; *len]);
            }
            let rest = rope.split_off(at);
            assert!(content(&rope) == expected[..at]);
            assert!(content(&rest) == expected[at..]);
            assert_eq!((rope.len(), rest.len()), (at, total - at));
        }
    }
}
