//! A client whose process was killed, and what another one makes of its records.
//!
//! The records are those of [`Table::Client`], [`Table::Numbers`], [`Table::Open`],
//! [`Table::Close`] and [`Table::Lock`]. Each is put where what it tells of changes: the client's
//! by [`Client::record`], the others by the opens and locks themselves. From them comes the same
//! [`ClientState`] as from a client that hands over, and it is restored in the same way.
//!
//! What differs is that requests were under way. An open without a stateid may be open at the
//! server, a lock may be locked there, or not be any more. Whoever sent such a request for the
//! kernel sends it again, in the name of the same owner, and is answered as if it came once (RFC 8881 §9.7,
//! §18.10.3). What nobody asks for again stays at the server until its file
//! is closed; [`Client::settle`] would end it, which the take-over does not call yet.

use std::collections::HashSet;
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::calls::Locked;
use super::client::Client;
use super::close;
use super::handover::{ClientState, Layout, LockRecord, OpenRecord, TakenOver};
use super::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use super::proto::reply::NfsError;
use super::record::ClientRecord;
use super::state::locks::LockState;
use super::state::ranges::Span;
use super::state::{OWNERS, OpenState};
use crate::wal::{Numbers, Survived, Table, Unreadable};

impl Client {
    /// Ends what a process that was killed had under way, after [`Client::take_over`]: what
    /// it was unlocking is unlocked, and what nobody has taken out of `left` is unlocked and
    /// closed. `taken` are the locks that somebody has. To be called when the log of
    /// this client is the one that counts: before that, another process may begin from the log that was
    /// read, and not know of what is sent here.
    pub async fn settle(self: &Arc<Self>, taken: &[Arc<LockState>], left: TakenOver) {
        for lock in taken {
            if let Err(error) = self.end_unlock(lock).await {
                tracing::warn!("unlocking what another process has begun to unlock: {error}");
            }
        }
        for lock in left.locks.into_values() {
            if let Err(error) = self.end_lock(&lock).await {
                tracing::warn!("unlocking what nobody uses any more: {error}");
            }
        }
        for open in left.opens.into_values() {
            self.end_open(&open).await;
        }
    }

    async fn end_unlock(self: &Arc<Self>, lock: &Arc<LockState>) -> Result<(), NfsError> {
        if lock.leaving().is_none() {
            return Ok(());
        }
        let turn = lock.turn().await;
        // Its owner may have been here in between.
        match lock.leaving() {
            Some(span) => close::unlock(&self.fore, &turn, span).await,
            None => Ok(()),
        }
    }

    /// Unlocks and frees what nobody uses. A LOCK of unknown fate is sent again, for its stateid:
    /// the owner that has the lock is granted it, and if it is another's, nothing is locked.
    async fn end_lock(self: &Arc<Self>, lock: &Arc<LockState>) -> Result<(), NfsError> {
        let turn = lock.turn().await;
        if let (None, Some((span, kind))) = (lock.stateid(), lock.asked())
            && let Locked::Denied(_) = self.lock(&turn, span, kind, false).await?
        {
            return Ok(());
        }
        close::unlock(&self.fore, &turn, Span::ALL).await?;
        self.free_lock(lock).await
    }

    /// Closes what nobody uses.
    async fn end_open(self: &Arc<Self>, open: &Arc<OpenState>) {
        if open.exact().is_none() && !open.is_dead() {
            // What it was to allow is not known. One of these the server has granted, if any.
            for access in [ACCESS_READ, ACCESS_WRITE] {
                match self.open_again(open, access).await {
                    Ok(()) => break,
                    Err(error) => tracing::debug!("an open that nobody uses: {error}"),
                }
            }
        }
        self.close_soon(open);
    }
}

impl ClientState {
    /// What a client that was killed had.
    ///
    /// # Errors
    /// The log has no such records.
    pub fn survived(survived: &Survived) -> Result<Self, Unreadable> {
        let client: ClientRecord = survived.only(Table::Client)?;
        let closes: Vec<OpenRecord> = all(survived, Table::Close)?;
        let closing: HashSet<u64> = closes.iter().map(|close| close.owner).collect();
        let mut opens: Vec<OpenRecord> = all(survived, Table::Open)?;
        // The record is in both tables if the process was killed when it moved.
        opens.retain(|open| !closing.contains(&open.owner));
        let known: HashSet<u64> = opens.iter().map(|open| open.owner).chain(closing).collect();
        let mut locks: Vec<LockRecord> = all(survived, Table::Lock)?;
        // A lock whose open is closed went with that.
        locks.retain(|lock| known.contains(&lock.open));
        Ok(Self {
            layout: Layout,
            identity: client.identity,
            client_id: client.client_id,
            sessions: client.sessions,
            reclaimed: client.reclaimed,
            must_reclaim: client.must_reclaim,
            lease: client.lease,
            fs: client.fs,
            next_owner: Numbers::survived(survived, OWNERS, 0)?,
            opens,
            closes,
            locks,
        })
    }
}

/// The records of a table.
fn all<T: DeserializeOwned>(survived: &Survived, table: Table) -> Result<Vec<T>, Unreadable> {
    let records = survived.table(table)?.into_iter();
    Ok(records.map(|(_, record)| record).collect())
}
