//! Room for data: blocks of the sizes of powers of two.
//!
//! A block that is free is kept for the next one of its size. When all are free, the pages are
//! given back. What is free is known to this process only: whoever takes over copies what
//! records name, and has an arena of its own.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::map::{ARENA, Map};

/// The smallest block is of so many bytes, as a power of two.
const SMALLEST: u32 = 6;
/// So much is kept for the next blocks when all are free.
const KEPT: usize = 8 << 20;
/// The sizes of blocks: 64 bytes to 16 MiB.
const SIZES: usize = 19;

#[derive(Debug)]
struct Blocks {
    /// What lies beyond was not used since all was free.
    next: usize,
    free: [Vec<usize>; SIZES],
    used: usize,
}

#[derive(Debug)]
pub(super) struct Arena {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    map: Arc<Map>,
    /// The most bytes of blocks at a time.
    room: usize,
    blocks: Mutex<Blocks>,
}

/// Data in the arena, until it is dropped.
#[derive(Debug)]
struct Block {
    shared: Arc<Shared>,
    at: usize,
    len: usize,
    size: usize,
}

/// Which of the sizes holds so much.
fn size_of(len: usize) -> usize {
    let bits = usize::BITS - len.saturating_sub(1).leading_zeros();
    bits.saturating_sub(SMALLEST) as usize
}

fn bytes_of(size: usize) -> usize {
    1 << (size + SMALLEST as usize)
}

impl Arena {
    pub(super) fn new(map: Arc<Map>, room: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                map,
                room: room.min(ARENA.end - ARENA.start),
                blocks: Mutex::new(Blocks {
                    next: ARENA.start,
                    free: Default::default(),
                    used: 0,
                }),
            }),
        }
    }

    /// Bytes of blocks.
    pub(super) fn used(&self) -> u64 {
        self.shared.blocks.lock().used as u64
    }

    /// Gives back what is kept for the next blocks, if all are free.
    pub(super) fn rest(&self) {
        let blocks = self.shared.blocks.lock();
        if blocks.used == 0 {
            self.shared.map.give_back(ARENA.start..ARENA.start + KEPT);
        }
    }

    /// A copy of `data`; `None` if there is no room.
    pub(super) fn copy(&self, data: &[u8]) -> Option<Bytes> {
        let size = size_of(data.len());
        let at = self.shared.take(size)?;
        self.shared.map.write(at, data);
        Some(Bytes::from_owner(Block {
            shared: Arc::clone(&self.shared),
            at,
            len: data.len(),
            size,
        }))
    }
}

impl Shared {
    fn take(&self, size: usize) -> Option<usize> {
        let mut blocks = self.blocks.lock();
        if size >= SIZES || blocks.used + bytes_of(size) > self.room {
            return None;
        }
        let at = match blocks.free[size].pop() {
            Some(at) => at,
            None => {
                let at = blocks.next;
                if ARENA.end - at < bytes_of(size) {
                    return None;
                }
                blocks.next += bytes_of(size);
                at
            }
        };
        blocks.used += bytes_of(size);
        Some(at)
    }

    fn give_back(&self, at: usize, size: usize) {
        let mut blocks = self.blocks.lock();
        blocks.used -= bytes_of(size);
        if blocks.used > 0 {
            blocks.free[size].push(at);
            return;
        }
        if blocks.next - ARENA.start > KEPT {
            self.map.give_back(ARENA.start + KEPT..blocks.next);
        }
        blocks.next = ARENA.start;
        blocks.free = Default::default();
    }
}

impl AsRef<[u8]> for Block {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: it was written before it was given out, and is nobody else's until it is
        // dropped.
        unsafe { self.shared.map.bytes(self.at..self.at + self.len) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.shared.give_back(self.at, self.size);
    }
}

#[cfg(test)]
mod tests {
    use super::super::Wal;
    use super::*;

    #[test]
    fn blocks_have_the_smallest_size_that_holds_them() {
        let sizes = [1, 64, 65, 4096, 4097, 1 << 20, 16 << 20];
        let held = sizes.map(|len| bytes_of(size_of(len)));
        assert_eq!(held, [64, 64, 128, 4096, 8192, 1 << 20, 16 << 20]);
        assert_eq!(size_of(16 << 20), SIZES - 1);
    }

    #[test]
    fn data_stay_what_they_were_until_nobody_has_a_part_of_them() -> std::io::Result<()> {
        let wal = Wal::create(1 << 20)?;
        let all: Vec<Bytes> = (0..200u8)
            .filter_map(|n| wal.copy(&vec![n; 10 + usize::from(n)]))
            .collect();
        assert_eq!(all.len(), 200);
        let parts: Vec<Bytes> = all.iter().map(|data| data.slice(5..)).collect();
        drop(all);
        for (n, part) in parts.iter().enumerate() {
            assert!(part.len() == 5 + n && part.iter().all(|byte| usize::from(*byte) == n));
            assert!(wal.place_of(part).is_some());
        }
        drop(parts);
        assert_eq!(wal.used().1, 0);
        Ok(())
    }

    #[test]
    fn a_rest_gives_back_what_is_free_and_nothing_that_is_used() -> std::io::Result<()> {
        let wal = Wal::create(4 << 20)?;
        let taken = || {
            let memory = wal.memory().expect("there is a log").metadata();
            memory.map(|of| std::os::unix::fs::MetadataExt::blocks(&of) * 512)
        };
        let data = wal.copy(&[7; 1 << 20]).expect("room");
        wal.rest();
        assert!(data.iter().all(|byte| *byte == 7) && taken()? >= 1 << 20);
        drop(data);
        assert!(taken()? >= 1 << 20, "kept for the next");
        wal.rest();
        assert!(taken()? < 1 << 20);
        assert!(
            wal.copy(&[9; 1 << 20])
                .is_some_and(|again| again.iter().all(|byte| *byte == 9))
        );
        Ok(())
    }

    #[test]
    fn there_is_as_much_room_as_was_asked_for_and_again_when_it_is_free() -> std::io::Result<()> {
        let wal = Wal::create(1 << 20)?;
        let half = wal.copy(&[1; 1 << 19]);
        let other = wal.copy(&[2; 1 << 19]);
        assert!(half.is_some() && other.is_some());
        assert!(wal.copy(b"x").is_none());
        drop(half);
        assert!(wal.copy(&[3; 1 << 19]).is_some());
        assert!(other.is_some_and(|other| other.iter().all(|byte| *byte == 2)));
        assert!(
            wal.copy(&vec![0; 17 << 20]).is_none(),
            "larger than any block"
        );
        Ok(())
    }
}
