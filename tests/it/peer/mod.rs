//! An NFSv4.1 server in memory, scripted by the test.
//!
//! The double speaks RFC 8881 with its own XDR codec over any byte stream and
//! has a real file system behind it, so that a client under test is judged by
//! what happened to the files, not by what it sent. It is made to be strict
//! where servers may be strict, and like EFS where that is known
//! ([`PeerConfig::default`]).
//!
//! Who owns what: [`Peer`] has the server's state behind one lock, the script
//! and the log behind theirs, and the list of live connections; a task for
//! every request takes the server's lock once for each operation. No lock is
//! held while a script runs except the script's own, so a script may use
//! every method of `Peer` but [`Peer::on_op`] and [`Peer::clear_script`].
//!
//! Nothing depends on wall clock or chance: leases, grace and latency run on
//! tokio's clock (which a test may pause), ids and verifiers are counted. Only the
//! times of files begin at the time of day.

#![allow(dead_code)] // each test uses the part that it needs

mod args;
mod attr;
mod compound;
pub(crate) mod config;
mod conn;
mod data;
pub(crate) mod fs;
pub(crate) mod host;
mod ops_fs;
mod ops_io;
mod ops_lock;
pub(crate) mod proto;
pub(crate) mod script;
mod selftest;
mod server;
mod session;
mod state;
pub(crate) mod xdr;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use efs_fuse::rpc::transport::Connector;
use parking_lot::{Mutex, MutexGuard};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;

pub(crate) use config::{CommitMode, PeerConfig};
pub(crate) use host::PeerFs;
pub(crate) use script::{Action, Executed, OpEvent};

use script::{Hook, Log};
use server::Server;

/// The server. See the module.
pub(crate) struct Peer {
    server: Mutex<Server>,
    script: Mutex<Option<Hook>>,
    log: Mutex<Log>,
    /// Sending `true` cuts the connection.
    conns: Mutex<BTreeMap<u64, watch::Sender<bool>>>,
    next_conn: AtomicU64,
    refusing: AtomicBool,
    /// Connections up to this number carry nothing any more.
    lost_up_to: AtomicU64,
    latency: Mutex<Duration>,
}

impl Peer {
    pub(crate) fn new(cfg: PeerConfig) -> Arc<Self> {
        Arc::new(Self {
            latency: Mutex::new(cfg.latency),
            server: Mutex::new(Server::new(cfg)),
            script: Mutex::new(None),
            log: Mutex::default(),
            conns: Mutex::default(),
            next_conn: AtomicU64::new(1),
            refusing: AtomicBool::new(false),
            lost_up_to: AtomicU64::new(0),
        })
    }

    /// Makes in-memory connections to this server.
    pub(crate) fn connector(self: &Arc<Self>) -> Arc<dyn Connector> {
        Arc::new(conn::PeerConnector(self.clone()))
    }

    /// Serves one connection over any stream, in a task of its own. Returns
    /// the connection's number.
    pub(crate) fn serve<S>(self: &Arc<Self>, stream: S) -> u64
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let id = self.next_conn.fetch_add(1, Ordering::Relaxed);
        let (cut, cut_seen) = watch::channel(false);
        self.conns.lock().insert(id, cut);
        let epoch = self.server().epoch;
        let conn = conn::Conn { id, epoch };
        tokio::spawn(conn::serve(self.clone(), conn, stream, cut_seen));
        id
    }

    /// The tree as another host sees it.
    pub(crate) fn fs(self: &Arc<Self>) -> PeerFs {
        PeerFs(self.clone())
    }

    pub(crate) fn config(&self) -> PeerConfig {
        self.server().cfg.clone()
    }

    // Faults.

    /// Sets the script: it is asked before every operation.
    pub(crate) fn on_op(&self, hook: impl FnMut(&OpEvent<'_>) -> Action + Send + 'static) {
        *self.script.lock() = Some(Box::new(hook));
    }

    pub(crate) fn clear_script(&self) {
        *self.script.lock() = None;
    }

    /// Kill and start again: uncommitted data, sessions, opens and locks are
    /// gone, connections are cut. Known clients may reclaim until all of them
    /// have, or `grace_s` is over.
    pub(crate) fn crash_and_restart(&self) {
        self.server().crash();
        self.cut_all_connections();
    }

    /// Uncommitted data are gone and the write verifier moves; all else stays.
    pub(crate) fn lose_unstable_data(&self) {
        self.server().lose_unstable();
    }

    /// Every session is gone; clients, opens and locks stay.
    pub(crate) fn destroy_sessions(&self) {
        let mut server = self.server();
        for id in server.clients.session_ids() {
            server.clients.evict_session(&id);
        }
    }

    /// Every client is forgotten with all its state, as after its lease.
    pub(crate) fn expire_clients(&self) {
        let mut server = self.server();
        for id in server.clients.client_ids() {
            server.clients.evict(id);
            server.drop_state(id, None);
        }
    }

    /// All opens and locks are taken away; their stateids answer `status`
    /// (EXPIRED or ADMIN_REVOKED) until FREE_STATEID, and SEQUENCE says so.
    pub(crate) fn revoke_state(&self, status: u32) {
        let mut server = self.server();
        for id in server.clients.client_ids() {
            server.drop_state(id, Some(status));
        }
    }

    /// A restart that keeps the sessions, as RFC 8881 §8.4.2 allows: opens, locks
    /// and uncommitted data are gone, clients may reclaim, and SEQUENCE says so.
    pub(crate) fn restart_and_keep_sessions(&self) {
        self.server().forget_state();
    }

    /// The state of the client that made it, of this one file only, is taken away.
    pub(crate) fn revoke_file(&self, fileid: u64, status: u32) {
        self.server().state.revoke_file(fileid, status);
    }

    /// Limits of the sessions that are made from now on.
    pub(crate) fn limit_sessions(&self, change: impl FnOnce(&mut PeerConfig)) {
        change(&mut self.server().cfg);
    }

    pub(crate) fn cut_all_connections(&self) {
        for cut in self.conns.lock().values() {
            cut.send_replace(true);
        }
    }

    pub(crate) fn cut_connection(&self, id: u64) {
        if let Some(cut) = self.conns.lock().get(&id) {
            cut.send_replace(true);
        }
    }

    /// New connections fail with ConnectionRefused.
    pub(crate) fn refuse_connections(&self, refuse: bool) {
        self.refusing.store(refuse, Ordering::Relaxed);
    }

    /// Everything on today's connections vanishes from now on, as with a router that
    /// forgot them; new connections work.
    pub(crate) fn lose_connections(&self) {
        let last = self.next_conn.load(Ordering::Relaxed) - 1;
        self.lost_up_to.store(last, Ordering::Relaxed);
    }

    /// Everything vanishes, on new connections too, until it is turned off; the
    /// connections of that time are lost.
    pub(crate) fn black_hole(&self, on: bool) {
        if on {
            self.lost_up_to.store(u64::MAX, Ordering::Relaxed);
        } else {
            self.lose_connections();
        }
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        *self.latency.lock() = latency;
    }

    /// The next `times` SEQUENCE replies carry `flags` (`u32::MAX`: all).
    pub(crate) fn set_status_flags(&self, flags: u32, times: u32) {
        self.server().status_flags = (flags, times);
    }

    /// sr_target_highest_slotid of all replies; `None`: the table's end.
    pub(crate) fn set_target_highest_slotid(&self, target: Option<u32>) {
        self.server().target_slot = target;
    }

    /// Cuts or grows every session's slot table. Slots beyond it are BADSLOT;
    /// one that comes back starts anew.
    pub(crate) fn set_slot_table(&self, slots: u32) {
        self.server().clients.set_table(slots);
    }

    /// Most bytes that one WRITE takes and one READ gives.
    pub(crate) fn limit_io(&self, write: u32, read: u32) {
        self.server().io_limit = (write, read);
    }

    /// Cookies given out so far get NOT_SAME.
    pub(crate) fn renew_cookie_verifier(&self) {
        self.server().cookie_verifier += 1;
    }

    // Inspection.

    /// The compounds answered so far, replays included, oldest first.
    pub(crate) fn log(&self) -> Vec<Executed> {
        self.log.lock().entries.iter().cloned().collect()
    }

    /// Empties the log and sets its counts to zero.
    pub(crate) fn clear_log(&self) {
        *self.log.lock() = Log::default();
    }

    /// COMPOUNDs answered.
    pub(crate) fn round_trips(&self) -> u64 {
        self.log.lock().round_trips
    }

    /// Most operations that one COMPOUND had.
    pub(crate) fn max_ops_seen(&self) -> u32 {
        self.log.lock().max_ops
    }

    /// How often an operation was sent.
    pub(crate) fn count_op(&self, op: u32) -> usize {
        let log = self.log.lock();
        let sent = log.entries.iter().flat_map(|e| &e.ops);
        sent.filter(|o| **o == op).count()
    }

    pub(crate) fn open_count(&self) -> usize {
        self.server().state.open_count()
    }

    /// Byte ranges that clients hold.
    pub(crate) fn lock_count(&self) -> usize {
        self.server().state.lock_count()
    }

    pub(crate) fn session_count(&self) -> usize {
        self.server().clients.session_ids().len()
    }

    /// The server has this session.
    pub(crate) fn has_session(&self, id: &[u8; 16]) -> bool {
        self.server().clients.session(id).is_some()
    }

    pub(crate) fn client_count(&self) -> usize {
        self.server().clients.client_ids().len()
    }

    pub(crate) fn connection_count(&self) -> usize {
        self.conns.lock().len()
    }

    /// The connections that live, oldest first.
    pub(crate) fn connections(&self) -> Vec<u64> {
        self.conns.lock().keys().copied().collect()
    }

    pub(crate) fn in_grace(&self) -> bool {
        let server = self.server();
        server.clients.in_grace(server.now())
    }

    // For the module's own tasks.

    fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock()
    }

    fn latency(&self) -> Duration {
        *self.latency.lock()
    }

    fn refuses(&self) -> bool {
        self.refusing.load(Ordering::Relaxed)
    }

    fn is_lost(&self, conn: u64) -> bool {
        conn <= self.lost_up_to.load(Ordering::Relaxed)
    }

    fn disconnected(&self, id: u64) {
        self.conns.lock().remove(&id);
    }

    fn ask_script(&self, event: &OpEvent<'_>) -> Action {
        match &mut *self.script.lock() {
            Some(hook) => hook(event),
            None => Action::Pass,
        }
    }

    fn log_compound(&self, entry: Executed) {
        let mut log = self.log.lock();
        log.round_trips += 1;
        log.max_ops = log.max_ops.max(entry.ops.len() as u32);
        log.push(entry);
    }
}
