//! What a cache file looks like: the header, the table of blocks, and what makes a block believed.
//!
//! ```text
//! 0      header: magic, layout, key (file system, file handle, slice), version, checksum
//! 4096   table: 32 bytes for each of 1024 blocks
//! 36864  data: 1024 blocks of 64 KiB, sparse
//! ```
//!
//! Nothing here is believed because of where it lies. The header has a checksum, and names all that
//! the file is of. A block's checksum is seeded with the same names and the block's number, so what
//! a former life of the disk's sectors, another block or another version has left there does not
//! verify. With a key the checksum is the tag of AES-256-GCM, with those names as associated data.
//!
//! Numbers are little-endian.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128, xxh3_128_with_seed};

/// Bytes of a block: what is checked, and given out, as a whole.
pub(super) const BLOCK: u64 = 64 << 10;
/// Blocks of a slice.
pub(super) const BLOCKS: u64 = 1024;
/// Bytes of a remote file that one cache file holds: the unit of eviction.
pub(super) const SLICE: u64 = BLOCK * BLOCKS;
/// What files and tables are rounded up to when they are counted.
pub(super) const PAGE: u64 = 4096;
/// Bytes of an entry of the table.
pub(super) const ENTRY: u64 = 32;
/// Where the table begins.
pub(super) const TABLE: u64 = PAGE;
/// Where the data begin.
pub(super) const DATA: u64 = TABLE + ENTRY * BLOCKS;
/// The longest file handle (NFS4_FHSIZE).
pub(super) const MAX_HANDLE: usize = 128;

const MAGIC: [u8; 8] = *b"EFSF-DC\n";
/// The layout of this version; another one is not read.
const LAYOUT: u32 = 1;
/// Bytes of the header that are used.
pub(super) const HEADER: usize = 256;
/// Where its checksum is.
const CHECK: usize = HEADER - 16;

/// Which state of a file: its change attribute, and the size it had then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// The change attribute.
    pub change: u64,
    /// Bytes.
    pub size: u64,
}

/// The identity of a file system, hashed: the name of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileSystemId(pub(super) [u8; 16]);

impl FileSystemId {
    /// Of everything by which the file system, and who is allowed in it, is known.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut joined = Vec::new();
        for part in parts {
            joined.extend_from_slice(&(part.len() as u64).to_le_bytes());
            joined.extend_from_slice(part);
        }
        Self(xxh3_128(&joined).to_le_bytes())
    }
}

/// What a cache file is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) fs: FileSystemId,
    pub(super) handle: Vec<u8>,
    /// Which slice of the file.
    pub(super) slice: u64,
    pub(super) version: Version,
    /// The blocks are encrypted.
    pub(super) sealed: bool,
}

impl Header {
    /// As it is written. The handle is not longer than [`MAX_HANDLE`].
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        put(&MAGIC);
        put(&LAYOUT.to_le_bytes());
        put(&u32::from(self.sealed).to_le_bytes());
        put(&self.fs.0);
        put(&self.slice.to_le_bytes());
        put(&self.version.change.to_le_bytes());
        put(&self.version.size.to_le_bytes());
        put(&(self.handle.len() as u64).to_le_bytes());
        put(&self.handle);
        let check = xxh3_128(&bytes[..CHECK]).to_le_bytes();
        bytes[CHECK..].copy_from_slice(&check);
        bytes
    }

    /// Reads one; `None` if it is no header of this layout, or is damaged.
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let check = xxh3_128(&bytes[..CHECK]).to_le_bytes();
        if bytes[..8] != MAGIC || bytes[CHECK..] != check {
            return None;
        }
        let word = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        if word(8)? & 0xffff_ffff != u64::from(LAYOUT) {
            return None;
        }
        let length = usize::try_from(word(56)?).ok()?;
        if length > MAX_HANDLE {
            return None;
        }
        Some(Self {
            sealed: word(8)? >> 32 != 0,
            fs: FileSystemId(bytes[16..32].try_into().ok()?),
            slice: word(32)?,
            version: Version {
                change: word(40)?,
                size: word(48)?,
            },
            handle: bytes[64..64 + length].to_vec(),
        })
    }

    /// How long this block of the slice is: less than [`BLOCK`] at the end of the file, 0 behind it.
    pub(super) fn block_len(&self, block: u64) -> u64 {
        let start = self.slice * SLICE + block * BLOCK;
        self.version.size.saturating_sub(start).min(BLOCK)
    }

    /// What a block is bound to, besides its data.
    fn names_of(&self, block: u64) -> [u8; HEADER + 8] {
        let mut names = [0; HEADER + 8];
        names[..HEADER].copy_from_slice(&self.encode());
        names[HEADER..].copy_from_slice(&block.to_le_bytes());
        names
    }
}

/// A block as the table has it; all zeros where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) len: u32,
    nonce: u64,
    check: [u8; 16],
}

impl Entry {
    pub(super) fn encode(&self) -> [u8; ENTRY as usize] {
        let mut bytes = [0; ENTRY as usize];
        bytes[..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[16..].copy_from_slice(&self.check);
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Self {
        let part = |from: usize, to: usize| {
            let mut part = [0; 16];
            part[..to - from].copy_from_slice(&bytes[from..to]);
            u128::from_le_bytes(part)
        };
        Self {
            len: part(0, 4) as u32,
            nonce: part(8, 16) as u64,
            check: part(16, 32).to_le_bytes(),
        }
    }
}

/// How blocks are made fit for the disk, and known again.
pub(super) enum Seal {
    /// In the clear, with a checksum.
    Checksum,
    /// Encrypted, by a key that is nowhere but here.
    Key(Box<MemoryKey>),
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.write_str(match self {
            Self::Checksum => "Checksum",
            Self::Key(_) => "Key",
        })
    }
}

/// A key of this process, which has used these many nonces.
pub(super) struct MemoryKey {
    key: LessSafeKey,
    used: AtomicU64,
}

impl Seal {
    /// With a new key, of random bytes.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn with_new_key() -> std::io::Result<Self> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(std::io::Error::other)?;
        Ok(Self::Key(Box::new(MemoryKey {
            key: LessSafeKey::new(key),
            used: AtomicU64::new(0),
        })))
    }

    /// Blocks are encrypted.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self, Self::Key(_))
    }

    /// The entry of a block, and what is written of it. `None`: the cipher refuses.
    pub(super) fn seal<'a>(
        &self,
        header: &Header,
        block: u64,
        data: &'a [u8],
    ) -> Option<(Entry, Cow<'a, [u8]>)> {
        let names = header.names_of(block);
        let len = u32::try_from(data.len()).ok()?;
        match self {
            Self::Checksum => {
                let check = xxh3_128_with_seed(data, xxh3_64(&names)).to_le_bytes();
                let nonce = 0;
                Some((Entry { len, nonce, check }, Cow::Borrowed(data)))
            }
            Self::Key(key) => {
                let nonce = key.used.fetch_add(1, Ordering::Relaxed);
                let mut data = data.to_vec();
                let tag = key
                    .key
                    .seal_in_place_separate_tag(nonce_of(nonce), Aad::from(&names), &mut data)
                    .ok()?;
                let check = tag.as_ref().try_into().ok()?;
                Some((Entry { len, nonce, check }, Cow::Owned(data)))
            }
        }
    }

    /// Whether the bytes are that block, which they are made into.
    pub(super) fn open(&self, header: &Header, block: u64, entry: &Entry, data: &mut [u8]) -> bool {
        let names = header.names_of(block);
        match self {
            Self::Checksum => {
                xxh3_128_with_seed(data, xxh3_64(&names)).to_le_bytes() == entry.check
            }
            Self::Key(key) => {
                let sealed = data.to_vec();
                let (nonce, aad) = (nonce_of(entry.nonce), Aad::from(&names));
                key.key
                    .open_separate_gather(nonce, aad, &sealed, &entry.check, data)
                    .is_ok()
            }
        }
    }
}

/// A nonce of its own for each block that is written: a key lives as long as its process.
fn nonce_of(number: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            fs: FileSystemId::of(&[b"fs", b"ap"]),
            handle: b"a handle".to_vec(),
            slice: 3,
            version: Version {
                change: 77,
                size: 3 * SLICE + BLOCK + 5,
            },
            sealed: false,
        }
    }

    #[test]
    fn a_header_is_read_back_and_every_flipped_bit_of_it_is_noticed() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes), Some(header()));
        for bit in 0..HEADER * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Header::decode(&bytes), None, "bit {bit}");
        }
    }

    #[test]
    fn parts_of_an_identity_do_not_run_into_each_other() {
        assert_ne!(
            FileSystemId::of(&[b"ab", b"c"]),
            FileSystemId::of(&[b"a", b"bc"])
        );
    }

    #[test]
    fn a_block_verifies_only_as_what_it_is_of() -> std::io::Result<()> {
        for seal in [Seal::Checksum, Seal::with_new_key()?] {
            let header = header();
            let data = vec![7; 1000];
            let sealed = seal.seal(&header, 4, &data);
            let (entry, written) = sealed.ok_or(std::io::ErrorKind::Other)?;
            let written = written.into_owned();
            assert_eq!(written == data, !seal.is_secret());
            let entry = Entry::decode(&entry.encode());
            let opens = |header: &Header, block, flip: Option<usize>| {
                let mut bytes = written.clone();
                if let Some(at) = flip {
                    bytes[at] ^= 0x10;
                }
                seal.open(header, block, &entry, &mut bytes) && bytes == data
            };
            assert!(opens(&header, 4, None));
            assert!(!opens(&header, 5, None), "another block");
            assert!(!opens(&header, 4, Some(0)) && !opens(&header, 4, Some(999)));
            for other in [
                Header {
                    slice: 2,
                    ..header.clone()
                },
                Header {
                    handle: b"another".to_vec(),
                    ..header.clone()
                },
                Header {
                    version: Version {
                        change: 78,
                        ..header.version
                    },
                    ..header.clone()
                },
                Header {
                    fs: FileSystemId::of(&[b"fs"]),
                    ..header.clone()
                },
            ] {
                assert!(!opens(&other, 4, None), "{other:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn a_key_of_another_life_opens_nothing() -> std::io::Result<()> {
        let (old, new) = (Seal::with_new_key()?, Seal::with_new_key()?);
        let sealed = old.seal(&header(), 0, b"a secret");
        let (entry, written) = sealed.ok_or(std::io::ErrorKind::Other)?;
        let mut data = written.into_owned();
        assert!(!new.open(&header(), 0, &entry, &mut data));
        Ok(())
    }

    #[test]
    fn the_last_block_ends_with_the_file() {
        let header = header();
        assert_eq!(header.block_len(0), BLOCK);
        assert_eq!(header.block_len(1), 5);
        assert_eq!(header.block_len(2), 0);
    }
}
