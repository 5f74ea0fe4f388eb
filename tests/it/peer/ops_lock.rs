//! LOCK, LOCKT, LOCKU, TEST_STATEID. Nothing waits: a client polls.

use bytes::Bytes;

use super::args::{Locker, Range, Stateid};
use super::fs::Status;
use super::ops_io::put_stateid;
use super::proto::st;
use super::server::{Ctx, OpError, OpResult, Server};
use super::state::{ByteLock, SHARE_READ, SHARE_WRITE, Want};
use super::xdr::Enc;

impl Server {
    pub(super) fn lock(
        &mut self,
        ctx: &mut Ctx,
        kind: u32,
        reclaim: bool,
        range: Range,
        locker: &Locker,
        out: &mut Enc,
    ) -> OpResult {
        let file = ctx.file()?;
        let client = ctx.client()?;
        let write = is_write(kind)?;
        let (start, end) = bounds(range)?;
        let now = self.now();
        match reclaim {
            true => self.clients.may_reclaim(client, now)?,
            false => self.clients.may_begin(client, now)?,
        }
        let (open, owner) = match locker {
            Locker::New { open, owner } => (ctx.resolve(*open)?, owner.clone()),
            Locker::Known(id) => {
                let id = ctx.resolve(*id)?;
                let owner = self.state.lock_state_of(client, id)?.owner.clone();
                (id, owner)
            }
        };
        let state = self.state.open_of(client, open)?;
        if state.file != file {
            return Err(st::BAD_STATEID.into());
        }
        let need = if write { SHARE_WRITE } else { SHARE_READ };
        if state.access & need == 0 {
            return Err(st::OPENMODE.into());
        }
        let want = Want {
            client,
            owner: &owner,
            start,
            end,
            write,
        };
        if let Some(holder) = self.state.conflict(file, &want) {
            return Err(match reclaim {
                true => st::RECLAIM_CONFLICT.into(),
                false => denied(holder),
            });
        }
        let state = match locker {
            Locker::New { .. } => self.state.lock_state(client, open.other, &owner)?,
            Locker::Known(_) => open.other,
        };
        let id = self.state.set_range(state, start, end, Some(write))?;
        put_stateid(out, id);
        ctx.stateid = Some(id);
        Ok(())
    }

    pub(super) fn lockt(&self, ctx: &Ctx, kind: u32, range: Range, owner: &Bytes) -> OpResult {
        let file = ctx.file()?;
        self.fs.node(file)?.data()?;
        self.no_grace()?;
        let (start, end) = bounds(range)?;
        let want = Want {
            client: ctx.client()?,
            owner,
            start,
            end,
            write: is_write(kind)?,
        };
        match self.state.conflict(file, &want) {
            Some(holder) => Err(denied(holder)),
            None => Ok(()),
        }
    }

    pub(super) fn locku(
        &mut self,
        ctx: &mut Ctx,
        id: Stateid,
        range: Range,
        out: &mut Enc,
    ) -> OpResult {
        let file = ctx.file()?;
        let (start, end) = bounds(range)?;
        let id = ctx.resolve(id)?;
        if self.state.lock_state_of(ctx.client()?, id)?.file != file {
            return Err(st::BAD_STATEID.into());
        }
        let id = self.state.set_range(id.other, start, end, None)?;
        put_stateid(out, id);
        ctx.stateid = Some(id);
        Ok(())
    }

    pub(super) fn test_stateid(&self, ctx: &Ctx, ids: &[Stateid], out: &mut Enc) -> OpResult {
        let client = ctx.client()?;
        out.u32(ids.len() as u32);
        for id in ids {
            out.u32(self.state.check(client, *id).err().unwrap_or(st::OK));
        }
        Ok(())
    }
}

/// nfs_lock_type4; the waiting kinds are only a hint.
fn is_write(kind: u32) -> Result<bool, Status> {
    match kind {
        1 | 3 => Ok(false),
        2 | 4 => Ok(true),
        _ => Err(st::BADXDR),
    }
}

/// First and last byte of a range; all ones means "to the end".
pub(super) fn bounds(range: Range) -> Result<(u64, u64), Status> {
    match range.length {
        0 => Err(st::INVAL),
        u64::MAX => Ok((range.offset, u64::MAX)),
        n => match range.offset.checked_add(n) {
            Some(end) => Ok((range.offset, end - 1)),
            None => Err(st::INVAL),
        },
    }
}

/// LOCK4denied as the body of a DENIED.
fn denied(holder: &ByteLock) -> OpError {
    let length = match holder.end {
        u64::MAX => u64::MAX,
        end => end - holder.start + 1,
    };
    let mut body = Enc::new();
    body.u64(holder.start).u64(length);
    body.u32(if holder.write { 2 } else { 1 });
    body.u64(holder.client).opaque(&holder.owner);
    OpError {
        status: st::DENIED,
        body: body.0,
    }
}
