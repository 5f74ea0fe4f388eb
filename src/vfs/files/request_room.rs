//! What of the changes that wait in a directory (`writeback`) a request has room for.
//!
//! Data of a second file may begin in the first page of the request only ([`IN_FRONT`]), until the
//! server was found to write such rightly. That is found out once requests are the smaller for it:
//! with the changes of a directory that is this host's alone, before the next of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::time::Instant;

use super::Files;
use super::accepted_name::{Accepted, What};
use super::send_names::ALONG;
use crate::nfs::calls::{AROUND_CHANGES, IN_FRONT};
use crate::vfs::inode::Inode;

/// After so many requests that could have taken more it is worth one to find out.
const WORTH: usize = 4;

/// What a request has room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Operations of changes.
    pub(super) operations: usize,
    /// Objects of which attributes are set.
    pub(super) objects: usize,
    /// Bytes that may stand in front of data that are not the first.
    pub(super) in_front: usize,
    /// Bytes of all changes; the first goes in any case.
    pub(super) bytes: usize,
}

impl Room {
    /// The most data that a change may bring which stands behind so many others, of so many bytes.
    pub(super) fn for_data_behind(self, changes: usize, bytes: usize) -> usize {
        match changes {
            0 => ALONG,
            _ if bytes > self.in_front => 0,
            _ => self.bytes.saturating_sub(bytes).min(ALONG),
        }
    }
}

/// Whether it is time to find out whether requests may be larger.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Requests that could have taken more.
    cut: AtomicUsize,
    /// Somebody is finding out.
    is_tried: AtomicBool,
}

impl Growth {
    /// A request goes that could have taken more.
    pub(super) fn was_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    /// True for one caller, who says when he has [`tried`](Self::tried).
    fn begins(&self) -> bool {
        self.cut.load(Ordering::Relaxed) >= WORTH && !self.is_tried.swap(true, Ordering::Relaxed)
    }

    fn tried(&self) {
        self.cut.store(0, Ordering::Relaxed);
        self.is_tried.store(false, Ordering::Relaxed);
    }
}

impl Files {
    /// What a request of this session has room for.
    pub(super) fn room(&self) -> Room {
        let operations = self.client.session_info().max_ops as usize;
        Room {
            operations: operations.saturating_sub(AROUND_CHANGES),
            objects: self.client.sets_at_once(),
            in_front: match self.client.takes_several_writes() {
                Some(true) => usize::MAX,
                Some(false) | None => IN_FRONT,
            },
            bytes: self.client.wsize() as usize,
        }
    }

    /// Finds out whether requests may be larger, if that is worth it by now and not known. `first` is
    /// the change that goes next.
    pub(super) async fn try_larger_requests(&self, dir: &Arc<Inode>, first: &Accepted) {
        let makes_files = matches!(first.what, What::File(_));
        if !makes_files
            || self.client.takes_several_writes().is_some()
            || !self.names.growth.begins()
        {
            return;
        }
        let changing = self.namespace.changing(dir);
        let sent = Instant::now();
        let moved = self
            .client
            .try_several_writes(&first.cred, &dir.handle)
            .await;
        if let Some(moved) = moved {
            self.namespace.answered(dir, (0, 0), Some((&moved, sent)));
        }
        drop(changing);
        self.names.growth.tried();
    }
}
