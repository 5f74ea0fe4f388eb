//! One RPC call: its head, its credential, its operations one after the other,
//! and what the script does to them.

use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use bytes::Bytes;

use super::Peer;
use super::args::{Args, Call, Compound, Sequence};
use super::conn::Conn;
use super::fs::{Cred, Status};
use super::proto::{op, st};
use super::script::{Action, Executed, OpEvent, Rewrite};
use super::server::{Ctx, OpError, Server, stands_alone, worst_result};
use super::session::{Begin, End, Request};
use super::xdr::{Dec, Decoded, Enc};

/// Bytes of an accepted reply before its results; part of every size limit.
const REPLY_HEAD: usize = 24;

/// What goes back to the client.
pub(super) enum Outcome {
    /// Messages to send; more than one if the script duplicates.
    Reply(Vec<Vec<u8>>),
    Silence,
    Cut,
}

/// The RPC head of a call.
struct Head {
    xid: u32,
    program: u32,
    version: u32,
    procedure: u32,
    cred: Result<Cred, u32>,
}

/// auth_stat values.
const AUTH_BADCRED: u32 = 1;
const AUTH_TOOWEAK: u32 = 5;

impl Head {
    fn decode(d: &mut Dec) -> Decoded<Option<Self>> {
        let xid = d.u32()?;
        if d.u32()? != 0 || d.u32()? != 2 {
            return Ok(None);
        }
        let (program, version, procedure) = (d.u32()?, d.u32()?, d.u32()?);
        let flavor = d.u32()?;
        let body = d.opaque(400)?;
        d.u32()?;
        d.opaque(400)?;
        let cred = match flavor {
            0 => Ok(Cred {
                uid: 65534,
                gid: 65534,
                gids: Vec::new(),
            }),
            1 => auth_sys(&mut Dec::new(body)).map_err(|_| AUTH_BADCRED),
            _ => Err(AUTH_TOOWEAK),
        };
        Ok(Some(Self {
            xid,
            program,
            version,
            procedure,
            cred,
        }))
    }
}

fn auth_sys(d: &mut Dec) -> Decoded<Cred> {
    d.u32()?; // stamp
    d.opaque(255)?;
    Ok(Cred {
        uid: d.u32()?,
        gid: d.u32()?,
        gids: d.array(16, Dec::u32)?,
    })
}

/// Answers one record. A record that is no RPC call ends the connection.
pub(super) async fn answer(peer: &Arc<Peer>, conn: Conn, record: Bytes) -> Outcome {
    let mut d = Dec::new(record.clone());
    if !peer.server().cfg.misplaces_later_data {
        d = d.rightly();
    }
    let Ok(Some(head)) = Head::decode(&mut d) else {
        return Outcome::Cut;
    };
    let accepted = |stat: u32, rest: &[u32]| {
        let mut out = reply_head(head.xid, stat);
        for word in rest {
            out.u32(*word);
        }
        Outcome::Reply(vec![out.0])
    };
    if head.program != 100_003 {
        return accepted(1, &[]);
    }
    if head.version != 4 {
        return accepted(2, &[4, 4]);
    }
    match head.procedure {
        0 => return accepted(0, &[]),
        1 => {}
        _ => return accepted(3, &[]),
    }
    let cred = match head.cred {
        Ok(cred) => cred,
        Err(stat) => {
            let mut out = Enc::new();
            out.u32(head.xid).u32(1).u32(1).u32(1).u32(stat);
            return Outcome::Reply(vec![out.0]);
        }
    };
    let start = d.position();
    let Ok(compound) = Compound::decode(&mut d) else {
        return accepted(4, &[]);
    };
    let mut hasher = DefaultHasher::new();
    hasher.write_u32(cred.uid);
    hasher.write_u32(cred.gid);
    cred.gids.iter().for_each(|gid| hasher.write_u32(*gid));
    hasher.write(&record[start..]);
    let request = Request {
        conn: conn.id,
        size: record.len(),
        ops: compound.claimed,
        fingerprint: hasher.finish(),
    };
    Run::new((peer, conn.epoch), head.xid, cred, compound, request)
        .run()
        .await
}

fn reply_head(xid: u32, stat: u32) -> Enc {
    let mut out = Enc::new();
    out.u32(xid).u32(1).u32(0); // REPLY, MSG_ACCEPTED
    out.u32(0).u32(0).u32(stat); // verifier, accept_stat
    out
}

/// LOCK4denied for a DENIED that only the script knows the reason of.
fn denied_by_script() -> Vec<u8> {
    let mut body = Enc::new();
    body.u64(0).u64(u64::MAX).u32(2).u64(0).opaque(b"script");
    body.0
}

/// What the script wants done with the reply.
enum Fate {
    Send,
    Cut,
    Swallow,
    Garble,
    Duplicate,
    Rewrite(Rewrite),
}

/// The compound stops here without a reply of its own.
enum Stop {
    /// As if the call had never come.
    Undo,
    /// It hangs for ever, slot and all.
    Hang,
    /// The server it came to is no more.
    Crashed,
}

/// One COMPOUND in execution.
struct Run<'a> {
    peer: &'a Arc<Peer>,
    xid: u32,
    compound: Compound,
    ops: Vec<u32>,
    request: Request,
    /// Of the server that the call was sent to.
    epoch: u32,
    ctx: Ctx,
    /// The SEQUENCE as sent, for the log.
    asked: Option<Sequence>,
    /// The SEQUENCE that made this compound the owner of its slot.
    sequence: Option<Sequence>,
    /// Results so far.
    out: Enc,
    statuses: Vec<Status>,
    fate: Fate,
    /// Largest RPC reply, and what a larger one is called.
    limit: (usize, Status),
    /// The whole reply, if the slot had it.
    replay: Option<Bytes>,
    /// The rest is a retry whose reply was not kept.
    uncached: bool,
}

impl<'a> Run<'a> {
    fn new(
        (peer, epoch): (&'a Arc<Peer>, u32),
        xid: u32,
        cred: Cred,
        compound: Compound,
        request: Request,
    ) -> Self {
        Self {
            peer,
            xid,
            ops: compound.calls.iter().map(|c| c.op).collect(),
            ctx: Ctx::new(cred, request.conn),
            epoch,
            compound,
            request,
            asked: None,
            sequence: None,
            out: Enc::new(),
            statuses: Vec::new(),
            fate: Fate::Send,
            limit: (usize::MAX, st::REP_TOO_BIG),
            replay: None,
            uncached: false,
        }
    }

    async fn run(mut self) -> Outcome {
        self.peer.server().expire();
        if self.compound.minor != 1 {
            return self.reply_empty(st::MINOR_VERS_MISMATCH);
        }
        let calls = std::mem::take(&mut self.compound.calls);
        for (index, call) in calls.iter().enumerate() {
            match self.one(index, call).await {
                Ok(()) => {}
                Err(Stop::Undo) => {
                    self.finish_slot(End::Undone);
                    return Outcome::Cut;
                }
                Err(Stop::Hang | Stop::Crashed) => return Outcome::Silence,
            }
            if self.replay.is_some() || self.statuses.last() != Some(&st::OK) {
                break;
            }
        }
        self.reply()
    }

    /// Runs one operation and appends its result.
    async fn one(&mut self, index: usize, call: &Call) -> Result<(), Stop> {
        if self.peer.server().epoch != self.epoch {
            return Err(Stop::Crashed);
        }
        let mut forced = None;
        let mut lie = None;
        match self.ask_script(index, call) {
            Action::Pass => {}
            Action::Fail(status) => forced = Some(status),
            Action::FailAfter(status) => lie = Some(status),
            Action::Delay(time) => tokio::time::sleep(time).await,
            Action::DropConnectionBefore => return Err(Stop::Undo),
            Action::Hang => return Err(Stop::Hang),
            Action::DropConnectionAfter => self.fate = Fate::Cut,
            Action::SwallowReply => self.fate = Fate::Swallow,
            Action::Garble => self.fate = Fate::Garble,
            Action::Duplicate => self.fate = Fate::Duplicate,
            Action::Rewrite(f) => self.fate = Fate::Rewrite(f),
        }
        let number = match call.args {
            Args::Illegal => op::ILLEGAL,
            _ => call.op,
        };
        let head = self.out.len();
        self.out.u32(number).u32(st::OK);
        let body = self.out.len();
        let result = match forced {
            Some(status) => Err(status.into()),
            None => self.execute(index, call)?,
        };
        if self.replay.is_some() {
            return Ok(());
        }
        let mut failed = match (result, lie) {
            (Err(error), _) => Some(error),
            (Ok(()), lie) => lie.map(OpError::from),
        };
        if failed.is_none() && self.reply_len() > self.limit.0 {
            failed = Some(self.limit.1.into());
        }
        if let Some(OpError { status, body: rest }) = failed {
            // SETATTR and a denied lock carry something in their failures.
            let rest = match (call.op, status, rest.is_empty()) {
                (op::SETATTR, _, true) => vec![0; 4],
                (op::LOCK | op::LOCKT, st::DENIED, true) => denied_by_script(),
                _ => rest,
            };
            self.out.0.truncate(body);
            self.out.raw(&rest);
            self.out.patch_u32(head + 4, status);
            self.statuses.push(status);
        } else {
            self.statuses.push(st::OK);
        }
        Ok(())
    }

    fn ask_script(&self, index: usize, call: &Call) -> Action {
        let sequence = match (&self.sequence, &call.args) {
            (Some(sequence), _) | (None, Args::Sequence(sequence)) => Some(sequence),
            _ => None,
        };
        self.peer.ask_script(&OpEvent {
            op: call.op,
            op_index: index,
            compound: &self.ops,
            slot: sequence.map(|s| s.slot),
            seqid: sequence.map(|s| s.seqid),
            uid: self.ctx.cred.uid,
            gid: self.ctx.cred.gid,
            gids: &self.ctx.cred.gids,
            conn_id: self.request.conn,
            xid: self.xid,
        })
    }

    /// The operation itself, under the server's lock.
    fn execute(&mut self, index: usize, call: &Call) -> Result<Result<(), OpError>, Stop> {
        let mut server = self.peer.server();
        if server.epoch != self.epoch {
            return Err(Stop::Crashed);
        }
        if self.uncached {
            return Ok(Err(st::RETRY_UNCACHED_REP.into()));
        }
        if index > 0 {
            let too_big = match self.sequence {
                None => return Ok(Err(st::NOT_ONLY_OP.into())),
                Some(_) => self.reply_len() - 8 + worst_result(call.op) > self.limit.0,
            };
            if too_big {
                return Ok(Err(self.limit.1.into()));
            }
            return Ok(server.execute(&mut self.ctx, &call.args, &mut self.out));
        }
        let Args::Sequence(sequence) = &call.args else {
            if matches!(call.args, Args::Illegal | Args::Garbage) {
                return Ok(server.execute(&mut self.ctx, &call.args, &mut self.out));
            }
            if !stands_alone(call.op) {
                return Ok(Err(st::OP_NOT_IN_SESSION.into()));
            }
            if self.compound.claimed != 1 {
                return Ok(Err(st::NOT_ONLY_OP.into()));
            }
            return Ok(server.execute(&mut self.ctx, &call.args, &mut self.out));
        };
        let now = server.now();
        self.asked = Some(*sequence);
        let Server { clients, cfg, .. } = &mut *server;
        match clients.begin(sequence, &self.request, cfg, now) {
            Err(status) => return Ok(Err(status.into())),
            Ok(Begin::Replay(reply)) => {
                self.replay = Some(reply);
                return Ok(Ok(()));
            }
            Ok(Begin::Uncached) => self.uncached = true,
            Ok(Begin::Execute) => self.sequence = Some(*sequence),
        }
        server.enter(&mut self.ctx, sequence);
        if let Some(session) = server.clients.session(&sequence.session) {
            self.limit = match sequence.cache {
                true if session.fore.max_cached < session.fore.max_response => {
                    (session.fore.max_cached as usize, st::REP_TOO_BIG_TO_CACHE)
                }
                _ => (session.fore.max_response as usize, st::REP_TOO_BIG),
            };
        }
        server.sequence_reply(sequence, &mut self.out);
        Ok(Ok(()))
    }

    /// Bytes of the RPC message if the reply ended here.
    fn reply_len(&self) -> usize {
        let tag = self.compound.tag.len().next_multiple_of(4);
        REPLY_HEAD + 12 + tag + self.out.len()
    }

    fn finish_slot(&self, end: End) {
        let mut server = self.peer.server();
        if let Some(sequence) = &self.sequence
            && server.epoch == self.epoch
        {
            let now = server.now();
            server.clients.finish(sequence, end, now);
        }
    }

    fn reply_empty(self, status: Status) -> Outcome {
        let mut results = Enc::new();
        results.u32(status).opaque(&self.compound.tag).u32(0);
        self.send(results.0)
    }

    fn reply(self) -> Outcome {
        if let Some(reply) = &self.replay {
            let reply = reply.to_vec();
            return self.send(reply);
        }
        let status = self.statuses.last().copied().unwrap_or(st::OK);
        let mut results = Enc::new();
        results.u32(status).opaque(&self.compound.tag);
        results.u32(self.statuses.len() as u32).raw(&self.out.0);
        if let Some(sequence) = &self.sequence {
            let keep = sequence.cache || self.compound.claimed == 1;
            self.finish_slot(match keep {
                true => End::Cached(Bytes::from(results.0.clone())),
                false => End::Uncached,
            });
        }
        self.send(results.0)
    }

    /// Wraps the results into the RPC reply, logs, and does what was fated.
    fn send(self, results: Vec<u8>) -> Outcome {
        let mut message = reply_head(self.xid, 0);
        message.raw(&results);
        let mut message = message.0;
        let cred = self.ctx.cred;
        self.peer.log_compound(Executed {
            ops: self.ops,
            statuses: self.statuses,
            uid: cred.uid,
            gid: cred.gid,
            gids: cred.gids,
            slot: self.asked.map(|s| s.slot),
            seqid: self.asked.map(|s| s.seqid),
            conn_id: self.request.conn,
            xid: self.xid,
            at: self.peer.server().fs.elapsed(),
            replayed: self.replay.is_some(),
            request_len: self.request.size,
            reply_len: message.len(),
        });
        match self.fate {
            Fate::Send => Outcome::Reply(vec![message]),
            Fate::Cut => Outcome::Cut,
            Fate::Swallow => Outcome::Silence,
            Fate::Garble => {
                message[4..].iter_mut().for_each(|b| *b ^= 0xa5);
                Outcome::Reply(vec![message])
            }
            Fate::Duplicate => Outcome::Reply(vec![message.clone(), message]),
            Fate::Rewrite(f) => Outcome::Reply(vec![f(message)]),
        }
    }
}
