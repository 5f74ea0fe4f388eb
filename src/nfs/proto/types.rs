//! Basic types (RFC 8881 §3).

use serde::{Deserialize, Serialize};

use crate::xdr::{DecodeError, Decoder, Encoder};

pub use super::handle::{FHSIZE, FileHandle, Promise, Promises};

/// stateid4 (RFC 8881 §3.3.12, §8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateId {
    /// Counts the changes of the state; 0 means "the newest".
    pub seqid: u32,
    /// Names the state.
    pub other: [u8; 12],
}

impl StateId {
    /// The anonymous stateid (RFC 8881 §8.2.3).
    pub const ANONYMOUS: Self = Self {
        seqid: 0,
        other: [0; 12],
    };
    /// The current stateid of a compound: what its last OPEN or LOCK returned.
    pub const CURRENT: Self = Self {
        seqid: 1,
        other: [0; 12],
    };

    /// The same state at whatever seqid is newest: for I/O, so that an OPEN in
    /// flight elsewhere cannot make it OLD_STATEID.
    pub fn newest(self) -> Self {
        Self { seqid: 0, ..self }
    }

    /// Whether `self` is later than `other` of the same state. Seqids wrap
    /// (RFC 8881 §8.2.2).
    pub fn is_newer_than(self, other: Self) -> bool {
        (self.seqid.wrapping_sub(other.seqid)).cast_signed() > 0
    }

    /// Takes a stateid off a reply.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        Ok(Self {
            seqid: dec.u32("stateid.seqid")?,
            other: dec.fixed("stateid.other")?,
        })
    }

    /// Appends the stateid to a request.
    pub fn encode(self, enc: &mut Encoder) {
        enc.u32(self.seqid).fixed(&self.other);
    }
}

/// verifier4: eight opaque bytes.
pub type Verifier = [u8; 8];

/// sessionid4.
pub type SessionId = [u8; 16];

/// nfstime4 (RFC 8881 §3.3.1): negative seconds exist, `nsec` counts up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NfsTime {
    /// Seconds since 1970.
    pub sec: i64,
    /// Nanoseconds, below 10^9.
    pub nsec: u32,
}

impl NfsTime {
    /// Takes a time off a reply.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        let time = Self {
            sec: dec.i64("seconds")?,
            nsec: dec.u32("nseconds")?,
        };
        if time.nsec >= 1_000_000_000 {
            return Err(DecodeError::Invalid("nseconds"));
        }
        Ok(time)
    }

    /// Appends the time to a request.
    pub fn encode(self, enc: &mut Encoder) {
        enc.i64(self.sec).u32(self.nsec);
    }
}

/// nfs_ftype4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FileType {
    /// NF4REG
    Regular = 1,
    /// NF4DIR
    Directory = 2,
    /// NF4BLK
    Block = 3,
    /// NF4CHR
    Char = 4,
    /// NF4LNK
    Symlink = 5,
    /// NF4SOCK
    Socket = 6,
    /// NF4FIFO
    Fifo = 7,
}

impl FileType {
    /// Takes a type off a reply.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        Ok(match dec.u32("type")? {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Block,
            4 => Self::Char,
            5 => Self::Symlink,
            6 => Self::Socket,
            7 => Self::Fifo,
            _ => return Err(DecodeError::Invalid("type")),
        })
    }
}

/// stable_how4 (RFC 8881 §18.32): ordered by how much is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stable {
    /// The data may be lost with the server until COMMIT.
    Unstable = 0,
    /// The data are on stable storage, metadata perhaps not.
    DataSync = 1,
    /// Data and metadata are on stable storage.
    FileSync = 2,
}

impl Stable {
    /// Takes a stability off a reply.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        Ok(match dec.u32("committed")? {
            0 => Self::Unstable,
            1 => Self::DataSync,
            2 => Self::FileSync,
            _ => return Err(DecodeError::Invalid("committed")),
        })
    }
}

/// change_info4: how a directory moved when an operation changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChangeInfo {
    /// Nobody else could have changed it between `before` and `after`.
    pub atomic: bool,
    /// The change attribute before the operation.
    pub before: u64,
    /// The change attribute after it.
    pub after: u64,
}

impl ChangeInfo {
    /// Takes a change_info off a reply.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        Ok(Self {
            atomic: dec.bool("cinfo.atomic")?,
            before: dec.u64("cinfo.before")?,
            after: dec.u64("cinfo.after")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_stateids_survives_the_wrap() {
        let id = |seqid| StateId {
            seqid,
            other: [7; 12],
        };
        assert!(id(2).is_newer_than(id(1)));
        assert!(!id(1).is_newer_than(id(1)));
        assert!(id(1).is_newer_than(id(u32::MAX)));
        assert!(!id(u32::MAX).is_newer_than(id(1)));
    }
}
