//! The whole state of the double behind one lock, and the operations on
//! sessions. File operations are in `ops_fs`, `ops_io` and `ops_lock`.

use std::time::Duration;

use tokio::time::Instant;

use super::args::{Args, Sequence, Stateid};
use super::config::PeerConfig;
use super::fs::{Cred, Fs, Status};
use super::proto::{op, seq4, st};
use super::session::{Clients, SessionId};
use super::state::StateTable;
use super::xdr::Enc;

/// A failed operation: its status, and what its result carries all the same.
#[derive(Debug)]
pub(crate) struct OpError {
    pub(crate) status: Status,
    pub(crate) body: Vec<u8>,
}

impl From<Status> for OpError {
    fn from(status: Status) -> Self {
        Self {
            status,
            body: Vec::new(),
        }
    }
}

impl From<super::xdr::BadXdr> for OpError {
    fn from(_: super::xdr::BadXdr) -> Self {
        st::BADXDR.into()
    }
}

pub(crate) type OpResult = Result<(), OpError>;

/// What one COMPOUND carries from operation to operation.
#[derive(Debug)]
pub(crate) struct Ctx {
    pub(crate) cred: Cred,
    pub(crate) conn: u64,
    /// Set by SEQUENCE.
    pub(crate) session: Option<SessionId>,
    client: Option<u64>,
    pub(crate) current: Option<u64>,
    pub(crate) saved: Option<u64>,
    pub(crate) stateid: Option<Stateid>,
    pub(crate) saved_stateid: Option<Stateid>,
}

impl Ctx {
    pub(crate) fn new(cred: Cred, conn: u64) -> Self {
        Self {
            cred,
            conn,
            session: None,
            client: None,
            current: None,
            saved: None,
            stateid: None,
            saved_stateid: None,
        }
    }

    pub(crate) fn file(&self) -> Result<u64, Status> {
        self.current.ok_or(st::NOFILEHANDLE)
    }

    pub(crate) fn client(&self) -> Result<u64, Status> {
        self.client.ok_or(st::OP_NOT_IN_SESSION)
    }

    /// Makes `file` the current one; the current stateid does not go with it.
    pub(crate) fn set_file(&mut self, file: u64) {
        self.current = Some(file);
        self.stateid = None;
    }

    /// Replaces the special "current" stateid by what it stands for.
    pub(crate) fn resolve(&self, id: Stateid) -> Result<Stateid, Status> {
        match id {
            Stateid::CURRENT => self.stateid.ok_or(st::BAD_STATEID),
            Stateid::INVALID => Err(st::BAD_STATEID),
            other => Ok(other),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) cfg: PeerConfig,
    pub(crate) epoch: u32,
    /// Part of the write verifier that moves when unstable data are lost.
    pub(crate) losses: u32,
    pub(crate) fs: Fs,
    pub(crate) clients: Clients,
    pub(crate) state: StateTable,
    /// Flags for SEQUENCE replies, and for how many of them.
    pub(crate) status_flags: (u32, u32),
    /// Overrides sr_target_highest_slotid.
    pub(crate) target_slot: Option<u32>,
    /// Most bytes that one WRITE takes and one READ gives.
    pub(crate) io_limit: (u32, u32),
    pub(crate) cookie_verifier: u64,
}

impl Server {
    pub(crate) fn new(cfg: PeerConfig) -> Self {
        let epoch = cfg.seed;
        Self {
            fs: Fs::new(
                cfg.cookie_bits,
                cfg.maxlink,
                cfg.reuse_fileids,
                cfg.keep_unlinked,
                cfg.keep_removed_dirs,
            ),
            clients: Clients::new(&cfg, epoch),
            state: StateTable::new(epoch),
            epoch,
            losses: 0,
            status_flags: (0, 0),
            target_slot: None,
            io_limit: (u32::MAX, u32::MAX),
            cookie_verifier: 0xc00c_1e5e_0000_0001,
            cfg,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        Instant::now()
    }

    pub(crate) fn write_verifier(&self) -> u64 {
        u64::from(self.epoch) << 32 | u64::from(self.losses)
    }

    /// Loses what was not committed and every trace of clients but their names.
    pub(crate) fn crash(&mut self) {
        let now = self.now();
        self.epoch += 1;
        self.fs.crash(true);
        self.state = StateTable::new(self.epoch);
        let grace = Duration::from_secs(u64::from(self.cfg.grace_s));
        self.clients.restart(self.epoch, grace, now);
    }

    /// Loses what was not committed and every state, but no session.
    pub(crate) fn forget_state(&mut self) {
        let now = self.now();
        self.losses += 1;
        self.fs.crash(true);
        self.state = StateTable::new(self.epoch ^ self.losses << 16);
        let grace = Duration::from_secs(u64::from(self.cfg.grace_s));
        self.clients.restart_in_place(grace, now);
    }

    /// Loses what was not committed, and nothing else.
    pub(crate) fn lose_unstable(&mut self) {
        self.losses += 1;
        self.fs.crash(false);
    }

    /// Ends the leases that ran out. Called before every compound.
    pub(crate) fn expire(&mut self) {
        for client in self.clients.expire(self.now()) {
            self.drop_state(client, None);
        }
    }

    /// Takes a client's opens and locks away; with `status` as revoked ones.
    pub(crate) fn drop_state(&mut self, client: u64, status: Option<Status>) {
        for file in self.state.drop_client(client, status) {
            self.fs.release(file);
        }
    }

    /// Makes `args.session` the compound's session.
    pub(crate) fn enter(&self, ctx: &mut Ctx, args: &Sequence) {
        ctx.session = Some(args.session);
        ctx.client = self.clients.session(&args.session).map(|s| s.client);
    }

    /// The body of a successful SEQUENCE.
    pub(crate) fn sequence_reply(&mut self, args: &Sequence, out: &mut Enc) {
        let Some(session) = self.clients.session(&args.session) else {
            return;
        };
        let highest = session.slot_count() - 1;
        let client = session.client;
        let (mut flags, left) = self.status_flags;
        match left {
            0 => flags = 0,
            u32::MAX => {}
            n => self.status_flags.1 = n - 1,
        }
        for (status, flag) in [
            (st::ADMIN_REVOKED, seq4::ADMIN_STATE_REVOKED),
            (st::EXPIRED, seq4::EXPIRED_ALL_STATE_REVOKED),
        ] {
            if self.state.has_revoked(client, status) {
                flags |= flag;
            }
        }
        if self.clients.has_to_reclaim(client) {
            flags |= seq4::RESTART_RECLAIM_NEEDED;
        }
        out.fixed(&args.session).u32(args.seqid).u32(args.slot);
        out.u32(highest);
        out.u32(self.target_slot.unwrap_or(highest)).u32(flags);
    }

    /// Runs one operation other than SEQUENCE. On success its result body is
    /// in `out`; on failure `out` may hold a part, which the caller cuts off.
    pub(crate) fn execute(&mut self, ctx: &mut Ctx, args: &Args, out: &mut Enc) -> OpResult {
        match args {
            Args::Access(asked) => self.access(ctx, *asked, out),
            Args::Close(id) => self.close(ctx, *id, out),
            Args::Commit { offset, count } => self.commit(ctx, *offset, *count, out),
            Args::Create { what, name, attrs } => self.create(ctx, what, name, attrs, out),
            Args::GetAttr(asked) => self.getattr(ctx, *asked, out),
            Args::GetFh => self.getfh(ctx, out),
            Args::Link(name) => self.link(ctx, name, out),
            Args::Lock {
                kind,
                reclaim,
                range,
                locker,
            } => self.lock(ctx, *kind, *reclaim, *range, locker, out),
            Args::LockT { kind, range, owner } => self.lockt(ctx, *kind, *range, owner),
            Args::LockU { stateid, range } => self.locku(ctx, *stateid, *range, out),
            Args::Lookup(name) => self.lookup(ctx, name),
            Args::LookupP => self.lookupp(ctx),
            Args::Verify { attrs, negate } => self.verify(ctx, attrs, *negate),
            Args::Open(open) => self.open(ctx, open, out),
            Args::OpenDowngrade {
                stateid,
                access,
                deny,
            } => self.open_downgrade(ctx, *stateid, (*access, *deny), out),
            Args::PutFh(fh) => self.putfh(ctx, fh),
            Args::PutRootFh => {
                ctx.set_file(super::fs::ROOT);
                Ok(())
            }
            Args::Read {
                stateid,
                offset,
                count,
            } => self.read(ctx, *stateid, (*offset, *count), out),
            Args::ReadDir {
                cookie,
                verifier,
                maxcount,
                attrs,
            } => self.readdir(ctx, (*cookie, *verifier), *maxcount, *attrs, out),
            Args::ReadLink => self.readlink(ctx, out),
            Args::Remove(name) => self.remove(ctx, name, out),
            Args::Rename(from, to) => self.rename(ctx, from, to, out),
            Args::RestoreFh => {
                ctx.current = Some(ctx.saved.ok_or(st::RESTOREFH)?);
                ctx.stateid = ctx.saved_stateid;
                Ok(())
            }
            Args::SaveFh => {
                ctx.saved = Some(ctx.file()?);
                ctx.saved_stateid = ctx.stateid;
                Ok(())
            }
            Args::SecInfo(name) => self.secinfo(ctx, name, out),
            Args::SecInfoNoName(style) => self.secinfo_no_name(ctx, *style, out),
            Args::SetAttr { stateid, attrs } => self.setattr(ctx, *stateid, attrs, out),
            Args::Write {
                stateid,
                offset,
                stable,
                data,
            } => self.write(ctx, *stateid, (*offset, *stable), data, out),
            Args::FreeStateid(id) => Ok(self.state.free(ctx.client()?, ctx.resolve(*id)?)?),
            Args::TestStateid(ids) => self.test_stateid(ctx, ids, out),
            Args::BindConn { session, direction } => {
                self.clients.bind(session, ctx.conn)?;
                // Fore is all there is: both "or both" forms come down to it.
                if *direction == 2 {
                    return Err(st::INVAL.into());
                }
                out.fixed(session).u32(1).bool(false);
                Ok(())
            }
            Args::ExchangeId(args) => {
                let (uid, now) = (ctx.cred.uid, self.now());
                Ok(self.clients.exchange_id(args, uid, &self.cfg, now, out)?)
            }
            Args::CreateSession(args) => {
                let (who, now) = ((ctx.cred.uid, ctx.conn), self.now());
                let replaced = (self.clients).create_session(args, who, &self.cfg, now, out)?;
                for client in replaced {
                    self.drop_state(client, None);
                }
                Ok(())
            }
            Args::DestroySession(id) => {
                Ok(self.clients.destroy_session(id, ctx.conn, &self.cfg)?)
            }
            Args::DestroyClientid(id) => {
                let busy = self.state.has_state(*id);
                Ok(self.clients.destroy_client(*id, busy)?)
            }
            Args::ReclaimComplete(one_fs) => {
                if *one_fs {
                    ctx.file()?;
                    return Ok(());
                }
                Ok(self.clients.reclaim_complete(ctx.client()?)?)
            }
            Args::Sequence(_) => Err(st::SEQUENCE_POS.into()),
            Args::Unserved => Err(st::NOTSUPP.into()),
            Args::Illegal => Err(st::OP_ILLEGAL.into()),
            Args::Garbage => Err(st::BADXDR.into()),
        }
    }
}

/// May this operation come without SEQUENCE, as the only one?
pub(crate) fn stands_alone(number: u32) -> bool {
    matches!(
        number,
        op::EXCHANGE_ID
            | op::CREATE_SESSION
            | op::DESTROY_SESSION
            | op::BIND_CONN_TO_SESSION
            | op::DESTROY_CLIENTID
    )
}

/// Largest result of an operation that changes something, with its head. Such
/// an operation is refused before it runs if this would not fit.
pub(crate) fn worst_result(number: u32) -> usize {
    match number {
        op::OPEN => 72,
        op::CREATE => 44,
        op::SETATTR => 24,
        op::REMOVE | op::LINK => 28,
        op::RENAME => 48,
        op::CLOSE | op::LOCK | op::LOCKU | op::OPEN_DOWNGRADE | op::WRITE => 24,
        _ => 8,
    }
}
