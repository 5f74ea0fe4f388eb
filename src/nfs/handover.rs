//! A client that ends without a word to the server, and one that goes on in its place.
//!
//! To the server both are one client: the same owner and verifier, so the client id stays,
//! and with it what is open and locked (RFC 8881 §18.35.4). What differs is the session. The
//! one that takes over begins like a client whose session is lost: recovery makes another
//! one, and before anything goes over it, destroys those of the process before
//! ([`KnownSessions`](super::session::known)), so that none of its requests is executed any
//! more that may still be in a socket. Where the server has forgotten the client meanwhile,
//! recovery reclaims what is in the tables that are restored here.
//!
//! What is found again is not handed over: what the server lacks, and how large an I/O may
//! be in a session. The root is: its path may lead elsewhere by now.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::client::Client;
use super::config::ClientConfig;
use super::connect::{self, ConnectError};
use super::fore_channel::ForeChannel;
pub use super::fore_channel::Unanswered;
use super::fore_channel::UnusedOpen;
use super::proto::ops::Op;
use super::proto::reply::NfsError;
use super::proto::status::Status;
use super::proto::types::{FileHandle, Promises, SessionId, StateId};
use super::recovery;
pub use super::server::FileSystem;
use super::session::current::CurrentSession;
use super::session::establish::{ChannelAttrs, ClientId, Identity, NewSession};
use super::session::live::Session;
use super::state::OpenState;
use super::state::handover::Identities;
pub use super::state::handover::{LockRecord, OpenRecord};
use super::state::locks::LockState;
use crate::rpc::RpcError;
use crate::rpc::transport::Connector;
use crate::telemetry::Metrics;

/// The layout of [`ClientState`]. It moves when a program that does not know what is new
/// in it must not go on without: a field that may be missing does not move it.
const LAYOUT: u32 = 1;

/// A number that only [`LAYOUT`] is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout;

impl Serialize for Layout {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(LAYOUT)
    }
}

impl<'de> Deserialize<'de> for Layout {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        match u32::deserialize(from)? {
            LAYOUT => Ok(Self),
            other => Err(serde::de::Error::custom(format_args!(
                "the state of the NFS client has layout {other}, and this program knows {LAYOUT}"
            ))),
        }
    }
}

/// All that a client must know to go on in the place of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientState {
    /// The first field, so that of another layout nothing else is believed.
    pub layout: Layout,
    /// Who we are to the server.
    pub identity: Identity,
    /// Who we are by its word, and for which CREATE_SESSION.
    pub client_id: ClientId,
    /// Sessions in which requests may be under way.
    pub sessions: Vec<SessionId>,
    /// The client id that all state belongs to; another one than that of `client_id` if
    /// recovery was not through.
    pub reclaimed: u64,
    /// The server has said that it restarted, and nothing was reclaimed yet.
    pub must_reclaim: bool,
    /// Seconds.
    pub lease: u32,
    /// What is known of the mounted file system, once it is.
    pub fs: Option<FileSystem>,
    /// Open owners and lock owners from here on were never used.
    pub next_owner: u64,
    /// What is open.
    pub opens: Vec<OpenRecord>,
    /// What is closed here, and not yet at the server.
    pub closes: Vec<OpenRecord>,
    /// What is locked with any of these.
    pub locks: Vec<LockRecord>,
}

impl ClientState {
    /// Of a process that was killed it is known what became of its promises, and that these owners have
    /// opened what was made. What nobody is going to make is not open.
    pub fn knows(&mut self, promises: &Promises, opened: &HashMap<u64, StateId>) {
        for opens in [&mut self.opens, &mut self.closes] {
            opens.retain_mut(|open| {
                open.stateid = open.stateid.or_else(|| opened.get(&open.owner).copied());
                let handle = promises.find(&open.handle);
                let is_known = handle.is_some();
                open.handle = handle.unwrap_or_else(FileHandle::unknown);
                is_known
            });
        }
    }

    /// The open of this owner is one, and is not being closed.
    pub fn has_open(&self, owner: u64) -> bool {
        self.opens.iter().any(|open| open.owner == owner)
    }
}

/// What was open and locked, for whoever had it: by the numbers of the owners. An open or
/// lock that nobody takes out of here is forgotten with it, and stays at the server, unless
/// [`Client::settle`] is told of it.
#[derive(Debug, Default)]
pub struct TakenOver {
    /// By [`OpenState::owner`].
    pub opens: BTreeMap<u64, Arc<OpenState>>,
    /// By [`LockState::owner`].
    pub locks: BTreeMap<u64, Arc<LockState>>,
}

impl Client {
    /// What another client needs to know to go on in the place of this one, which must not
    /// send anything afterwards. No request of whoever uses this client is under way.
    pub fn hand_over(&self) -> ClientState {
        let opens = self.opens.all();
        let closes = self.close_queue.unanswered();
        let locks = opens.iter().chain(closes.iter().map(|(open, _)| open));
        let locks = locks.flat_map(|open| open.lock_states());
        let locks = locks.map(|lock| lock.record()).collect();
        let closing = |(open, stateid): (Arc<OpenState>, _)| OpenRecord {
            stateid: Some(stateid),
            ..open.record()
        };
        let known = self.known();
        ClientState {
            layout: Layout,
            identity: known.identity,
            client_id: known.client_id,
            sessions: known.sessions,
            reclaimed: known.reclaimed,
            must_reclaim: known.must_reclaim,
            lease: known.lease,
            fs: known.fs,
            opens: opens.iter().map(|open| open.record()).collect(),
            closes: closes.into_iter().map(closing).collect(),
            locks,
            // Last: whatever is above has its owner below this.
            next_owner: self.opens.owners_from(),
        }
    }

    /// A client in the place of another that has ended without DESTROY_CLIENTID; the
    /// identity in `config` is not looked at. The server is tried for ever, as by every
    /// client that is mounted. What is waited for here is only its first answer, which may
    /// be that it does not want us, and not for longer than [`PATIENCE`]: requests to the
    /// client wait for the session then.
    ///
    /// If this fails, or the future is dropped, no other requests were sent than those of
    /// recovery, and another program may try with the same state. Once it has succeeded
    /// only [`Client::hand_over`] of this client tells how to go on.
    ///
    /// # Errors
    /// What will not mend by waiting: the server refuses us, speaks something else, or is
    /// another one than it was; the state contradicts itself.
    pub async fn take_over(
        connector: Arc<dyn Connector>,
        config: ClientConfig,
        metrics: Arc<Metrics>,
        state: ClientState,
    ) -> Result<(Arc<Self>, TakenOver), ConnectError> {
        let left = Unanswered::default();
        Self::take_over_killed(connector, config, metrics, state, left).await
    }

    /// The same in the place of one that was killed, with what it has `left` unanswered: what
    /// became of that is found out before its sessions are destroyed, and the kernel's requests
    /// that come again get it as their results.
    ///
    /// # Errors
    /// As [`Client::take_over`].
    pub async fn take_over_killed(
        connector: Arc<dyn Connector>,
        config: ClientConfig,
        metrics: Arc<Metrics>,
        state: ClientState,
        left: Unanswered,
    ) -> Result<(Arc<Self>, TakenOver), ConnectError> {
        let config = ClientConfig {
            identity: state.identity.clone(),
            ..config
        };
        let channel = connect::connecting(connector, &config, &metrics)?;
        channel.set_lease(Duration::from_secs(state.lease.into()));
        // Where its requests were is known to `sessions`; nobody waits in this one.
        let lost = NewSession {
            id: state.sessions.last().copied().unwrap_or_default(),
            attrs: ChannelAttrs::wanted(1),
        };
        let lost = Arc::new(Session::new(
            &lost,
            recovery::INHERITED,
            0,
            config.suspended,
        ));
        let fore = ForeChannel::new(channel, config, metrics, CurrentSession::awaited());
        fore.lease.send_replace(state.lease);
        fore.take_in(left);
        let unfinished = Unfinished(Some(Self::new(fore, state.client_id.clone())));
        let client = unfinished.client();
        let (taken, closing) = client.restore(state)?;
        connect::keep_up(&client);
        recovery::begin(&client, lost);
        match tokio::time::timeout(PATIENCE, until_up(&client)).await {
            Ok(result) => result?,
            Err(_) => tracing::warn!(
                "server {} has not answered yet; it is tried for ever",
                client.fore.channel.peer()
            ),
        }
        for (open, stateid, _locks) in closing {
            client.close_queue.close_soon(&open, stateid);
        }
        connect::look_after(&client.fore);
        Ok((unfinished.finish(), taken))
    }

    /// The kernel's request with this number was answered, and does not come again. To be
    /// called after the answer was written, or after [`Client::request_given_up`].
    pub fn request_answered(&self, unique: u64) {
        self.close_unused(self.fore.request_answered(unique));
    }

    /// The kernel's request with this number is about to be answered although its operation has
    /// not ended: should this process be killed, nothing of it is executed afterwards.
    pub fn request_given_up(&self, unique: u64) {
        self.fore.request_given_up(unique);
    }

    /// Each request that the kernel had to send again has come, and was answered: what was
    /// learnt of others is of no use. A file that one of them has opened is closed.
    pub fn outcomes_are_through(&self) {
        self.close_unused(self.fore.outcomes_are_through());
    }

    fn close_unused(&self, opens: Vec<UnusedOpen>) {
        for open in opens {
            if self.opens.has(open.owner) {
                continue;
            }
            let cred = Arc::new(open.cred);
            let (owner, stateid) = (open.owner, open.stateid);
            let open = self
                .opens
                .adopt(open.handle, cred, owner, stateid, open.access);
            self.close_soon(&open);
        }
    }

    /// Fills the tables. Gives back what is open and locked, and what is to be closed.
    fn restore(&self, state: ClientState) -> Result<(TakenOver, Vec<Closing>), NfsError> {
        self.reclaimed.store(state.reclaimed, Ordering::Relaxed);
        self.must_reclaim
            .store(state.must_reclaim, Ordering::Relaxed);
        self.sessions.inherit(state.sessions);
        if let Some(fs) = state.fs {
            let _ = self.fs.set(fs);
        }
        let mut owners = HashSet::new();
        let mut is_new = |owner| match owners.insert(owner) && owner < state.next_owner {
            true => Ok(()),
            false => Err(CONTRADICTION),
        };
        let mut identities = Identities::default();
        let mut taken = TakenOver::default();
        let mut closing = BTreeMap::new();
        for record in state.opens {
            is_new(record.owner)?;
            let open = OpenState::of_record(record, false, &mut identities, self.wal());
            self.opens.take_in(&open);
            taken.opens.insert(open.owner(), open);
        }
        for record in state.closes {
            is_new(record.owner)?;
            let stateid = record.stateid.ok_or(CONTRADICTION)?;
            let open = OpenState::of_record(record, true, &mut identities, self.wal());
            closing.insert(open.owner(), (open, stateid, Vec::new()));
        }
        for record in state.locks {
            is_new(record.owner)?;
            if let Some(open) = taken.opens.get(&record.open) {
                let lock = LockState::of_record(record, Arc::clone(open));
                taken.locks.insert(lock.owner(), lock);
            } else {
                let (open, _, locks) = closing.get_mut(&record.open).ok_or(CONTRADICTION)?;
                locks.push(LockState::of_record(record, Arc::clone(open)));
            }
        }
        self.opens.owners_begin_at(state.next_owner);
        self.record();
        Ok((taken, closing.into_values().collect()))
    }
}

/// An open that is to be closed at the server, its stateid, and what is locked with it.
type Closing = (Arc<OpenState>, StateId, Vec<Arc<LockState>>);

/// The records were not written by a program like this one.
const CONTRADICTION: NfsError =
    NfsError::Unfit("the state that was handed over contradicts itself");

/// The server's first answer is waited for no longer than this: a server that is away comes
/// back in its own time, and whoever takes over has to serve meanwhile (what is remembered,
/// an unmount, the end of processes). Long enough for one dead connection to be found.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A client whose session is not there yet. Dropped, it stops to ask for one.
struct Unfinished(Option<Arc<Client>>);

impl Unfinished {
    fn client(&self) -> Arc<Client> {
        Arc::clone(self.0.as_ref().expect("it is taken out at the end only"))
    }

    fn finish(mut self) -> Arc<Client> {
        self.0.take().expect("it is taken out at the end only")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(client) = &self.0 {
            client.fore.session.shut_down();
            client.fore.channel.close();
        }
    }
}

/// Waits for the session.
///
/// # Errors
/// There will be none, however long it is asked for.
async fn until_up(client: &Client) -> Result<(), ConnectError> {
    let mut failed = client.recovery_failed.subscribe();
    loop {
        tokio::select! {
            biased;
            session = client.fore.session.wait() => {
                let closed = NfsError::Rpc(RpcError::Closed);
                return session.map(drop).ok_or(ConnectError::Nfs(closed));
            }
            error = connect::no_nfs(&client.fore.channel, true) => return Err(error),
            // The sender is in `client`, so waiting does not fail.
            _ = failed.changed() => {
                let error = failed.borrow_and_update().clone();
                if let Some(error) = error && !mends(&error) {
                    return Err(error.into());
                }
            }
        }
    }
}

/// Whether the same may be answered differently although nothing is changed.
fn mends(error: &NfsError) -> bool {
    let refused = |status| {
        matches!(
            status,
            Status::ACCESS
                | Status::PERM
                | Status::WRONGSEC
                | Status::WRONG_CRED
                | Status::CLID_INUSE
                | Status::NOTSUPP
                | Status::OP_ILLEGAL
                | Status::MINOR_VERS_MISMATCH
        )
    };
    match error {
        NfsError::Unfit(_) | NfsError::Rpc(RpcError::NotSpoken(_) | RpcError::AuthRefused(_)) => {
            false
        }
        NfsError::Compound(status)
        | NfsError::Status(
            Op::ExchangeId | Op::CreateSession | Op::DestroySession | Op::ReclaimComplete,
            status,
        ) => !refused(*status),
        _ => true,
    }
}
