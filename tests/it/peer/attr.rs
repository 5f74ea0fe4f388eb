//! fattr4: what GETATTR and READDIR encode, what SETATTR, OPEN and CREATE decode.

use bytes::Bytes;

use super::config::PeerConfig;
use super::fs::{Fs, Kind, Node, ROOT, Status, Time};
use super::proto::{fattr, ftype, st};
use super::xdr::{BadXdr, Bits, Dec, Enc};

/// Attributes that can be read (and with `_SET`: written).
const SUPPORTED: &[u32] = &[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 17, 18, 19, 20, 26, 27, 28, 29, 30, 31, 33, 34,
    35, 36, 37, 41, 42, 43, 44, 45, 47, 48, 50, 51, 52, 53, 54, 55, 75,
];

/// Attributes that SETATTR takes.
const SETTABLE: &[u32] = &[
    fattr::SIZE,
    fattr::MODE,
    fattr::OWNER,
    fattr::OWNER_GROUP,
    fattr::TIME_ACCESS_SET,
    fattr::TIME_MODIFY_SET,
];

/// What EXCLUSIVE4_1 takes along.
const EXCLCREAT: &[u32] = &[fattr::SIZE, fattr::MODE, fattr::OWNER, fattr::OWNER_GROUP];

const FSID_MAJOR: u64 = 0x6566_7300;

/// EFS shows about 8 EiB, whatever is stored; each further file system half of it.
const SPACE_TOTAL: u64 = 0x7fff_ffff_ffff_f000;

pub(crate) fn supported(cfg: &PeerConfig) -> Bits {
    Bits::of(SUPPORTED).without(Bits::of(&cfg.hidden_attrs))
}

/// A handle: a magic word, fileid, generation, then padding that is not zero,
/// so that a client which cuts handles is found out.
pub(crate) fn filehandle(node: &Node, cfg: &PeerConfig) -> Vec<u8> {
    let mut fh = Vec::with_capacity(cfg.fh_len);
    fh.extend_from_slice(b"efsdubel");
    fh.extend_from_slice(&node.id.to_be_bytes());
    fh.extend_from_slice(&node.generation.to_be_bytes());
    while fh.len() < cfg.fh_len.min(128) {
        fh.push(0xa0 ^ fh.len() as u8 ^ node.id as u8);
    }
    fh
}

/// The inode of a handle. Every byte must be as it was given out.
pub(crate) fn parse_filehandle(fh: &[u8], fs: &Fs, cfg: &PeerConfig) -> Result<u64, Status> {
    if fh.len() < 24 || &fh[..8] != b"efsdubel" {
        return Err(st::BADHANDLE);
    }
    let word = |at: usize| fh[at..at + 8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
    let id = fs.resolve(word(8), word(16))?;
    if filehandle(fs.node(id)?, cfg) != fh {
        return Err(st::BADHANDLE);
    }
    Ok(id)
}

/// Writes a fattr4: the bitmap of what was asked and is supported, the values.
pub(crate) fn encode(out: &mut Enc, node: &Node, asked: Bits, cfg: &PeerConfig) {
    let bits = asked
        .and(supported(cfg))
        .without(Bits::of(&[fattr::TIME_ACCESS_SET, fattr::TIME_MODIFY_SET]));
    let mut values = Enc::new();
    for number in bits.iter() {
        value(&mut values, node, number, cfg);
    }
    out.bitmap(bits).opaque(&values.0);
}

fn value(out: &mut Enc, node: &Node, number: u32, cfg: &PeerConfig) {
    match number {
        fattr::SUPPORTED_ATTRS => out.bitmap(supported(cfg)),
        fattr::TYPE => out.u32(node.ftype()),
        fattr::FH_EXPIRE_TYPE | fattr::RDATTR_ERROR => out.u32(0),
        fattr::CHANGE => out.u64(node.change),
        fattr::SIZE => out.u64(node.size()),
        fattr::LINK_SUPPORT
        | fattr::SYMLINK_SUPPORT
        | fattr::UNIQUE_HANDLES
        | fattr::CANSETTIME
        | fattr::CASE_PRESERVING
        | fattr::CHOWN_RESTRICTED
        | fattr::HOMOGENEOUS
        | fattr::NO_TRUNC => out.bool(true),
        fattr::NAMED_ATTR | fattr::CASE_INSENSITIVE => out.bool(false),
        fattr::FSID => out.u64(FSID_MAJOR).u64(node.fsid),
        fattr::LEASE_TIME => out.u32(cfg.lease_s),
        fattr::FILEHANDLE => out.opaque(&filehandle(node, cfg)),
        fattr::FILEID => out.u64(node.fileid),
        fattr::MAXFILESIZE => out.u64(cfg.max_file_size),
        fattr::MAXLINK => out.u32(cfg.maxlink),
        fattr::MAXNAME => out.u32(255),
        fattr::MAXREAD => out.u64(u64::from(cfg.maxread)),
        fattr::MAXWRITE => out.u64(u64::from(cfg.maxwrite)),
        fattr::MODE => out.u32(node.mode),
        fattr::NUMLINKS => out.u32(node.nlink),
        fattr::OWNER => out.opaque(node.uid.to_string().as_bytes()),
        fattr::OWNER_GROUP => out.opaque(node.gid.to_string().as_bytes()),
        fattr::RAWDEV => match node.kind {
            Kind::Special(_, (major, minor)) => out.u32(major).u32(minor),
            _ => out.u32(0).u32(0),
        },
        fattr::SPACE_AVAIL | fattr::SPACE_FREE | fattr::SPACE_TOTAL => {
            out.u64(SPACE_TOTAL >> (node.fsid - 1))
        }
        fattr::SPACE_USED => out.u64(match &node.kind {
            Kind::Reg(data) => data.used(),
            _ => 4096,
        }),
        fattr::TIME_ACCESS => time(out, node.atime),
        fattr::TIME_CREATE => time(out, node.btime),
        fattr::TIME_METADATA => time(out, node.ctime),
        fattr::TIME_MODIFY => time(out, node.mtime),
        fattr::TIME_DELTA => time(out, Time { secs: 0, nanos: 1 }),
        // Zero for the root, as ganesha says: no client should take it for st_ino.
        fattr::MOUNTED_ON_FILEID => out.u64(if node.id == ROOT { 0 } else { node.id }),
        fattr::SUPPATTR_EXCLCREAT => out.bitmap(Bits::of(EXCLCREAT)),
        _ => out,
    };
}

fn time(out: &mut Enc, t: Time) -> &mut Enc {
    out.u64(t.secs as u64).u32(t.nanos)
}

/// A fattr4 as received, decoded only when its operation runs.
#[derive(Debug, Clone)]
pub(crate) struct RawAttrs {
    pub(crate) bits: Bits,
    pub(crate) values: Bytes,
}

/// settime4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetTime {
    Server,
    Client(Time),
}

/// The attributes to set.
#[derive(Debug, Clone, Default)]
pub(crate) struct SetAttrs {
    pub(crate) size: Option<u64>,
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) atime: Option<SetTime>,
    pub(crate) mtime: Option<SetTime>,
}

impl SetAttrs {
    /// The bitmap of what is present: the attrset of a success.
    pub(crate) fn bits(&self) -> Bits {
        let mut bits = Bits::default();
        let mut put = |present: bool, number| {
            if present {
                bits.set(number);
            }
        };
        put(self.size.is_some(), fattr::SIZE);
        put(self.mode.is_some(), fattr::MODE);
        put(self.uid.is_some(), fattr::OWNER);
        put(self.gid.is_some(), fattr::OWNER_GROUP);
        put(self.atime.is_some(), fattr::TIME_ACCESS_SET);
        put(self.mtime.is_some(), fattr::TIME_MODIFY_SET);
        bits
    }
}

impl RawAttrs {
    pub(crate) fn decode(d: &mut Dec) -> Result<Self, BadXdr> {
        Ok(Self {
            bits: d.bitmap()?,
            values: d.opaque(64 * 1024)?,
        })
    }

    /// Checks and decodes: ATTRNOTSUPP for what is unknown, INVAL for what can
    /// only be read, BADXDR unless the values end where the bitmap says.
    pub(crate) fn parse(&self, cfg: &PeerConfig) -> Result<SetAttrs, Status> {
        if !self.bits.without(supported(cfg)).is_empty() {
            return Err(st::ATTRNOTSUPP);
        }
        if !self.bits.without(Bits::of(SETTABLE)).is_empty() {
            return Err(st::INVAL);
        }
        let mut d = Dec::new(self.values.clone());
        let mut set = SetAttrs::default();
        for number in self.bits.iter() {
            match number {
                fattr::SIZE => set.size = Some(d.u64()?),
                fattr::MODE => set.mode = Some(d.u32()? & 0o7777),
                fattr::OWNER => set.uid = Some(numeric(&d.opaque(1024)?)?),
                fattr::OWNER_GROUP => set.gid = Some(numeric(&d.opaque(1024)?)?),
                fattr::TIME_ACCESS_SET => set.atime = Some(settime(&mut d)?),
                _ => set.mtime = Some(settime(&mut d)?),
            }
        }
        if d.remaining() != 0 {
            return Err(st::BADXDR);
        }
        Ok(set)
    }

    /// Like [`Self::parse`] for EXCLUSIVE4_1, which takes fewer attributes.
    pub(crate) fn parse_exclusive(&self, cfg: &PeerConfig) -> Result<SetAttrs, Status> {
        if !self.bits.without(Bits::of(EXCLCREAT)).is_empty() {
            return Err(st::INVAL);
        }
        self.parse(cfg)
    }
}

impl From<BadXdr> for Status {
    fn from(_: BadXdr) -> Self {
        st::BADXDR
    }
}

/// Owners are decimal numbers, nothing else (as on EFS).
fn numeric(name: &[u8]) -> Result<u32, Status> {
    std::str::from_utf8(name)
        .ok()
        .filter(|s| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit()))
        .and_then(|s| s.parse().ok())
        .ok_or(st::BADOWNER)
}

fn settime(d: &mut Dec) -> Result<SetTime, Status> {
    match d.u32()? {
        0 => Ok(SetTime::Server),
        1 => {
            let secs = d.u64()? as i64;
            let nanos = d.u32()?;
            if nanos >= 1_000_000_000 {
                return Err(st::INVAL);
            }
            Ok(SetTime::Client(Time { secs, nanos }))
        }
        _ => Err(st::BADXDR),
    }
}

/// Does a directory entry of this type exist without asking for more?
pub(crate) fn is_device(kind: u32) -> bool {
    kind == ftype::BLK || kind == ftype::CHR
}
