//! open(2) of a file that the server has yet to make (`writeback`): rsync opens what it has just
//! written to set its mode, git to read it. The server is told with the request that makes the
//! file, which then asks for what both opens allow, and which closes it if both are closed by then.

use std::sync::Arc;

use super::Files;
use super::accepted_name::{PromisedFile, What};
use crate::nfs::proto::ops::{ACCESS_READ, ACCESS_WRITE};
use crate::rpc::auth::Credential;
use crate::vfs::files::handle::access_of;
use crate::vfs::inode::Inode;
use crate::vfs::types::Opened;

impl Files {
    /// A handle on a promised file. `None`: the server has the file, is about to, or is to say
    /// whether it may be opened so.
    pub(in crate::vfs) fn open_promised(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
        flags: i32,
    ) -> Option<Opened> {
        if !inode.handle.is_undecided() || flags & (libc::O_TRUNC | libc::O_DIRECT) != 0 {
            return None;
        }
        let dir = inode.place()?.dir.ino;
        let access = access_of(flags);
        let stat = inode.shown_stat();
        if stat.uid != cred.uid || !allows(stat.perm, access) {
            return None;
        }
        let open = {
            let mut queue = self.names.queue.lock();
            let queued = queue.find_waiting(dir, |accepted| accepted.makes(inode))?;
            let What::File(file) = &mut queued.change.what else {
                return None;
            };
            let open = self.joins(file, cred, access)?;
            self.log_change(queued.number, &queued.change);
            open
        };
        Some(self.opened(inode, open, (access, flags), None))
    }

    /// One more user of the open that the file is to be made by.
    fn joins(
        &self,
        file: &mut PromisedFile,
        cred: &Arc<Credential>,
        access: u32,
    ) -> Option<Arc<crate::nfs::state::OpenState>> {
        if *file.open.cred != **cred {
            return None;
        }
        let mut inner = self.file_state(&file.inode).lock();
        let joined = inner.use_again(&file.open);
        file.access |= access;
        joined.then(|| Arc::clone(&file.open))
    }
}

/// What the owner of a file is allowed by its mode.
fn allows(perm: u16, access: u32) -> bool {
    let asked = [(ACCESS_READ, 0o400), (ACCESS_WRITE, 0o200)];
    let mut asked = asked.into_iter().filter(|(bit, _)| access & bit != 0);
    asked.all(|(_, needed)| perm & needed != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_is_allowed_what_the_mode_says() {
        assert!(allows(0o600, ACCESS_READ | ACCESS_WRITE));
        assert!(allows(0o400, ACCESS_READ) && !allows(0o400, ACCESS_WRITE));
        assert!(!allows(0o277, ACCESS_READ) && !allows(0, ACCESS_WRITE));
    }
}
