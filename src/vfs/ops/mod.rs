//! The operations: what the layer above calls, a file each family.
//!
//! This is the one `impl Vfs`. An operation finds the inode or handle, waits for what it must
//! (`files::barrier`), sends its request, and has what came of it taken in. It calls down, into
//! [`dirs`](crate::vfs::dirs), [`files`](crate::vfs::files) and
//! [`namespace`](crate::vfs::namespace), which own the state; and nothing that another
//! operation's file holds.

mod access;
mod attr;
mod close;
mod export;
mod kernel;
mod lock;
mod lookup;
mod make;
mod open;
mod read;
mod readdir;
mod rename;
mod statfs;
mod unlink;
mod warm;
mod write;
