//! Client records, sessions, slots, leases and the grace period
//! (RFC 8881 sections 2.4, 2.10 and 8.4.2).
//!
//! `Clients` knows who may speak and what was already answered; opens and locks
//! are in [`super::state`]. Time is passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::args::{ChannelAttrs, CreateSession, ExchangeId, Sequence};
use super::config::PeerConfig;
use super::fs::Status;
use super::proto::st;
use super::xdr::Enc;

pub(crate) type SessionId = [u8; 16];

const UPD_CONFIRMED_REC_A: u32 = 0x4000_0000;
const CONFIRMED_R: u32 = 0x8000_0000;
/// Every bit that EXCHGID4_FLAG_MASK_A allows.
const EXCHANGE_FLAGS_A: u32 = 0x4007_0107;

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) owner: Bytes,
    verifier: [u8; 8],
    /// The uid that made the record; state-changing calls must come from it.
    principal: u32,
    confirmed: bool,
    /// The last csa_sequence that was answered, and that answer.
    create_seq: u32,
    create_reply: Option<Vec<u8>>,
    renewed: Instant,
    /// Compounds in progress: a lease does not run out under them.
    running: u32,
    pub(crate) reclaim_complete: bool,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: u64,
    pub(crate) fore: ChannelAttrs,
    conns: BTreeSet<u64>,
    slots: Vec<Slot>,
}

impl Session {
    pub(crate) fn slot_count(&self) -> u32 {
        self.slots.len() as u32
    }
}

#[derive(Debug, Default)]
struct Slot {
    /// The last sequence id that was begun.
    seqid: u32,
    busy: bool,
    /// Of the request under `seqid`, to tell a retry from a reuse.
    fingerprint: u64,
    reply: Cached,
}

#[derive(Debug, Default)]
enum Cached {
    /// No request was ever sent on this slot.
    #[default]
    Fresh,
    Uncached,
    Reply(Bytes),
}

/// What SEQUENCE makes of its compound.
#[derive(Debug)]
pub(crate) enum Begin {
    Execute,
    /// A retry: this reply again.
    Replay(Bytes),
    /// A retry of a call whose reply was not kept.
    Uncached,
}

#[derive(Debug)]
pub(crate) struct Clients {
    epoch: u32,
    lease: Duration,
    serial: u32,
    clients: BTreeMap<u64, Client>,
    sessions: BTreeMap<SessionId, Session>,
    /// Size of every session's slot table.
    table: u32,
    /// Owners of before the restart that have not said RECLAIM_COMPLETE.
    recorded: BTreeSet<Bytes>,
    /// Clients that a restart in place has taken the state of.
    robbed: BTreeSet<u64>,
    grace_until: Option<Instant>,
}

impl Clients {
    pub(crate) fn new(cfg: &PeerConfig, epoch: u32) -> Self {
        Self {
            epoch,
            lease: Duration::from_secs(u64::from(cfg.lease_s)),
            serial: 0,
            clients: BTreeMap::new(),
            sessions: BTreeMap::new(),
            table: cfg.slots,
            recorded: BTreeSet::new(),
            robbed: BTreeSet::new(),
            grace_until: None,
        }
    }

    /// What a restarted server knows: only who had been there.
    pub(crate) fn restart(&mut self, epoch: u32, grace: Duration, now: Instant) {
        if !self.in_grace(now) {
            self.recorded.clear();
        }
        let confirmed = self.clients.values().filter(|c| c.confirmed);
        self.recorded.extend(confirmed.map(|c| c.owner.clone()));
        self.clients.clear();
        self.sessions.clear();
        self.epoch = epoch;
        self.serial = 0;
        self.grace_until = Some(now + grace);
    }

    /// A restart that keeps clients and sessions.
    pub(crate) fn restart_in_place(&mut self, grace: Duration, now: Instant) {
        for (id, client) in &mut self.clients {
            client.reclaim_complete = false;
            self.recorded.insert(client.owner.clone());
            self.robbed.insert(*id);
        }
        self.grace_until = Some(now + grace);
    }

    /// The client lost its state in a restart in place and has not reclaimed it.
    pub(crate) fn has_to_reclaim(&self, id: u64) -> bool {
        self.robbed.contains(&id)
    }

    /// True until every recorded client has reclaimed, or the time is over.
    pub(crate) fn in_grace(&self, now: Instant) -> bool {
        !self.recorded.is_empty() && self.grace_until.is_some_and(|end| now < end)
    }

    /// May this client reclaim state now?
    pub(crate) fn may_reclaim(&self, id: u64, now: Instant) -> Result<(), Status> {
        let client = self.clients.get(&id).ok_or(st::STALE_CLIENTID)?;
        if client.reclaim_complete || !self.in_grace(now) {
            Err(st::NO_GRACE)
        } else if self.recorded.contains(&client.owner) {
            Ok(())
        } else {
            Err(st::RECLAIM_BAD)
        }
    }

    /// May this client make new state now?
    pub(crate) fn may_begin(&self, id: u64, now: Instant) -> Result<(), Status> {
        let ready = self.clients.get(&id).is_some_and(|c| c.reclaim_complete);
        if ready && !self.in_grace(now) {
            Ok(())
        } else {
            Err(st::GRACE)
        }
    }

    pub(crate) fn reclaim_complete(&mut self, id: u64) -> Result<(), Status> {
        let client = self.clients.get_mut(&id).ok_or(st::STALE_CLIENTID)?;
        if std::mem::replace(&mut client.reclaim_complete, true) {
            return Err(st::COMPLETE_ALREADY);
        }
        self.recorded.remove(&client.owner);
        self.robbed.remove(&id);
        Ok(())
    }

    /// Forgets clients whose lease ran out; the caller drops their state.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<u64> {
        let lease = self.lease;
        let dead = |c: &Client| c.running == 0 && now > c.renewed + lease;
        let ids: Vec<u64> = (self.clients.iter())
            .filter(|(_, c)| dead(c))
            .map(|(id, _)| *id)
            .collect();
        for id in &ids {
            self.forget(*id);
        }
        ids
    }

    fn forget(&mut self, id: u64) {
        self.clients.remove(&id);
        self.sessions.retain(|_, s| s.client != id);
    }

    /// EXCHANGE_ID, the cases of RFC 8881 section 18.35.4.
    pub(crate) fn exchange_id(
        &mut self,
        args: &ExchangeId,
        uid: u32,
        cfg: &PeerConfig,
        now: Instant,
        out: &mut Enc,
    ) -> Result<(), Status> {
        if args.flags & !EXCHANGE_FLAGS_A != 0 || args.protect != 0 {
            return Err(st::INVAL);
        }
        let confirmed = (self.clients.iter())
            .find(|(_, c)| c.confirmed && c.owner == args.owner)
            .map(|(id, c)| (*id, c.principal == uid, c.verifier == args.verifier));
        let known = match (args.flags & UPD_CONFIRMED_REC_A != 0, confirmed) {
            (true, None) => return Err(st::NOENT),
            (true, Some((_, _, false))) => return Err(st::NOT_SAME),
            (true, Some((_, false, _))) => return Err(st::PERM),
            (false, Some((_, false, _))) => return Err(st::CLID_INUSE),
            (_, Some((id, true, true))) => Some(id),
            (false, _) => None,
        };
        let id = match known {
            Some(id) => id,
            None => {
                self.clients
                    .retain(|_, c| c.confirmed || c.owner != args.owner);
                self.serial += 1;
                let id = u64::from(self.epoch) << 32 | u64::from(self.serial);
                self.clients.insert(
                    id,
                    Client {
                        owner: args.owner.clone(),
                        verifier: args.verifier,
                        principal: uid,
                        confirmed: false,
                        create_seq: 0,
                        create_reply: None,
                        renewed: now,
                        running: 0,
                        reclaim_complete: false,
                    },
                );
                id
            }
        };
        let sequence = self.clients[&id].create_seq.wrapping_add(1);
        let flags = cfg.exchange_flags | if known.is_some() { CONFIRMED_R } else { 0 };
        out.u64(id).u32(sequence).u32(flags).u32(0);
        out.u64(0).opaque(b"efs-double"); // server_owner4
        out.opaque(cfg.scope.as_bytes()).u32(0);
        Ok(())
    }

    /// CREATE_SESSION (section 18.36). On success returns the clients which the
    /// new one replaces; the caller drops their state.
    pub(crate) fn create_session(
        &mut self,
        args: &CreateSession,
        (uid, conn): (u32, u64),
        cfg: &PeerConfig,
        now: Instant,
        out: &mut Enc,
    ) -> Result<Vec<u64>, Status> {
        let client = (self.clients.get_mut(&args.clientid)).ok_or(st::STALE_CLIENTID)?;
        if client.create_seq == args.sequence
            && let Some(reply) = &client.create_reply
        {
            out.raw(reply);
            return Ok(Vec::new());
        }
        if args.sequence != client.create_seq.wrapping_add(1) {
            return Err(st::SEQ_MISORDERED);
        }
        if client.principal != uid {
            return Err(st::CLID_INUSE);
        }
        let back = args.back;
        let tiny = |a: &ChannelAttrs| {
            a.max_request < 256 || a.max_response < 256 || a.max_ops < 2 || a.max_requests < 1
        };
        if tiny(&args.fore) || tiny(&back) {
            return Err(st::TOOSMALL);
        }
        let fore = ChannelAttrs {
            headerpad: 0,
            max_request: args.fore.max_request.min(cfg.max_request),
            max_response: args.fore.max_response.min(cfg.max_response),
            max_cached: args.fore.max_cached.min(cfg.max_cached),
            max_ops: args.fore.max_ops.min(cfg.max_ops),
            max_requests: args.fore.max_requests.min(self.table),
        };
        client.confirmed = true;
        client.renewed = now;
        client.create_seq = args.sequence;
        let owner = client.owner.clone();
        let replaced: Vec<u64> = (self.clients.iter())
            .filter(|(id, c)| **id != args.clientid && c.owner == owner)
            .map(|(id, _)| *id)
            .collect();
        for id in &replaced {
            self.forget(*id);
        }
        self.serial += 1;
        let mut session = [0; 16];
        session[..8].copy_from_slice(&args.clientid.to_be_bytes());
        session[8..12].copy_from_slice(&self.serial.to_be_bytes());
        session[12..].copy_from_slice(b"SESS");
        let mut slots = Vec::new();
        slots.resize_with(fore.max_requests as usize, Slot::default);
        self.sessions.insert(
            session,
            Session {
                client: args.clientid,
                fore,
                conns: BTreeSet::from([conn]),
                slots,
            },
        );
        let mut reply = Enc::new();
        reply.fixed(&session).u32(args.sequence);
        reply.u32(args.flags & cfg.session_flags);
        for attrs in [fore, back] {
            reply.u32(attrs.headerpad).u32(attrs.max_request);
            reply.u32(attrs.max_response).u32(attrs.max_cached);
            reply.u32(attrs.max_ops).u32(attrs.max_requests).u32(0);
        }
        out.raw(&reply.0);
        if let Some(client) = self.clients.get_mut(&args.clientid) {
            client.create_reply = Some(reply.0);
        }
        Ok(replaced)
    }

    pub(crate) fn bind(&mut self, session: &SessionId, conn: u64) -> Result<(), Status> {
        let session = self.sessions.get_mut(session).ok_or(st::BADSESSION)?;
        session.conns.insert(conn);
        Ok(())
    }

    pub(crate) fn destroy_session(
        &mut self,
        id: &SessionId,
        conn: u64,
        cfg: &PeerConfig,
    ) -> Result<(), Status> {
        let session = self.sessions.get(id).ok_or(st::BADSESSION)?;
        if !cfg.implicit_bind && !session.conns.contains(&conn) {
            return Err(st::CONN_NOT_BOUND_TO_SESSION);
        }
        self.evict_session(id);
        Ok(())
    }

    /// DESTROY_CLIENTID; `has_state` is what the state table says.
    pub(crate) fn destroy_client(&mut self, id: u64, has_state: bool) -> Result<(), Status> {
        let client = self.clients.get(&id).ok_or(st::STALE_CLIENTID)?;
        if has_state || self.sessions.values().any(|s| s.client == id) {
            return Err(st::CLIENTID_BUSY);
        }
        self.recorded.remove(&client.owner);
        self.forget(id);
        Ok(())
    }

    pub(crate) fn session(&self, id: &SessionId) -> Option<&Session> {
        self.sessions.get(id)
    }

    pub(crate) fn session_ids(&self) -> Vec<SessionId> {
        self.sessions.keys().copied().collect()
    }

    pub(crate) fn client_ids(&self) -> Vec<u64> {
        self.clients.keys().copied().collect()
    }

    /// Drops a client with its sessions, as an administrator would.
    pub(crate) fn evict(&mut self, id: u64) {
        self.forget(id);
    }

    pub(crate) fn evict_session(&mut self, id: &SessionId) {
        let Some(session) = self.sessions.remove(id) else {
            return;
        };
        // What still runs there cannot report its end any more.
        let running = session.slots.iter().filter(|s| s.busy).count() as u32;
        if let Some(client) = self.clients.get_mut(&session.client) {
            client.running = client.running.saturating_sub(running);
        }
    }

    /// Cuts or grows all slot tables; a slot that comes back is a fresh one.
    pub(crate) fn set_table(&mut self, slots: u32) {
        self.table = slots.max(1);
        for session in self.sessions.values_mut() {
            session
                .slots
                .resize_with(self.table as usize, Slot::default);
        }
    }

    /// SEQUENCE (section 18.46): checks the session, the slot and the sizes, and
    /// marks the slot as busy if the compound is to run. A failure leaves the
    /// slot as it was.
    pub(crate) fn begin(
        &mut self,
        args: &Sequence,
        request: &Request,
        cfg: &PeerConfig,
        now: Instant,
    ) -> Result<Begin, Status> {
        let session = (self.sessions.get_mut(&args.session)).ok_or(st::BADSESSION)?;
        let client = (self.clients.get_mut(&session.client)).ok_or(st::BADSESSION)?;
        if !session.conns.contains(&request.conn) {
            if !cfg.implicit_bind {
                return Err(st::CONN_NOT_BOUND_TO_SESSION);
            }
            session.conns.insert(request.conn);
        }
        if request.size > session.fore.max_request as usize {
            return Err(st::REQ_TOO_BIG);
        }
        if request.ops > session.fore.max_ops {
            return Err(st::TOO_MANY_OPS);
        }
        let table = session.slots.len() as u32;
        let slot = session
            .slots
            .get_mut(args.slot as usize)
            .ok_or(st::BADSLOT)?;
        if args.highest_slot >= table {
            return Err(st::BAD_HIGH_SLOT);
        }
        if args.seqid == slot.seqid && !matches!(slot.reply, Cached::Fresh) {
            // In this order, as knfsd: while it is at work there is nothing to compare.
            if slot.busy {
                return Err(st::DELAY);
            }
            if cfg.detect_false_retry && slot.fingerprint != request.fingerprint {
                return Err(st::SEQ_FALSE_RETRY);
            }
            client.renewed = now;
            return Ok(match &slot.reply {
                Cached::Reply(reply) => Begin::Replay(reply.clone()),
                _ => Begin::Uncached,
            });
        }
        if slot.busy || args.seqid != slot.seqid.wrapping_add(1) {
            return Err(st::SEQ_MISORDERED);
        }
        slot.seqid = args.seqid;
        slot.busy = true;
        slot.fingerprint = request.fingerprint;
        slot.reply = Cached::Uncached;
        client.renewed = now;
        client.running += 1;
        Ok(Begin::Execute)
    }

    /// The compound of `args` is done. `reply` is what a retry gets; with
    /// `undo` the call counts as never received.
    pub(crate) fn finish(&mut self, args: &Sequence, end: End, now: Instant) {
        let Some(session) = self.sessions.get_mut(&args.session) else {
            return;
        };
        if let Some(client) = self.clients.get_mut(&session.client) {
            client.running = client.running.saturating_sub(1);
            client.renewed = now;
        }
        let Some(slot) = session.slots.get_mut(args.slot as usize) else {
            return;
        };
        if slot.seqid != args.seqid {
            return;
        }
        slot.busy = false;
        match end {
            End::Uncached => slot.reply = Cached::Uncached,
            End::Cached(reply) => slot.reply = Cached::Reply(reply),
            End::Undone => {
                slot.seqid = slot.seqid.wrapping_sub(1);
                slot.reply = match slot.seqid {
                    0 => Cached::Fresh,
                    _ => Cached::Uncached,
                };
            }
        }
    }
}

/// What [`Clients::begin`] must know of a request besides its SEQUENCE.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) conn: u64,
    /// Bytes of the whole RPC message.
    pub(crate) size: usize,
    pub(crate) ops: u32,
    /// Of the credential and the compound.
    pub(crate) fingerprint: u64,
}

/// How a compound ended for its slot.
#[derive(Debug)]
pub(crate) enum End {
    Uncached,
    Cached(Bytes),
    Undone,
}
