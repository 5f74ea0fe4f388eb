//! Operations on handles, names and attributes.

use bytes::Bytes;

use super::args::{CreateType, Stateid};
use super::attr::{self, RawAttrs, SetAttrs, SetTime};
use super::fs::{Cred, Dir, Kind, New, R, ROOT, Status, W, X};
use super::proto::{access, fattr, st};
use super::server::{Ctx, OpError, OpResult, Server};
use super::state::SHARE_WRITE;
use super::xdr::{Bits, Enc};

impl Server {
    pub(super) fn putfh(&self, ctx: &mut Ctx, fh: &[u8]) -> OpResult {
        ctx.set_file(attr::parse_filehandle(fh, &self.fs, &self.cfg)?);
        Ok(())
    }

    pub(super) fn getfh(&self, ctx: &Ctx, out: &mut Enc) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        out.opaque(&attr::filehandle(node, &self.cfg));
        Ok(())
    }

    pub(super) fn lookup(&self, ctx: &mut Ctx, name: &[u8]) -> OpResult {
        let dir = ctx.file()?;
        self.searchable(dir, &ctx.cred, name)?;
        ctx.set_file(self.fs.lookup(dir, name)?);
        Ok(())
    }

    pub(super) fn lookupp(&self, ctx: &mut Ctx) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        let parent = node.dir()?.parent;
        node.allows(&ctx.cred, X)?;
        if node.id == ROOT {
            return Err(st::NOENT.into());
        }
        ctx.set_file(parent);
        Ok(())
    }

    pub(super) fn getattr(&self, ctx: &Ctx, asked: Bits, out: &mut Enc) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        if asked.has(fattr::TIME_ACCESS_SET) || asked.has(fattr::TIME_MODIFY_SET) {
            return Err(st::INVAL.into());
        }
        attr::encode(out, node, asked, &self.cfg);
        Ok(())
    }

    pub(super) fn access(&self, ctx: &Ctx, asked: u32, out: &mut Enc) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        let is_dir = node.dir().is_ok();
        let supported = match is_dir {
            true => asked & !access::EXECUTE,
            false => asked & !(access::LOOKUP | access::DELETE),
        } & 0x3f;
        let rights = node.rights(&ctx.cred);
        let mut granted = 0;
        if rights & R != 0 {
            granted |= access::READ;
        }
        if rights & W != 0 {
            granted |= access::MODIFY | access::EXTEND;
        }
        if rights & X != 0 {
            granted |= access::LOOKUP | access::EXECUTE;
        }
        if rights & (W | X) == W | X {
            granted |= access::DELETE;
        }
        out.u32(supported).u32(supported & granted);
        Ok(())
    }

    pub(super) fn readlink(&self, ctx: &Ctx, out: &mut Enc) -> OpResult {
        match &self.fs.node(ctx.file()?)?.kind {
            Kind::Lnk(target) => out.opaque(target),
            Kind::Dir(_) => return Err(st::ISDIR.into()),
            _ => return Err(st::WRONG_TYPE.into()),
        };
        Ok(())
    }

    pub(super) fn create(
        &mut self,
        ctx: &mut Ctx,
        what: &CreateType,
        name: &Bytes,
        attrs: &RawAttrs,
        out: &mut Enc,
    ) -> OpResult {
        let dir = ctx.file()?;
        self.writable_dir(dir, &ctx.cred, name)?;
        let set = attrs.parse(&self.cfg)?;
        let kind = match what {
            CreateType::Dir => Kind::Dir(Dir::default()),
            CreateType::Link(target) if target.is_empty() => return Err(st::INVAL.into()),
            CreateType::Link(target) if target.len() > 4080 => {
                return Err(st::NAMETOOLONG.into());
            }
            CreateType::Link(target) => {
                self.check_utf8(target)?;
                Kind::Lnk(target.to_vec())
            }
            CreateType::Special(t, _) if attr::is_device(*t) && !self.cfg.devices => {
                return Err(st::PERM.into());
            }
            CreateType::Special(t, _) if attr::is_device(*t) && ctx.cred.uid != 0 => {
                return Err(st::PERM.into());
            }
            CreateType::Special(t, device) => Kind::Special(*t, *device),
            CreateType::Bad => return Err(st::BADTYPE.into()),
        };
        if set.size.is_some() {
            return Err(st::INVAL.into());
        }
        let mode = match what {
            CreateType::Link(_) => Some(0o777), // links have no mode of their own
            _ => set.mode,
        };
        let before = self.fs.node(dir)?.change;
        let id = self.make(ctx, dir, name, kind, &SetAttrs { mode, ..set })?;
        self.cinfo(dir, before, out)?;
        out.bitmap(attrs.bits);
        ctx.set_file(id);
        Ok(())
    }

    /// A new inode of the caller; without a mode it is closed to everybody.
    pub(super) fn make(
        &mut self,
        ctx: &Ctx,
        dir: u64,
        name: &[u8],
        kind: Kind,
        set: &SetAttrs,
    ) -> Result<u64, Status> {
        let cred = &ctx.cred;
        let foreign =
            set.uid.is_some_and(|u| u != cred.uid) || set.gid.is_some_and(|g| !cred.in_group(g));
        if foreign && cred.uid != 0 {
            return Err(st::PERM);
        }
        let new = New {
            kind,
            mode: set.mode.unwrap_or(0),
            uid: cred.uid,
            gid: cred.gid,
        };
        let id = self.fs.create(dir, name, new)?;
        let late = SetAttrs {
            mode: None,
            ..set.clone()
        };
        self.apply(cred, id, &late, true)?;
        Ok(id)
    }

    pub(super) fn remove(&mut self, ctx: &Ctx, name: &[u8], out: &mut Enc) -> OpResult {
        let dir = ctx.file()?;
        self.no_grace()?;
        self.removable(dir, &ctx.cred, name)?;
        let before = self.fs.node(dir)?.change;
        self.fs.remove(dir, name)?;
        self.cinfo(dir, before, out)
    }

    pub(super) fn rename(&mut self, ctx: &Ctx, from: &[u8], to: &[u8], out: &mut Enc) -> OpResult {
        let (src, dst) = (ctx.saved.ok_or(st::NOFILEHANDLE)?, ctx.file()?);
        self.no_grace()?;
        self.removable(src, &ctx.cred, from)?;
        self.writable_dir(dst, &ctx.cred, to)?;
        if self.fs.lookup(dst, to).is_ok() {
            self.removable(dst, &ctx.cred, to)?;
        }
        let before = (self.fs.node(src)?.change, self.fs.node(dst)?.change);
        self.fs.rename((src, from), (dst, to))?;
        self.cinfo(src, before.0, out)?;
        self.cinfo(dst, before.1, out)
    }

    pub(super) fn link(&mut self, ctx: &Ctx, name: &[u8], out: &mut Enc) -> OpResult {
        let (file, dir) = (ctx.saved.ok_or(st::NOFILEHANDLE)?, ctx.file()?);
        self.writable_dir(dir, &ctx.cred, name)?;
        let before = self.fs.node(dir)?.change;
        self.fs.link(file, dir, name)?;
        self.cinfo(dir, before, out)
    }

    pub(super) fn readdir(
        &self,
        ctx: &Ctx,
        (cookie, verifier): (u64, u64),
        maxcount: u32,
        asked: Bits,
        out: &mut Enc,
    ) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        let dir = node.dir().map_err(|_| st::NOTDIR)?;
        node.allows(&ctx.cred, R)?;
        match cookie {
            0 if verifier != 0 => return Err(st::BAD_COOKIE.into()),
            0 => {}
            1 | 2 => return Err(st::BAD_COOKIE.into()),
            _ if verifier != self.cookie_verifier => return Err(st::NOT_SAME.into()),
            _ => {}
        }
        let start = out.len();
        out.u64(self.cookie_verifier);
        // The list's end mark and eof must fit too; the count covers all.
        let room = maxcount as usize;
        let (mut given, mut eof) = (0, true);
        for (cookie, name, id) in dir.after(cookie) {
            let mut entry = Enc::new();
            let mut disguised = self.cfg.disguised.iter();
            let shown = disguised.find(|(real, _)| real.as_bytes() == name);
            let name = shown.map_or(name, |(_, shown)| shown);
            entry.bool(true).u64(cookie).opaque(name);
            attr::encode(&mut entry, self.fs.node(id)?, asked, &self.cfg);
            let full = out.len() - start + entry.len() + 8 > room;
            if full || given >= self.cfg.readdir_page_entries {
                eof = false;
                break;
            }
            out.raw(&entry.0);
            given += 1;
        }
        if given == 0 && !eof || room < 16 {
            return Err(st::TOOSMALL.into());
        }
        out.bool(false).bool(eof);
        Ok(())
    }

    pub(super) fn setattr(
        &mut self,
        ctx: &Ctx,
        stateid: Stateid,
        attrs: &RawAttrs,
        out: &mut Enc,
    ) -> OpResult {
        // The result has an attrset even when it is a failure.
        let fail = |status: Status| OpError {
            status,
            body: vec![0; 4],
        };
        let file = ctx.file().map_err(fail)?;
        let set = attrs.parse(&self.cfg).map_err(fail)?;
        let mut by_open = false;
        if set.size.is_some() {
            by_open = self.size_by_open(ctx, stateid, file).map_err(fail)?;
            self.no_grace().map_err(fail)?;
        }
        (self.apply(&ctx.cred, file, &set, by_open)).map_err(fail)?;
        out.bitmap(attrs.bits);
        Ok(())
    }

    /// Checks the stateid of a SETATTR of the size. True: an open for writing.
    fn size_by_open(&self, ctx: &Ctx, stateid: Stateid, file: u64) -> Result<bool, Status> {
        let id = ctx.resolve(stateid)?;
        if id == Stateid::ANONYMOUS || id == Stateid::BYPASS {
            return Ok(false);
        }
        let open = self.state.open_of(ctx.client()?, id)?;
        if open.file != file {
            return Err(st::BAD_STATEID);
        }
        if open.access & SHARE_WRITE == 0 {
            return Err(st::OPENMODE);
        }
        Ok(true)
    }

    /// Sets attributes with the rules of POSIX; all checks come before the
    /// first change. `may_size`: the size needs no further permission.
    pub(super) fn apply(
        &mut self,
        cred: &Cred,
        id: u64,
        set: &SetAttrs,
        may_size: bool,
    ) -> Result<(), Status> {
        if self.cfg.exclusive_until_times && (set.atime.is_some() || set.mtime.is_some()) {
            self.fs.node_mut(id)?.create_verf = None;
        }
        let node = self.fs.node(id)?;
        let root = cred.uid == 0;
        let owner = root || cred.uid == node.uid;
        let (uid, gid, mode) = (node.uid, node.gid, node.mode);
        if let Some(size) = set.size {
            node.data()
                .map_err(|e| if e == st::ISDIR { e } else { st::INVAL })?;
            if !may_size {
                node.allows(cred, W)?;
            }
            if size > self.cfg.max_file_size {
                return Err(st::FBIG);
            }
        }
        let chowns = set.uid.is_some_and(|u| u != uid);
        let chgrps = set.gid.is_some_and(|g| g != gid);
        if chowns && !root
            || chgrps && !(root || owner && set.gid.is_some_and(|g| cred.in_group(g)))
        {
            return Err(st::PERM);
        }
        if set.mode.is_some() && !owner {
            return Err(st::PERM);
        }
        let explicit = |t: Option<SetTime>| matches!(t, Some(SetTime::Client(_)));
        if (explicit(set.atime) || explicit(set.mtime)) && !owner {
            return Err(st::PERM);
        }
        if (set.atime.is_some() || set.mtime.is_some()) && !owner {
            node.allows(cred, W)?;
        }

        let now = self.fs.now();
        let node = self.fs.node_mut(id)?;
        if let Some(size) = set.size {
            node.data_mut()?.truncate(size);
        }
        node.uid = set.uid.unwrap_or(uid);
        node.gid = set.gid.unwrap_or(gid);
        let mut mode = set.mode.unwrap_or(mode);
        let regular = node.data().is_ok();
        let cuts = set.size.is_some() && !root && self.cfg.kills_privileges;
        if (chowns || chgrps || cuts) && regular && set.mode.is_none() {
            mode &= !0o6000;
        }
        if set.mode.is_some() && !root && !cred.in_group(node.gid) {
            mode &= !0o2000;
        }
        node.mode = mode;
        let pick = |t| match t {
            SetTime::Server => now,
            SetTime::Client(time) => time,
        };
        self.fs.touch(id, set.size.is_some());
        let node = self.fs.node_mut(id)?;
        if let Some(time) = set.atime {
            node.atime = pick(time);
        }
        if let Some(time) = set.mtime {
            node.mtime = pick(time);
        }
        Ok(())
    }

    pub(super) fn verify(&self, ctx: &Ctx, attrs: &RawAttrs, negate: bool) -> OpResult {
        let node = self.fs.node(ctx.file()?)?;
        if !(attrs.bits.without(attr::supported(&self.cfg))).is_empty() {
            return Err(st::ATTRNOTSUPP.into());
        }
        if attrs.bits.has(fattr::RDATTR_ERROR) {
            return Err(st::INVAL.into());
        }
        let (mut ours, mut theirs) = (Enc::new(), Enc::new());
        attr::encode(&mut ours, node, attrs.bits, &self.cfg);
        theirs.bitmap(attrs.bits).opaque(&attrs.values);
        match (ours.0 == theirs.0, negate) {
            (true, true) => Err(st::SAME.into()),
            (false, false) => Err(st::NOT_SAME.into()),
            _ => Ok(()),
        }
    }

    pub(super) fn secinfo(&self, ctx: &mut Ctx, name: &[u8], out: &mut Enc) -> OpResult {
        let dir = ctx.file()?;
        self.searchable(dir, &ctx.cred, name)?;
        self.fs.lookup(dir, name)?;
        only_auth_sys(ctx, out);
        Ok(())
    }

    pub(super) fn secinfo_no_name(&self, ctx: &mut Ctx, style: u32, out: &mut Enc) -> OpResult {
        let file = ctx.file()?;
        match style {
            0 => {}
            1 if file == ROOT => return Err(st::NOENT.into()),
            1 => {
                self.fs.node(file)?.dir()?;
            }
            _ => return Err(st::BADXDR.into()),
        }
        only_auth_sys(ctx, out);
        Ok(())
    }

    /// change_info4 of a directory whose change attribute was `before`.
    pub(super) fn cinfo(&self, dir: u64, before: u64, out: &mut Enc) -> OpResult {
        let after = self.fs.node(dir)?.change;
        out.bool(self.cfg.atomic_cinfo).u64(before).u64(after);
        Ok(())
    }

    pub(super) fn no_grace(&self) -> Result<(), Status> {
        match self.clients.in_grace(self.now()) {
            true => Err(st::GRACE),
            false => Ok(()),
        }
    }

    fn check_name(&self, name: &[u8]) -> Result<(), Status> {
        match name {
            b"" => Err(st::INVAL),
            b"." | b".." => Err(st::BADNAME),
            _ if name.len() > 255 => Err(st::NAMETOOLONG),
            _ if name.iter().any(|b| matches!(b, b'/' | 0)) => Err(st::BADCHAR),
            _ => self.check_utf8(name),
        }
    }

    fn check_utf8(&self, text: &[u8]) -> Result<(), Status> {
        if self.cfg.utf8_only && std::str::from_utf8(text).is_err() {
            return Err(st::INVAL);
        }
        Ok(())
    }

    /// May `cred` look `name` up here?
    pub(super) fn searchable(&self, dir: u64, cred: &Cred, name: &[u8]) -> Result<(), Status> {
        let node = self.fs.node(dir)?;
        node.dir()?;
        node.allows(cred, X)?;
        self.check_name(name)
    }

    /// May `cred` add `name` here?
    pub(super) fn writable_dir(&self, dir: u64, cred: &Cred, name: &[u8]) -> Result<(), Status> {
        let node = self.fs.node(dir)?;
        node.dir().map_err(|_| st::NOTDIR)?;
        self.check_name(name)?;
        node.allows(cred, X)?;
        if self.fs.lookup(dir, name).is_ok() {
            return Ok(()); // whether that is EXIST is for the operation to say
        }
        node.allows(cred, W)
    }

    /// May `cred` remove the entry `name`, also in a sticky directory?
    fn removable(&self, dir: u64, cred: &Cred, name: &[u8]) -> Result<(), Status> {
        let parent = self.fs.node(dir)?;
        parent.dir().map_err(|_| st::NOTDIR)?;
        self.check_name(name)?;
        parent.allows(cred, X)?;
        let victim = self.fs.node(self.fs.lookup(dir, name)?)?;
        parent.allows(cred, W)?;
        let sticky = parent.mode & 0o1000 != 0;
        if sticky && cred.uid != 0 && cred.uid != parent.uid && cred.uid != victim.uid {
            return Err(st::PERM);
        }
        Ok(())
    }
}

/// SECINFO4resok with AUTH_SYS; it uses the current handle up.
fn only_auth_sys(ctx: &mut Ctx, out: &mut Enc) {
    out.u32(1).u32(1);
    ctx.current = None;
}
