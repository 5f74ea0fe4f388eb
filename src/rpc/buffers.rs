//! The large buffers that data travel in, used again and again.
//!
//! A stream moves a buffer of up to 1 MiB with every READ and WRITE. The
//! allocator would fetch its pages from the system and hand them back each
//! time, which costs more than moving the data: clearing and mapping 256 pages
//! takes longer than copying them. Free buffers are kept here instead, those
//! used last on top, for their bytes may still be in the processor's cache.
//!
//! What is kept is bounded ([`KEPT`] buffers of at most [`LARGE`] bytes); a
//! buffer beyond that goes back to the allocator. The lock is held for a push
//! or a pop and nothing else is taken under it.

use bytes::Bytes;
use parking_lot::Mutex;

/// Buffers kept, all in all.
const KEPT: usize = 16;

/// The size of a pooled buffer: 1 MiB of data and the head of a reply.
const LARGE: usize = (1 << 20) + 4096;

/// Smaller ones are the allocator's own business: whoever bounds memory counts
/// data, so a buffer must not be much larger than what it holds.
const SMALL: usize = 768 << 10;

static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// An empty buffer that returns to the pool when the last slice of it is gone.
#[derive(Debug)]
pub struct Buffer(Vec<u8>);

impl Buffer {
    /// Room for `len` bytes. Any length is served; those between 768 KiB and
    /// 1 MiB come from the pool.
    #[must_use]
    pub fn with_capacity(len: usize) -> Self {
        if !(SMALL..=LARGE).contains(&len) {
            return Self(Vec::with_capacity(len));
        }
        let free = FREE.lock().pop();
        Self(free.unwrap_or_else(|| Vec::with_capacity(LARGE)))
    }

    /// What the buffer holds, to be filled.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// The filled buffer, to be shared and sliced.
    #[must_use]
    pub fn freeze(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.0.capacity() != LARGE {
            return;
        }
        self.0.clear();
        let mut free = FREE.lock();
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.0));
        }
    }
}

/// A copy of `data` in a buffer of its own.
#[must_use]
pub fn copy(data: &[u8]) -> Bytes {
    if data.len() < SMALL {
        return Bytes::copy_from_slice(data);
    }
    let mut buffer = Buffer::with_capacity(data.len());
    buffer.bytes().extend_from_slice(data);
    buffer.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_empty_when_its_last_slice_is_gone() {
        let data = copy(&[7; 1 << 20]);
        let slice = data.slice(10..20);
        drop(data);
        assert_eq!(slice, [7; 10][..]);
        drop(slice);
        let mut again = Buffer::with_capacity(1 << 20);
        assert!(again.bytes().is_empty() && again.bytes().capacity() >= 1 << 20);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let many: Vec<Bytes> = (0..3 * KEPT).map(|_| copy(&[1; 1 << 20])).collect();
        drop(many);
        assert!(FREE.lock().len() <= KEPT);
    }

    #[test]
    fn any_length_is_served() {
        for len in [0, 1, SMALL - 1, SMALL, LARGE, LARGE + 1, 4 << 20] {
            assert_eq!(copy(&vec![3; len]), vec![3; len]);
        }
    }
}
