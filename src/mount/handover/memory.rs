//! The memory in which a daemon leaves its state: a memfd, which the keeper holds.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | `EFSFHAND` |
//! | 8..12 | the layout of what follows, little-endian |
//! | 12..16 | 0 |
//! | 16..24 | length of the state |
//! | 24..56 | SHA-256 of the state |
//! | 56.. | the state, as MessagePack with the names of its fields |
//!
//! The layout is a number that a change of meaning raises; what only adds to the state does
//! not, as fields have names. A program that does not know the layout must not take over.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::FromRawFd;

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The layout that this program writes, and the only one that it reads.
pub const LAYOUT: u32 = 1;

const MAGIC: &[u8; 8] = b"EFSFHAND";
const HEADER: usize = 56;
/// Beyond this it is no state: a million inodes and their handles are less.
const MOST: u64 = 4 << 30;

/// Why a state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The memory cannot be read, or ends too early.
    #[error("the state cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Nothing of ours, or not what was written.
    #[error("the state is damaged: {0}")]
    Damaged(&'static str),
    /// By a program that writes another layout.
    #[error("the state has layout {0}, and this program reads {LAYOUT}")]
    Layout(u32),
    /// It is a log, and that cannot be read.
    #[error(transparent)]
    Log(#[from] crate::wal::Unreadable),
    /// It does not mean what it should.
    #[error("the state cannot be understood: {0}")]
    Meaning(#[from] rmp_serde::decode::Error),
}

/// Memory for a state, with nothing in it.
///
/// # Errors
/// The kernel has none.
pub fn create() -> io::Result<File> {
    // SAFETY: a static string; a new descriptor or -1 comes back.
    let memory = unsafe { libc::memfd_create(c"efs-fuse-state".as_ptr(), libc::MFD_CLOEXEC) };
    if memory < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(memory) })
}

/// Writes the state, instead of what was there.
///
/// # Errors
/// There is no memory.
pub fn write(mut memory: &File, state: &impl Serialize) -> io::Result<()> {
    let state = rmp_serde::to_vec_named(state).map_err(io::Error::other)?;
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&LAYOUT.to_le_bytes());
    header[16..24].copy_from_slice(&(state.len() as u64).to_le_bytes());
    header[24..].copy_from_slice(digest(&SHA256, &state).as_ref());
    memory.set_len(0)?;
    memory.seek(SeekFrom::Start(0))?;
    memory.write_all(&header)?;
    memory.write_all(&state)
}

/// Reads the state, which stays there.
///
/// # Errors
/// It is not what [`write()`] has written, or of another layout.
pub fn read<T: DeserializeOwned>(mut memory: &File) -> Result<T, Unreadable> {
    let mut header = [0; HEADER];
    memory.seek(SeekFrom::Start(0))?;
    memory.read_exact(&mut header)?;
    if header[..8] != *MAGIC {
        return Err(Unreadable::Damaged("it does not begin as one"));
    }
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|n| header[at + n]));
    let layout = word(8);
    if layout != LAYOUT {
        return Err(Unreadable::Layout(layout));
    }
    let length = u64::from(word(16)) | u64::from(word(20)) << 32;
    if length > MOST {
        return Err(Unreadable::Damaged("its length is none"));
    }
    let mut state = Vec::new();
    memory.take(length).read_to_end(&mut state)?;
    if state.len() as u64 != length {
        return Err(Unreadable::Damaged("it ends too early"));
    }
    if digest(&SHA256, &state).as_ref() != &header[24..] {
        return Err(Unreadable::Damaged("its checksum is another"));
    }
    Ok(rmp_serde::from_slice(&state)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Old {
        name: String,
        bytes: bytes::Bytes,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct New {
        bytes: bytes::Bytes,
        name: String,
        #[serde(default)]
        added: u64,
    }

    fn written() -> io::Result<(File, Old)> {
        let memory = create()?;
        let state = Old {
            name: "volumes".to_owned(),
            bytes: bytes::Bytes::from_static(&[0xff; 300]),
        };
        write(&memory, &state)?;
        Ok((memory, state))
    }

    #[test]
    fn what_was_written_is_read_as_often_as_it_is_wanted() -> io::Result<()> {
        let (memory, state) = written()?;
        for _ in 0..2 {
            assert_eq!(read::<Old>(&memory).ok().as_ref(), Some(&state));
        }
        // A shorter one leaves nothing of it.
        write(&memory, &"short")?;
        assert_eq!(read::<String>(&memory).ok().as_deref(), Some("short"));
        assert!(memory.metadata()?.len() < 300);
        Ok(())
    }

    #[test]
    fn a_newer_program_reads_what_an_older_one_did_not_write() -> io::Result<()> {
        let (memory, state) = written()?;
        let read: Option<New> = read(&memory).ok();
        assert!(read.is_some_and(|new| new.name == state.name && new.added == 0));
        Ok(())
    }

    #[test]
    fn what_is_damaged_or_of_another_layout_is_refused() -> io::Result<()> {
        assert!(matches!(read::<Old>(&create()?), Err(Unreadable::Io(_))));
        for at in [0, 30, HEADER as u64 + 20] {
            let (memory, _) = written()?;
            memory.write_all_at(&[0x5a], at)?;
            let refused = read::<Old>(&memory);
            assert!(matches!(refused, Err(Unreadable::Damaged(_))), "{at}");
        }
        let (memory, _) = written()?;
        memory.set_len(HEADER as u64 + 50)?;
        assert!(matches!(
            read::<Old>(&memory),
            Err(Unreadable::Damaged(why)) if why.contains("early")
        ));
        memory.write_all_at(&[2], 8)?;
        assert!(matches!(read::<Old>(&memory), Err(Unreadable::Layout(2))));
        Ok(())
    }
}
