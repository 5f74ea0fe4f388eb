//! What the kernel was told of names and inodes, and is being told.

use std::sync::Arc;
use std::time::Duration;

use crate::vfs::Vfs;
use crate::vfs::namespace::kernel_dentry::DentryState;
use crate::vfs::types::{Ino, KernelCache};

impl Vfs {
    /// Whom to tell that the kernel's caches are old.
    pub fn set_kernel(&self, kernel: Arc<dyn KernelCache>) {
        self.namespace.set_kernel(kernel);
    }

    /// The kernel is about to be told that this name leads to `ino`, for so long.
    pub fn tells(&self, parent: Ino, name: &[u8], ino: Ino, ttl: Duration) {
        self.namespace.tells(parent, name, ino, ttl);
    }

    /// How the name stands before anybody is asked.
    pub fn dentry_state(&self, parent: Ino, name: &[u8]) -> DentryState {
        self.namespace.dentry_state(parent, name)
    }

    /// Something is queued for the kernel of this file, or being told. What other objects
    /// than files have in the kernel no size makes wrong.
    pub fn is_telling(&self, ino: Ino) -> bool {
        self.namespace.is_telling(ino)
    }

    /// Waits until the kernel was told what is queued for it of a file. Whatever answers with
    /// attributes has read them before this, and answers after it: the kernel drops pages
    /// before it hears of a size that they are too old for.
    pub async fn pages_go_first(&self, ino: Ino) {
        self.namespace.pages_go_first(ino).await;
    }
}
