//! One method a request: the compound it sends, in the order the RFC runs it,
//! the redo rule if its first reply was lost, and its result.
//!
//! Each is one round trip unless its comment says otherwise. What follows
//! [`Compound::then`](super::proto::compound::Compound::then) in a compound is
//! attributes that save a later request; a failure there fails nothing.
//!
//! Redo rules: a compound may have run although its reply is lost, together with the
//! session and its reply cache (the server has restarted). It is then sent anew, and
//! what the server says of it counts: "exists already" (mkdir, link, symlink) or "is not
//! there" (unlink, rmdir, rename) may be our own first sending or another host, which
//! cannot be told, so the caller is told what is certain: that this name was not made,
//! or not taken, by this call as far as is known. As the kernel's client does. Two things
//! can be told, and are: whose file it is that an exclusive create finds, by a mark that
//! only we can have set ([`Reply::redone`](super::proto::reply::Reply::redone)); and
//! where hidden names lead, which nobody else uses.

mod create;
mod data;
mod features;
mod listing;
mod locks;
mod made_before;
mod name_changes;
mod names;
mod objects;
mod opens;
mod orphans;
mod read_several;
mod root;
mod several_setattr;
mod several_writes;
mod tree;

pub use super::server::FileSystem;
pub use create::{HowToOpen, OpenedFile};
pub use data::{Epilogue, IN_FRONT, Written, WrittenSeveral};
pub use features::Feature;
pub use locks::Locked;
pub use made_before::Mark;
pub use name_changes::{
    AROUND_CHANGES, FileMade, LARGEST_CHANGE, NameChange, NameChangeKind, NameChanged,
    NamesChanged, NewFile, Sending,
};
pub use names::{DirChange, Found, Made, PrePost, Renamed};
pub use opens::{BehindOpen, FoundOpen, InlineRead, OpenRequest, OpenedHandle};
pub use read_several::WholeRead;
pub use tree::ListFrom;
