//! The kernel's pages of files, for hosts that keep them over an open (`nocto`): all of a file
//! that was read, until the file system says that it is old.

use std::collections::HashMap;

use efs_fuse::vfs::types::{Ino, KernelCache};
use parking_lot::Mutex;

#[derive(Default)]
struct OfFile {
    /// What is read meanwhile is of another state than this.
    state: u64,
    data: Option<Vec<u8>>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Pages(Mutex<HashMap<Ino, OfFile>>);

impl Pages {
    /// The file is, or is being, changed by this host, or is not to be believed any more.
    pub(super) fn forget(&self, ino: Ino) {
        let mut files = self.0.lock();
        let file = files.entry(ino).or_default();
        file.state += 1;
        file.data = None;
    }

    /// What there is of the file, and the state that what is read now is of.
    pub(super) fn get(&self, ino: Ino) -> (u64, Option<Vec<u8>>) {
        let mut files = self.0.lock();
        let file = files.entry(ino).or_default();
        (file.state, file.data.clone())
    }

    /// The file was read when it was in this state.
    pub(super) fn fill(&self, ino: Ino, state: u64, data: &[u8]) {
        let mut files = self.0.lock();
        let file = files.entry(ino).or_default();
        if file.state == state {
            file.data = Some(data.to_owned());
        }
    }
}

impl KernelCache for Pages {
    fn inval_inode(&self, ino: Ino) {
        self.forget(ino);
    }

    fn inval_inode_grown(&self, ino: Ino, _size: u64) {
        self.forget(ino);
    }

    fn inval_inode_now(&self, ino: Ino) {
        self.forget(ino);
    }

    fn is_telling(&self, _ino: Ino) -> bool {
        false
    }

    fn settle(&self, _ino: Ino) {}

    fn inval_attr(&self, _ino: Ino) {}

    fn inval_entry(&self, _parent: Ino, _name: &[u8]) {}

    fn backlog(&self) -> usize {
        0
    }
}
