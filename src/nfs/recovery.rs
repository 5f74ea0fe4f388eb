//! Rebuilding the session and the state (RFC 8881 §8.4, §2.10.13).
//!
//! One task does it, in one order: session, client id, opens that the server may
//! know from before its restart, each with its locks, RECLAIM_COMPLETE, opens
//! that are opened anew (their locks are lost).
//! Within a step, opens are independent of each other and go several at once.
//! While it runs the phase is `Recovering` and ordinary requests wait for the
//! new session; if anything fails, the task starts over from the top, for ever.
//! Who finds the session lost calls [`ForeChannel::recover`], which calls [`begin`], once
//! for each session.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;

use super::backoff::Backoff;
use super::client::Client;
use super::fore_channel::ForeChannel;
use super::proto::compound::Compound;
use super::proto::ops::{Claim, Create, LockType, Op};
use super::proto::reply::{NfsError, Reply};
use super::proto::status::Status;
use super::proto::types::SessionId;
use super::session::current::Phase;
use super::session::establish::{self, ChannelAttrs, NewSession};
use super::session::live::Session;
use super::state::OpenState;
use super::state::locks::LockState;
use super::state::ranges::{LockKind, Span};
use super::stateids;
use crate::background;
use crate::rpc::auth::Credential;
use crate::telemetry::repeats::Repeats;

// Of hundreds of files at a time.
static OPENS_LOST: Repeats = Repeats::new(|count| {
    tracing::warn!("{count} open files are lost: the server refused to open them again");
});
/// The generation of a session that the process before this one had.
pub(super) const INHERITED: u64 = 0;

/// Begins to bring back the session `lost`, in a task of its own.
pub(super) fn begin(client: &Arc<Client>, lost: Arc<Session>) {
    let work = recover(Arc::clone(client), Arc::clone(&lost));
    let client = Arc::clone(client);
    let tasks = Arc::clone(&client.metrics.tasks);
    tasks.vital("recover", work, move || {
        client.fore.session.shut_down();
        lost.end();
    });
}

async fn recover(client: Arc<Client>, lost: Arc<Session>) {
    let mut backoff = Backoff::up_to(client.fore.channel.pause());
    let tasks = &client.metrics.tasks;
    tasks.point("recover");
    let mut deaths = 0;
    let session = loop {
        if matches!(client.fore.session.phase(), Phase::Down) {
            lost.end();
            return;
        }
        match tasks.watched("rebuild", rebuild(&client, &lost)).await {
            Ok(Ok(session)) => break session,
            Err(died) => {
                deaths += 1;
                assert!(
                    deaths < background::TRIES,
                    "{died}, {deaths} times in a row"
                );
                backoff.pause().await;
            }
            Ok(Err(error)) => {
                deaths = 0;
                tracing::warn!("recovery: {error}; trying again");
                client.metrics.set_last_error(format!("recovery: {error}"));
                client.recovery_failed.send_replace(Some(error));
                backoff.pause().await;
            }
        }
    };
    tracing::info!("the session is back");
    client.fore.session.replace(session);
    // Whoever stood in line for a slot of the old session comes to the new.
    lost.end();
}

/// A session, and with it a client id if the server does not know ours any more: both are on
/// record, and nothing was sent in it yet.
async fn new_session(client: &Client, taking_over: bool) -> Result<NewSession, NfsError> {
    let (channel, config) = (&client.fore.channel, client.config());
    let identity = &config.identity;
    let wanted = ChannelAttrs::wanted(config.slots);
    let known = client.client_id.lock().clone();
    let mut id = known.clone();
    let created = establish::create_session(channel, identity, &mut id, wanted).await;
    let new = match created {
        // The reply that it has kept of the CREATE_SESSION of the process before this one.
        Ok(new) if client.sessions.is_unfenced(new.id) => None,
        // Or of another that has taken over from the same log and was killed as well: what
        // it has sent may be under way. A log has no other way to know of that session.
        Ok(new) if taking_over && client.wal().is_on() => {
            client.sessions.inherit_one(new.id);
            None
        }
        Ok(new) => Some(new),
        Err(NfsError::Status(Op::CreateSession, Status::DELAY)) => {
            // The same sequence again, as if it had not been sent.
            return Err(NfsError::Status(Op::CreateSession, Status::DELAY));
        }
        Err(NfsError::Status(Op::CreateSession, _)) => None,
        Err(error) => return Err(error),
    };
    let new = match new {
        Some(new) => new,
        None => {
            id = establish::exchange_id(channel, identity).await?;
            if taking_over && id.server.scope != known.server.scope {
                // To it the handles mean nothing, or other files (RFC 8881 §2.10.4), and a
                // client id that is the same is so by chance.
                return Err(NfsError::Unfit("another server answers under this name"));
            }
            establish::create_session(channel, identity, &mut id, wanted).await?
        }
    };
    let is_known = id.id == known.id;
    *client.client_id.lock() = id;
    if !is_known {
        client.sessions.forget();
    }
    client.sessions.made(new.id);
    // Nothing was sent in it yet. A kill before this leaves a session that nobody knows
    // and in which no request is under way; it ends with the client id.
    client.record();
    Ok(new)
}

/// A new session, and if need be a new client id with all its state.
async fn rebuild(client: &Arc<Client>, lost: &Arc<Session>) -> Result<Arc<Session>, NfsError> {
    client.metrics.tasks.point("rebuild");
    let config = client.config();
    let taking_over = lost.generation == INHERITED;
    let new = new_session(client, taking_over).await?;
    let client_id = client.client_id.lock().id;
    client.fore.settle().await?;
    fence(client).await?;
    let left = client.sessions.others(new.id);
    if !left.is_empty() {
        // They may still be there: the lost one, if only its slots were of no more use, and
        // those of attempts that have failed. Nobody waits for their end.
        let work = drain(Arc::clone(client), Arc::clone(lost), left);
        client.metrics.tasks.harmless("drain", work);
    }
    let session = Arc::new(Session::new(
        &new,
        lost.generation + 1,
        lost.flags(),
        config.suspended,
    ));
    client.fit_io(&session.attrs);
    if taking_over {
        // What the server has to say of our state, before anybody relies on that.
        let machine = Credential::machine();
        client.fore.call_on(&session, &machine, |_| {}).await?;
    }
    let told = client.must_reclaim.load(Ordering::Relaxed);
    let known = client.reclaimed.load(Ordering::Relaxed) == client_id;
    // Not "is it another one than before": an earlier attempt may have got the
    // client id and failed before all was reclaimed.
    if !known || told {
        let mut opens = client.opens.live();
        let begun = client.reclaiming.swap(client_id, Ordering::Relaxed) == client_id;
        if begun {
            // It says that it restarted, or has lost the session of an earlier attempt, in which
            // it may have had RECLAIM_COMPLETE. What it still knows need not, and after that
            // cannot, be reclaimed.
            let intact = stateids::intact(&client.fore, &session, &client.opens, &opens).await?;
            opens.retain(|open| !intact.contains(&open.owner));
        }
        tracing::info!(opens = opens.len(), "the server forgot us, reclaiming");
        let reclaimed = reclaim_all(client, &session, opens, Claim::Previous).await;
        // With nothing granted it may only have been the lease that ran out:
        // then others may have written since, and nothing is lost. Where some of it failed, too:
        // the next attempt need not ask for what was granted.
        if reclaimed.any_done {
            client.restarted.restarted();
        }
        let refused = reclaimed.refused()?;
        reclaim_complete(&client.fore, &session).await?;
        // Only now: before RECLAIM_COMPLETE anything but a reclaim gets GRACE,
        // for ever (RFC 8881 §18.51.3).
        reclaim_all(client, &session, refused, Claim::Handle)
            .await
            .refused()?;
        client.reclaimed.store(client_id, Ordering::Relaxed);
        client.must_reclaim.store(false, Ordering::Relaxed);
        client.record();
    }
    Ok(session)
}

/// RECLAIM_COMPLETE for all file systems (RFC 8881 §18.51).
///
/// # Errors
/// The server's, but for COMPLETE_ALREADY.
pub(super) async fn reclaim_complete(
    fore: &ForeChannel,
    session: &Arc<Session>,
) -> Result<(), NfsError> {
    let mut reply = fore
        .call_on(session, &Credential::machine(), |c| {
            c.once().other(Op::ReclaimComplete, |enc| {
                enc.bool(false);
            });
        })
        .await?;
    match reply.ok(Op::ReclaimComplete) {
        Err(error) if error.status() != Some(Status::COMPLETE_ALREADY) => Err(error),
        _ => Ok(()),
    }
}

/// Ends sessions that are not used any more, when nothing is under way in the one that was
/// used last: its replies would be lost with it.
async fn drain(client: Arc<Client>, last: Arc<Session>, sessions: Vec<SessionId>) {
    const LOOKS: u32 = 300;
    const PAUSE: Duration = Duration::from_millis(100);
    for _ in 0..LOOKS {
        if last.busy() == 0 {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let (channel, identity) = (&client.fore.channel, &client.config().identity);
    for id in sessions {
        let _ = establish::destroy_session(channel, identity, id).await;
        client.sessions.gone(id);
        client.record();
    }
}

/// Destroys the sessions of the process before this one, whose requests may still be on
/// their way: nothing is sent in the new session before that.
///
/// # Errors
/// The server's, which has to be asked again then.
async fn fence(client: &Client) -> Result<(), NfsError> {
    let (channel, identity) = (&client.fore.channel, &client.config().identity);
    let mut backoff = Backoff::up_to(channel.pause());
    while let Some(id) = client.sessions.unfenced() {
        match establish::destroy_session(channel, identity, id).await {
            Ok(()) | Err(NfsError::Status(_, Status::BADSESSION | Status::DEADSESSION)) => {
                client.sessions.gone(id);
            }
            // It is at work on requests of that session, or the answer was none.
            Err(NfsError::Status(_, Status::DELAY | Status::BACK_CHAN_BUSY))
            | Err(NfsError::Garbled(..)) => backoff.pause().await,
            Err(error) => return Err(error),
        }
    }
    client.record();
    Ok(())
}

/// Opens brought back at once.
const RECLAIMS: usize = 16;

/// What became of many opens.
#[derive(Default)]
struct Reclaimed {
    refused: Vec<Arc<OpenState>>,
    any_done: bool,
    failed: Option<NfsError>,
}

impl Reclaimed {
    /// Those that were refused, if nothing has failed.
    fn refused(self) -> Result<Vec<Arc<OpenState>>, NfsError> {
        self.failed.map_or(Ok(self.refused), Err)
    }
}

/// Brings opens back, several at once. What fails does so when all are through: none is cut
/// off in the middle.
async fn reclaim_all(
    client: &Arc<Client>,
    session: &Arc<Session>,
    opens: Vec<Arc<OpenState>>,
    claim: Claim<'static>,
) -> Reclaimed {
    let mut all = Reclaimed::default();
    let mut take = |result| match result {
        Ok(Ok((_, true))) => all.any_done = true,
        Ok(Ok((open, false))) => all.refused.push(open),
        Ok(Err(error)) => all.failed = Some(error),
        Err(_) => all.failed = Some(NfsError::StateLost), // it panicked: once more
    };
    let mut running = JoinSet::new();
    for open in opens {
        if running.len() == RECLAIMS
            && let Some(result) = running.join_next().await
        {
            take(result);
        }
        let (client, session) = (Arc::clone(client), Arc::clone(session));
        running.spawn(async move {
            let done = reclaim(&client, &session, &open, claim).await?;
            Ok((open, done))
        });
    }
    while let Some(result) = running.join_next().await {
        take(result);
    }
    all
}

/// A reply that does not decode is asked for again, so often in all: the server has
/// done it or not, and to reclaim twice is as good as once.
const TRIES: usize = 3;

/// Runs PUTFH and an operation that `read` takes the result of.
async fn ask<T>(
    client: &Arc<Client>,
    session: &Arc<Session>,
    cred: &Credential,
    read: impl Fn(&mut Reply) -> Result<T, NfsError> + Send,
    build: impl Fn(&mut Compound) + Send + Sync,
) -> Result<Result<T, NfsError>, NfsError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let mut reply = client.fore.call_on(session, cred, &build).await?;
        let put = reply.ok(Op::PutFh).map(drop);
        match put.and_then(|()| read(&mut reply)) {
            Err(NfsError::Garbled(op, why)) if tries < TRIES => {
                tracing::warn!("{} to reclaim: bad reply: {why}", op.name());
            }
            result => return Ok(result),
        }
    }
}

/// Brings one open back: as it was before a restart of the server
/// (`Claim::Previous`), or anew (`Claim::Handle`). False if the server says that
/// there is nothing to reclaim.
async fn reclaim(
    client: &Arc<Client>,
    session: &Arc<Session>,
    open: &Arc<OpenState>,
    claim: Claim<'_>,
) -> Result<bool, NfsError> {
    let opened = ask(client, session, &open.cred, Reply::open, |c| {
        c.put(&open.handle).once().open(
            client.open_owner(&open.owner.to_be_bytes()),
            open.access(),
            &Create::No,
            claim,
        );
    });
    match opened.await? {
        Ok(opened) => {
            open.renewed(opened.stateid);
            match claim {
                Claim::Previous => reclaim_locks(client, session, open).await?,
                Claim::Handle | Claim::Name(_) => open.lose_locks(),
            }
        }
        Err(NfsError::Status(
            Op::Open,
            Status::NO_GRACE
            | Status::RECLAIM_BAD
            | Status::RECLAIM_CONFLICT
            | Status::NOTSUPP
            | Status::BAD_STATEID,
        )) if matches!(claim, Claim::Previous) => return Ok(false),
        Err(NfsError::Status(Op::Sequence, status)) => {
            return Err(NfsError::Status(Op::Sequence, status));
        }
        Err(error) => {
            tracing::debug!("an open file is lost: {error}");
            OPENS_LOST.happened();
            open.lose();
            open.lose_locks();
        }
    }
    Ok(true)
}

/// Locks again what was locked before the restart of the server. What it does
/// not give back is lost.
async fn reclaim_locks(
    client: &Arc<Client>,
    session: &Arc<Session>,
    open: &OpenState,
) -> Result<(), NfsError> {
    for lock in open.lock_states() {
        for (span, kind) in lock.restart().iter() {
            let kind = match kind {
                LockKind::Read => LockType::Read,
                LockKind::Write => LockType::Write,
            };
            let locked = ask(client, session, &open.cred, Reply::locked, |c| {
                let range = (span.start, span.length());
                c.put(&open.handle)
                    .once()
                    .lock(kind, true, range, client.locker(&lock));
            });
            match locked.await? {
                Ok(Ok(stateid)) => lock.reclaimed(stateid),
                Err(error @ NfsError::Status(Op::Sequence, _)) => return Err(error),
                refused => {
                    tracing::debug!(?refused, "a file lock could not be reclaimed");
                    // Part of it may be ours again; nobody is to wait for that.
                    give_up(client, session, &lock).await?;
                    lock.lose();
                    break;
                }
            }
        }
        lock.proved();
    }
    Ok(())
}

async fn give_up(
    client: &Arc<Client>,
    session: &Arc<Session>,
    lock: &LockState,
) -> Result<(), NfsError> {
    let Some(stateid) = lock.stateid() else {
        return Ok(());
    };
    client
        .fore
        .call_on(session, &lock.open.cred, |c| {
            let all = (Span::ALL.start, Span::ALL.length());
            c.put(&lock.open.handle)
                .once()
                .unlock(stateid.newest(), all);
        })
        .await
        .map(|_| ())
}
