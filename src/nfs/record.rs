//! What the log has of a client but for its opens and locks.

use std::sync::atomic::Ordering;

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::proto::types::SessionId;
use super::server::FileSystem;
use super::session::establish::{ClientId, Identity};
use crate::wal::Table;

/// The record of [`Table::Client`].
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClientRecord {
    pub(super) identity: Identity,
    pub(super) client_id: ClientId,
    pub(super) sessions: Vec<SessionId>,
    pub(super) reclaimed: u64,
    pub(super) must_reclaim: bool,
    pub(super) lease: u32,
    pub(super) fs: Option<FileSystem>,
}

impl Client {
    /// Something has changed of what [`Table::Client`] tells, and nothing that relies on
    /// it was sent yet.
    pub(super) fn record(&self) {
        if !self.wal().is_on() {
            return;
        }
        let _newest = self.recorded.lock();
        self.wal().put(Table::Client, 0, &self.known());
    }

    /// What there is to record of it now.
    pub(super) fn known(&self) -> ClientRecord {
        ClientRecord {
            identity: self.config().identity.clone(),
            client_id: self.client_id.lock().clone(),
            sessions: self.sessions.all(),
            reclaimed: self.reclaimed.load(Ordering::Relaxed),
            must_reclaim: self.must_reclaim.load(Ordering::Relaxed),
            lease: *self.fore.lease.borrow(),
            fs: self.fs.get().cloned(),
        }
    }
}
