//! OPEN and its end, READ, WRITE, COMMIT.

use bytes::Bytes;

use super::args::{Claim, HowOpen, Open, Stateid};
use super::attr::{RawAttrs, SetAttrs};
use super::config::CommitMode;
use super::data::FileData;
use super::fs::{Kind, Node, R, Status, Time, W};
use super::proto::{fattr, st, stable};
use super::server::{Ctx, OpResult, Server};
use super::state::{SHARE_READ, SHARE_WRITE};
use super::xdr::{Bits, Enc};

/// OPEN result flags.
const LOCKTYPE_POSIX: u32 = 4;
const PRESERVE_UNLINKED: u32 = 8;

/// What a CLAIM_NULL open found or made.
struct Target {
    file: u64,
    /// True: no permission check, it is the caller's own new file.
    made: bool,
    attrset: Bits,
}

impl Server {
    /// OPEN (section 18.16). Deny modes are refused, as on EFS.
    pub(super) fn open(&mut self, ctx: &mut Ctx, args: &Open, out: &mut Enc) -> OpResult {
        let here = ctx.file()?;
        let client = ctx.client()?;
        let access = args.access & 3;
        if access == 0 || args.deny > 3 {
            return Err(st::INVAL.into());
        }
        if args.deny != 0 {
            return Err(st::NOTSUPP.into());
        }
        let now = self.now();
        match args.claim {
            Claim::Previous(_) => self.clients.may_reclaim(client, now)?,
            Claim::Delegation => return Err(st::NOTSUPP.into()),
            _ => self.clients.may_begin(client, now)?,
        }
        let before = self.fs.node(here)?.change;
        let target = match &args.claim {
            Claim::Null(name) => self.open_name(ctx, here, name, args)?,
            _ if !matches!(args.how, HowOpen::NoCreate) => return Err(st::INVAL.into()),
            _ => Target {
                file: here,
                made: matches!(args.claim, Claim::Previous(_)),
                attrset: Bits::default(),
            },
        };
        let node = self.fs.node(target.file)?;
        node.data()?;
        if !target.made {
            node.allows(&ctx.cred, wanted(access))?;
        }
        let (stateid, new) = self.state.open(client, &args.owner, target.file, access);
        if new {
            self.fs.hold(target.file);
        }
        put_stateid(out, stateid);
        match args.claim {
            Claim::Null(_) => self.cinfo(here, before, out)?,
            _ => {
                out.bool(false).u64(0).u64(0);
            }
        }
        let preserve = if self.cfg.preserve_unlinked {
            PRESERVE_UNLINKED
        } else {
            0
        };
        out.u32(LOCKTYPE_POSIX | preserve).bitmap(target.attrset);
        out.u32(0); // OPEN_DELEGATE_NONE
        ctx.set_file(target.file);
        ctx.stateid = Some(stateid);
        Ok(())
    }

    fn open_name(
        &mut self,
        ctx: &Ctx,
        dir: u64,
        name: &Bytes,
        args: &Open,
    ) -> Result<Target, Status> {
        let how = &args.how;
        let found = match how {
            HowOpen::NoCreate => {
                self.searchable(dir, &ctx.cred, name)?;
                Some(self.fs.lookup(dir, name)?)
            }
            _ => {
                self.writable_dir(dir, &ctx.cred, name)?;
                self.fs.lookup(dir, name).ok()
            }
        };
        let existing = |file, attrset| Target {
            file,
            made: false,
            attrset,
        };
        match (how, found) {
            (HowOpen::NoCreate, Some(file)) => Ok(existing(file, Bits::default())),
            (HowOpen::NoCreate, None) => Err(st::NOENT),
            (HowOpen::Unchecked(attrs), Some(file)) => {
                let node = self.fs.node(file)?;
                node.data()?;
                node.allows(&ctx.cred, wanted(args.access & 3))?;
                // Of a file that is there only the size is set, and only to zero.
                if attrs.parse(&self.cfg)?.size != Some(0) {
                    return Ok(existing(file, Bits::default()));
                }
                let cut = SetAttrs {
                    size: Some(0),
                    ..SetAttrs::default()
                };
                self.apply(&ctx.cred, file, &cut, false)?;
                Ok(existing(file, cut.bits()))
            }
            (HowOpen::Guarded(_), Some(_)) => Err(st::EXIST),
            (HowOpen::Exclusive(verf, attrs), Some(file)) => {
                if self.fs.node(file)?.create_verf != Some(*verf) {
                    return Err(st::EXIST);
                }
                Ok(Target {
                    file,
                    made: true,
                    attrset: self.exclusive_set(attrs.as_ref()),
                })
            }
            (HowOpen::Unchecked(attrs) | HowOpen::Guarded(attrs), None) => {
                let set = attrs.parse(&self.cfg)?;
                let file = self.make_file(ctx, dir, name, &set)?;
                Ok(Target {
                    file,
                    made: true,
                    attrset: set.bits(),
                })
            }
            (HowOpen::Exclusive(verf, attrs), None) => {
                let set = match attrs {
                    Some(attrs) => attrs.parse_exclusive(&self.cfg)?,
                    None => SetAttrs::default(),
                };
                let file = self.make_file(ctx, dir, name, &set)?;
                let in_times = self.cfg.exclusive_in_times;
                let node = self.fs.node_mut(file)?;
                node.create_verf = Some(*verf);
                if in_times {
                    let half = |at: usize| Time {
                        secs: i64::from(
                            u32::from_be_bytes([
                                verf[at],
                                verf[at + 1],
                                verf[at + 2],
                                verf[at + 3],
                            ]) & 0x7fff_ffff,
                        ),
                        nanos: 0,
                    };
                    (node.atime, node.mtime) = (half(0), half(4));
                }
                Ok(Target {
                    file,
                    made: true,
                    attrset: self.exclusive_set(attrs.as_ref()),
                })
            }
        }
    }

    fn exclusive_set(&self, attrs: Option<&RawAttrs>) -> Bits {
        let mut set = attrs.map(|a| a.bits).unwrap_or_default();
        if self.cfg.exclusive_in_times {
            set.set(fattr::TIME_ACCESS);
            set.set(fattr::TIME_MODIFY);
        }
        set
    }

    fn make_file(
        &mut self,
        ctx: &Ctx,
        dir: u64,
        name: &Bytes,
        set: &SetAttrs,
    ) -> Result<u64, Status> {
        self.make(ctx, dir, name, Kind::Reg(FileData::default()), set)
    }

    pub(super) fn open_downgrade(
        &mut self,
        ctx: &mut Ctx,
        id: Stateid,
        (access, deny): (u32, u32),
        out: &mut Enc,
    ) -> OpResult {
        ctx.file()?;
        if access & 3 == 0 || deny != 0 {
            return Err(st::INVAL.into());
        }
        let id = ctx.resolve(id)?;
        let id = self.state.downgrade(ctx.client()?, id, access & 3)?;
        put_stateid(out, id);
        ctx.stateid = Some(id);
        Ok(())
    }

    pub(super) fn close(&mut self, ctx: &mut Ctx, id: Stateid, out: &mut Enc) -> OpResult {
        let file = ctx.file()?;
        let id = ctx.resolve(id)?;
        let file = self.state.close(ctx.client()?, id, file)?;
        self.fs.release(file);
        put_stateid(out, Stateid::INVALID);
        ctx.stateid = None;
        Ok(())
    }

    /// Checks a stateid for I/O: the open must allow it, and the caller too.
    /// The owner of a file passes whatever its mode became since the OPEN.
    fn may_io(&self, ctx: &Ctx, id: Stateid, node: &Node, share: u32) -> Result<(), Status> {
        let id = ctx.resolve(id)?;
        if id != Stateid::ANONYMOUS && id != Stateid::BYPASS {
            let open = self.state.open_of(ctx.client()?, id)?;
            if open.file != node.id {
                return Err(st::BAD_STATEID);
            }
            if open.access & share == 0 {
                return Err(st::OPENMODE);
            }
        }
        if ctx.cred.uid == node.uid {
            return Ok(());
        }
        node.allows(&ctx.cred, wanted(share))
    }

    pub(super) fn read(
        &self,
        ctx: &Ctx,
        id: Stateid,
        (offset, count): (u64, u32),
        out: &mut Enc,
    ) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        let data = node.data()?;
        self.may_io(ctx, id, node, SHARE_READ)?;
        let count = count.min(self.cfg.maxread).min(self.io_limit.1);
        let bytes = data.read(offset, count);
        let eof = offset.saturating_add(bytes.len() as u64) >= data.size();
        out.bool(eof).opaque(&bytes);
        Ok(())
    }

    pub(super) fn write(
        &mut self,
        ctx: &Ctx,
        id: Stateid,
        (offset, how): (u64, u32),
        data: &Bytes,
        out: &mut Enc,
    ) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        node.data()?;
        self.may_io(ctx, id, node, SHARE_WRITE)?;
        if how > stable::FILE_SYNC {
            return Err(st::BADXDR.into());
        }
        let most = self.cfg.maxwrite.min(self.io_limit.0) as usize;
        let taken = &data[..data.len().min(most)];
        let end = offset.checked_add(taken.len() as u64);
        if end.is_none_or(|end| end > self.cfg.max_file_size) {
            return Err(st::FBIG.into());
        }
        let committed = match (how, self.cfg.commit_mode) {
            (stable::UNSTABLE, CommitMode::Unstable) => stable::UNSTABLE,
            _ => stable::FILE_SYNC,
        };
        let file = node.id;
        let node = self.fs.node_mut(file)?;
        node.data_mut()?
            .write(offset, taken, committed == stable::FILE_SYNC);
        if ctx.cred.uid != 0 {
            node.mode &= !0o6000;
        }
        if !taken.is_empty() {
            if self.cfg.exclusive_until_times {
                node.create_verf = None;
            }
            self.fs.touch(file, true);
        }
        out.u32(taken.len() as u32).u32(committed);
        out.u64(self.write_verifier());
        Ok(())
    }

    pub(super) fn commit(&mut self, ctx: &Ctx, offset: u64, count: u32, out: &mut Enc) -> OpResult {
        let node = self.fs.node_mut(ctx.file()?)?;
        node.data_mut()?.commit(offset, count);
        out.u64(self.write_verifier());
        Ok(())
    }
}

/// rwx bits for share access bits.
fn wanted(share: u32) -> u32 {
    let read = if share & SHARE_READ != 0 { R } else { 0 };
    let write = if share & SHARE_WRITE != 0 { W } else { 0 };
    read | write
}

pub(super) fn put_stateid(out: &mut Enc, id: Stateid) {
    out.u32(id.seqid).fixed(&id.other);
}
