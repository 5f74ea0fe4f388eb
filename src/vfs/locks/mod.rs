//! File locks as this host keeps account of them: who has locks on one file ([`locktable`]),
//! and who waits for which, over all files ([`lockline`]). Plain state machines, which know
//! no file and send nothing. The table is owned by its file's lock; the line has one of its own,
//! which is taken before a file's.

pub(in crate::vfs) mod lockline;
pub(in crate::vfs) mod locktable;
