//! File attributes (RFC 8881 §5): which to ask for, and what came back.
//!
//! A reply carries a bitmap of its own and the length of what follows. Both
//! are believed only as far as they agree: decoding must end exactly where the
//! length says, and an attribute that was never asked for is an error, because
//! its size is not known.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::types::{FileHandle, FileType, NfsTime};
use crate::xdr::{DecodeError, Decoder, Encoder};

/// A set of attributes (bitmap4), of the first 96 numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "u128", into = "u128")]
pub struct AttrSet(u128);

impl From<u128> for AttrSet {
    fn from(bits: u128) -> Self {
        Self(bits)
    }
}

impl From<AttrSet> for u128 {
    fn from(set: AttrSet) -> Self {
        set.0
    }
}

impl AttrSet {
    /// A set of these attribute numbers.
    pub const fn of(numbers: &[u32]) -> Self {
        let mut bits = 0;
        let mut i = 0;
        while i < numbers.len() {
            bits |= 1 << numbers[i];
            i += 1;
        }
        Self(bits)
    }

    /// Whether the set has this attribute.
    pub const fn has(self, number: u32) -> bool {
        self.0 >> number & 1 == 1
    }

    /// What both sets have.
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// What either set has.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What `self` has and `other` has not.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The set has no attribute.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Appends the bitmap.
    pub fn encode(self, enc: &mut Encoder) {
        let words = (128 - self.0.leading_zeros()).div_ceil(32);
        enc.u32(words);
        for word in 0..words {
            enc.u32((self.0 >> (32 * word)) as u32);
        }
    }

    /// Takes a bitmap off a reply. Bits beyond what we know may be set in it;
    /// they are dropped.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        let mut bits = 0;
        for word in 0..dec.count("bitmap", 4)? {
            let value = dec.u32("bitmap")?;
            if word < 4 {
                bits |= u128::from(value) << (32 * word);
            }
        }
        Ok(Self(bits))
    }

    /// In ascending order, as their values come (§5.6).
    fn iter(self) -> impl Iterator<Item = u32> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            (left != 0).then(|| {
                let lowest = left.trailing_zeros();
                left &= left - 1;
                lowest
            })
        })
    }
}

/// Attribute numbers (RFC 8881 §5.6, §5.8).
#[allow(missing_docs)] // the names are the RFC's
pub mod number {
    pub const SUPPORTED_ATTRS: u32 = 0;
    pub const TYPE: u32 = 1;
    pub const FH_EXPIRE_TYPE: u32 = 2;
    pub const CHANGE: u32 = 3;
    pub const SIZE: u32 = 4;
    pub const FSID: u32 = 8;
    pub const UNIQUE_HANDLES: u32 = 9;
    pub const LEASE_TIME: u32 = 10;
    pub const RDATTR_ERROR: u32 = 11;
    pub const FILEHANDLE: u32 = 19;
    pub const FILEID: u32 = 20;
    pub const FILES_AVAIL: u32 = 21;
    pub const FILES_FREE: u32 = 22;
    pub const FILES_TOTAL: u32 = 23;
    pub const MAXFILESIZE: u32 = 27;
    pub const MAXLINK: u32 = 28;
    pub const MAXNAME: u32 = 29;
    pub const MAXREAD: u32 = 30;
    pub const MAXWRITE: u32 = 31;
    pub const MODE: u32 = 33;
    pub const NUMLINKS: u32 = 35;
    pub const OWNER: u32 = 36;
    pub const OWNER_GROUP: u32 = 37;
    pub const RAWDEV: u32 = 41;
    pub const SPACE_AVAIL: u32 = 42;
    pub const SPACE_FREE: u32 = 43;
    pub const SPACE_TOTAL: u32 = 44;
    pub const SPACE_USED: u32 = 45;
    pub const TIME_ACCESS: u32 = 47;
    pub const TIME_ACCESS_SET: u32 = 48;
    pub const TIME_METADATA: u32 = 52;
    pub const TIME_MODIFY: u32 = 53;
    pub const TIME_MODIFY_SET: u32 = 54;
    pub const SUPPATTR_EXCLCREAT: u32 = 75;
}
use number as n;

/// Everything `stat(2)` shows, and the change attribute.
pub const OBJECT: AttrSet = AttrSet::of(&[
    n::TYPE,
    n::CHANGE,
    n::SIZE,
    n::FSID,
    n::FILEID,
    n::MODE,
    n::NUMLINKS,
    n::OWNER,
    n::OWNER_GROUP,
    n::RAWDEV,
    n::SPACE_USED,
    n::TIME_ACCESS,
    n::TIME_METADATA,
    n::TIME_MODIFY,
]);

/// What READDIR asks for each entry: as LOOKUP would return, and an error
/// instead of a failed listing where one entry is broken.
pub const ENTRY: AttrSet = OBJECT.or(AttrSet::of(&[n::FILEHANDLE, n::RDATTR_ERROR]));

/// How many names an object has, and nothing else.
pub const LINKS_ONLY: AttrSet = AttrSet::of(&[n::NUMLINKS]);

/// Only which object it is.
pub const FILEID_ONLY: AttrSet = AttrSet::of(&[n::FILEID]);

/// Only whether an object moved.
pub const CHANGE_ONLY: AttrSet = AttrSet::of(&[n::CHANGE]);

/// What is asked once, of the root, at mount.
pub const FILE_SYSTEM: AttrSet = AttrSet::of(&[
    n::SUPPORTED_ATTRS,
    n::FH_EXPIRE_TYPE,
    n::UNIQUE_HANDLES,
    n::LEASE_TIME,
    n::MAXFILESIZE,
    n::MAXNAME,
    n::MAXREAD,
    n::MAXWRITE,
    n::SUPPATTR_EXCLCREAT,
]);

/// What `statvfs(3)` shows.
pub const SPACE: AttrSet = AttrSet::of(&[
    n::FILES_AVAIL,
    n::FILES_FREE,
    n::FILES_TOTAL,
    n::SPACE_AVAIL,
    n::SPACE_FREE,
    n::SPACE_TOTAL,
    n::MAXNAME,
]);

/// Who owns files whose owner the server does not give as a number.
pub const NOBODY: u32 = 65534;

/// The attributes of an object, as far as a reply had them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Which of the fields are meant; the others are zero.
    pub present: AttrSet,
    /// Type, if given.
    pub kind: Option<FileType>,
    /// Moves whenever the object changes; only equality means anything.
    pub change: u64,
    /// Bytes.
    pub size: u64,
    /// File system: major, minor.
    pub fsid: (u64, u64),
    /// Unique within the file system.
    pub fileid: u64,
    /// Permission bits.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device: major, minor.
    pub rdev: (u32, u32),
    /// Bytes of storage used.
    pub space_used: u64,
    /// Last access.
    pub atime: NfsTime,
    /// Last change of attributes.
    pub ctime: NfsTime,
    /// Last change of data.
    pub mtime: NfsTime,
    /// The handle (READDIR).
    pub handle: Option<FileHandle>,
    /// Why the other attributes of a READDIR entry are missing.
    pub error: Option<u32>,
    /// Attributes of the file system, if any was given.
    pub fs: Option<Box<FsAttributes>>,
}

/// Attributes of a whole file system, as far as a reply had them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsAttributes {
    /// What the server supports.
    pub supported: AttrSet,
    /// What EXCLUSIVE4_1 may set at creation.
    pub exclcreat: AttrSet,
    /// FH4_* bits; 0 = handles are persistent.
    pub fh_expire_type: u32,
    /// Two handles that differ are two objects.
    pub unique_handles: bool,
    /// Seconds.
    pub lease_time: u32,
    /// Largest file, bytes; 0 = not said.
    pub max_file_size: u64,
    /// Longest name, bytes; 0 = not said.
    pub max_name: u32,
    /// Largest READ, bytes; 0 = not said.
    pub max_read: u64,
    /// Largest WRITE, bytes; 0 = not said.
    pub max_write: u64,
    /// Free file slots for this user.
    pub files_avail: u64,
    /// Free file slots.
    pub files_free: u64,
    /// All file slots.
    pub files_total: u64,
    /// Free bytes for this user.
    pub space_avail: u64,
    /// Free bytes.
    pub space_free: u64,
    /// All bytes.
    pub space_total: u64,
}

impl Attributes {
    /// Takes a fattr4 off a reply.
    pub fn decode(dec: &mut Decoder) -> Result<Self, DecodeError> {
        let present = AttrSet::decode(dec)?;
        let mut dec = dec.sub("attributes", usize::MAX)?;
        let mut attrs = Self {
            present,
            ..Self::default()
        };
        for number in present.iter() {
            attrs.decode_one(number, &mut dec)?;
        }
        if dec.remaining() != 0 {
            return Err(DecodeError::Invalid("attribute list length"));
        }
        Ok(attrs)
    }

    fn decode_one(&mut self, number: u32, dec: &mut Decoder) -> Result<(), DecodeError> {
        match number {
            n::TYPE => self.kind = Some(FileType::decode(dec)?),
            n::CHANGE => self.change = dec.u64("change")?,
            n::SIZE => self.size = dec.u64("size")?,
            n::FSID => self.fsid = (dec.u64("fsid.major")?, dec.u64("fsid.minor")?),
            n::RDATTR_ERROR => self.error = Some(dec.u32("rdattr_error")?).filter(|&e| e != 0),
            n::FILEHANDLE => self.handle = Some(FileHandle::decode(dec)?),
            n::FILEID => self.fileid = dec.u64("fileid")?,
            n::MODE => self.mode = dec.u32("mode")? & 0o7777,
            n::NUMLINKS => self.nlink = dec.u32("numlinks")?,
            n::OWNER => self.uid = decode_owner(dec)?,
            n::OWNER_GROUP => self.gid = decode_owner(dec)?,
            n::RAWDEV => self.rdev = (dec.u32("rawdev.major")?, dec.u32("rawdev.minor")?),
            n::SPACE_USED => self.space_used = dec.u64("space_used")?,
            n::TIME_ACCESS => self.atime = NfsTime::decode(dec)?,
            n::TIME_METADATA => self.ctime = NfsTime::decode(dec)?,
            n::TIME_MODIFY => self.mtime = NfsTime::decode(dec)?,
            _ => return self.fs.get_or_insert_default().decode_one(number, dec),
        }
        Ok(())
    }

    /// The attributes are those of a `stat(2)`: nothing of it is missing.
    pub fn is_whole(&self) -> bool {
        const NEEDED: AttrSet = AttrSet::of(&[n::TYPE, n::CHANGE, n::SIZE, n::FILEID, n::MODE]);
        self.error.is_none() && NEEDED.without(self.present).is_empty()
    }
}

impl FsAttributes {
    fn decode_one(&mut self, number: u32, dec: &mut Decoder) -> Result<(), DecodeError> {
        match number {
            n::SUPPORTED_ATTRS => self.supported = AttrSet::decode(dec)?,
            n::SUPPATTR_EXCLCREAT => self.exclcreat = AttrSet::decode(dec)?,
            n::FH_EXPIRE_TYPE => self.fh_expire_type = dec.u32("fh_expire_type")?,
            n::UNIQUE_HANDLES => self.unique_handles = dec.bool("unique_handles")?,
            n::LEASE_TIME => self.lease_time = dec.u32("lease_time")?,
            n::MAXFILESIZE => self.max_file_size = dec.u64("maxfilesize")?,
            n::MAXNAME => self.max_name = dec.u32("maxname")?,
            n::MAXREAD => self.max_read = dec.u64("maxread")?,
            n::MAXWRITE => self.max_write = dec.u64("maxwrite")?,
            n::FILES_AVAIL => self.files_avail = dec.u64("files_avail")?,
            n::FILES_FREE => self.files_free = dec.u64("files_free")?,
            n::FILES_TOTAL => self.files_total = dec.u64("files_total")?,
            n::SPACE_AVAIL => self.space_avail = dec.u64("space_avail")?,
            n::SPACE_FREE => self.space_free = dec.u64("space_free")?,
            n::SPACE_TOTAL => self.space_total = dec.u64("space_total")?,
            _ => return Err(DecodeError::Invalid("attribute (not asked for)")),
        }
        Ok(())
    }
}

/// An owner is a number in ASCII where no name mapping is in use, as on EFS
/// (RFC 8881 §5.9). Anything else is nobody, and never root.
fn decode_owner(dec: &mut Decoder) -> Result<u32, DecodeError> {
    let text: Bytes = dec.opaque("owner", 1024)?;
    let digits = text.split(|&byte| byte == b'@').next().unwrap_or_default();
    Ok(std::str::from_utf8(digits)
        .ok()
        .filter(|digits| !digits.starts_with('+'))
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(NOBODY))
}

/// A time to set (settime4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewTime {
    /// SET_TO_SERVER_TIME4.
    Server,
    /// SET_TO_CLIENT_TIME4.
    At(NfsTime),
}

/// Attributes to set: of a new object, or by SETATTR.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewAttributes {
    /// Size, bytes.
    pub size: Option<u64>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner, sent as a decimal number.
    pub uid: Option<u32>,
    /// Group, sent as a decimal number.
    pub gid: Option<u32>,
    /// Access time.
    pub atime: Option<NewTime>,
    /// Modification time.
    pub mtime: Option<NewTime>,
}

impl NewAttributes {
    /// The size alone.
    pub const fn of_size(size: u64) -> Self {
        Self {
            size: Some(size),
            mode: None,
            uid: None,
            gid: None,
            atime: None,
            mtime: None,
        }
    }

    /// Which attributes would be set.
    pub fn set(&self) -> AttrSet {
        let bit = |there: bool, number| {
            if there {
                AttrSet::of(&[number])
            } else {
                AttrSet::default()
            }
        };
        bit(self.size.is_some(), n::SIZE)
            .or(bit(self.mode.is_some(), n::MODE))
            .or(bit(self.uid.is_some(), n::OWNER))
            .or(bit(self.gid.is_some(), n::OWNER_GROUP))
            .or(bit(self.atime.is_some(), n::TIME_ACCESS_SET))
            .or(bit(self.mtime.is_some(), n::TIME_MODIFY_SET))
    }

    /// Appends a fattr4, values in ascending order of their numbers.
    pub fn encode(&self, enc: &mut Encoder) {
        self.set().encode(enc);
        let length_at = enc.len();
        enc.u32(0);
        if let Some(size) = self.size {
            enc.u64(size);
        }
        if let Some(mode) = self.mode {
            enc.u32(mode & 0o7777);
        }
        for owner in [self.uid, self.gid].into_iter().flatten() {
            enc.opaque(owner.to_string().as_bytes());
        }
        for time in [self.atime, self.mtime].into_iter().flatten() {
            match time {
                NewTime::Server => {
                    enc.u32(0);
                }
                NewTime::At(time) => {
                    enc.u32(1);
                    time.encode(enc);
                }
            }
        }
        let length = enc.len() - length_at - 4;
        enc.patch_u32(length_at, length as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(words: &[u8]) -> Result<Attributes, DecodeError> {
        Attributes::decode(&mut Decoder::new(Bytes::copy_from_slice(words)))
    }

    #[test]
    fn a_bitmap_is_as_long_as_its_highest_attribute_needs() {
        let mut enc = Encoder::default();
        AttrSet::of(&[n::TYPE, n::MODE]).encode(&mut enc);
        assert_eq!(enc.as_slice(), [0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2]);
        let mut enc = Encoder::default();
        AttrSet::default().encode(&mut enc);
        assert_eq!(enc.as_slice(), [0, 0, 0, 0]);
    }

    #[test]
    fn the_replys_own_bitmap_says_what_follows() {
        let attrs = decode(&[
            0, 0, 0, 2, // two words
            0, 0, 0, 0x1a, // type, change, size
            0, 0, 0, 0x12, // mode, owner
            0, 0, 0, 32, // length
            0, 0, 0, 1, // regular
            0, 0, 0, 0, 0, 0, 0, 9, // change
            0, 0, 0, 0, 0, 0, 1, 0, // size
            0, 0, 0o1, 0o244, // mode 0644
            0, 0, 0, 4, b'1', b'0', b'0', b'0', // owner
        ])
        .unwrap();
        assert_eq!(attrs.kind, Some(FileType::Regular));
        assert_eq!((attrs.change, attrs.size, attrs.uid), (9, 256, 1000));
        assert_eq!(attrs.mode, 0o644);
        assert!(!attrs.is_whole(), "no fileid");
    }

    #[test]
    fn a_list_length_that_disagrees_with_the_bitmap_is_refused() {
        let short = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0];
        assert_eq!(decode(&short).unwrap_err(), DecodeError::Short("type"));
        let long = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0];
        assert_eq!(
            decode(&long).unwrap_err(),
            DecodeError::Invalid("attribute list length")
        );
    }

    #[test]
    fn a_billion_bitmap_words_are_refused() {
        assert!(decode(&[0x3b, 0x9a, 0xca, 0, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn an_attribute_never_asked_for_is_refused() {
        assert!(decode(&[0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 4, 0, 0, 0, 0]).is_err());
    }

    #[test]
    fn an_owner_that_is_no_number_is_nobody() {
        for (text, uid) in [
            ("0", 0),
            ("1000@example.com", 1000),
            ("root@localdomain", NOBODY),
            ("", NOBODY),
            ("-1", NOBODY),
            ("+5", NOBODY),
            ("4294967296", NOBODY),
        ] {
            let mut enc = Encoder::default();
            enc.opaque(text.as_bytes());
            let mut dec = Decoder::new(enc.into_vec().into());
            assert_eq!(decode_owner(&mut dec), Ok(uid), "{text:?}");
        }
    }

    #[test]
    fn attributes_to_set_are_encoded_in_ascending_order() {
        let mut enc = Encoder::default();
        NewAttributes {
            size: Some(1),
            mode: Some(0o100_600),
            uid: Some(7),
            atime: Some(NewTime::Server),
            mtime: Some(NewTime::At(NfsTime { sec: -1, nsec: 5 })),
            ..NewAttributes::default()
        }
        .encode(&mut enc);
        assert_eq!(
            enc.as_slice(),
            [
                0, 0, 0, 2, 0, 0, 0, 0x10, 0, 0x41, 0, 0x12, // bitmap
                0, 0, 0, 40, // length
                0, 0, 0, 0, 0, 0, 0, 1, // size
                0, 0, 1, 0x80, // mode 0600
                0, 0, 0, 1, b'7', 0, 0, 0, // owner
                0, 0, 0, 0, // atime: server
                0, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 5, // mtime
            ]
        );
    }
}
