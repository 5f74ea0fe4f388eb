//! One method a request: the compound it sends, in the order the RFC runs it,
//! the redo rule if its first reply was lost, and its result.
//!
//! Each is one round trip unless its comment says otherwise. What follows
//! [`Compound::then`](super::proto::compound::Compound::then) in a compound is
//! attributes that save a later request; a failure there fails nothing.
//!
//! Redo rules: a compound may have run although its reply is lost, together
//! with the session and its reply cache. It is then sent anew, and only such a
//! second sending ([`Reply::redone`](super::proto::reply::Reply::redone)) may
//! take "exists already" or "is not there" for its own doing.

mod data;
mod features;
mod listing;
mod locks;
mod names;
mod objects;
mod opens;
mod root;
mod tree;

pub use data::{Behind, Written, WrittenSeveral};
pub use features::Feature;
pub use locks::Locked;
pub use names::{DirMoved, Found, Made, Moved};
pub(super) use opens::Lacks;
pub use opens::{Along, HowToOpen, OpenedFile, OpenedHandle};
pub use root::FileSystem;
pub use tree::ListFrom;
