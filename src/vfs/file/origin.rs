//! Whose open, and on whose behalf, a write is sent.

use std::sync::Arc;

use crate::nfs::state::OpenState;
use crate::rpc::caller::Caller;

/// Whose open a write is sent with.
#[derive(Clone, Debug)]
pub(in crate::vfs) struct Origin {
    pub(in crate::vfs) open: Arc<OpenState>,
    /// The open's fence when the write was accepted: see [`OpenState::fence`].
    pub(in crate::vfs) fence: u32,
    /// Of a synchronous write: who waits for it. What was answered is sent whoever
    /// waits.
    pub(in crate::vfs) caller: Option<Arc<Caller>>,
}

impl Origin {
    /// A write that is accepted now, with this open; synchronous if somebody waits for it.
    pub(in crate::vfs) fn new(open: &Arc<OpenState>, caller: Option<Arc<Caller>>) -> Self {
        Self {
            open: Arc::clone(open),
            fence: open.fence(),
            caller,
        }
    }
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        let alike = match (&self.caller, &other.caller) {
            (None, None) => true,
            (Some(caller), Some(other)) => Arc::ptr_eq(caller, other),
            _ => false,
        };
        alike && Arc::ptr_eq(&self.open, &other.open) && self.fence == other.fence
    }
}
