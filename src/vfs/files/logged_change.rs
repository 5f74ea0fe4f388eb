//! A change of a name that was answered and that the server does not know (`writeback`), as the log has
//! it ([`logged_names`](super::logged_names)): what is to be asked of the server, with objects by their numbers and
//! handles.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::accepted_name::{Accepted, What};
use crate::nfs::calls::Mark;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::table::logged::LoggedObject;
use crate::vfs::types::{SetAttr, Timestamp};

/// A change that was accepted. `O` is how an object is known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LoggedChange<O> {
    pub(super) dir: O,
    pub(super) cred: Credential,
    pub(super) name: Bytes,
    pub(super) what: LoggedWhat<O>,
    /// It may have run.
    pub(super) sent: bool,
    /// The kernel's request that asked for it; 0: none did.
    pub(super) request: u64,
}

/// See [`What`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum LoggedWhat<O> {
    File(LoggedFile<O>),
    Directory {
        made: Made<O>,
        mode: u32,
    },
    Symlink {
        made: Made<O>,
        text: Bytes,
    },
    Remove {
        victim: O,
    },
    Rename {
        to: Bytes,
        moved: O,
        replaced: Option<O>,
    },
    Attributes(SetAttr),
    AttributesOf(O, SetAttr),
}

/// An object that is to be made, and what is shown as its times.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Made<O> {
    pub(super) object: O,
    pub(super) atime: Timestamp,
    pub(super) mtime: Timestamp,
    pub(super) ctime: Timestamp,
}

/// See [`PromisedFile`](super::accepted_name::PromisedFile).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct LoggedFile<O> {
    pub(super) made: Made<O>,
    /// The owner of its open.
    pub(super) open: u64,
    pub(super) access: u32,
    pub(super) mode: u32,
    pub(super) verifier: [u8; 8],
    pub(super) marks: Vec<Mark>,
}

impl<O> Made<O> {
    fn known_as<P>(self, of: &mut impl FnMut(O) -> P) -> Made<P> {
        Made {
            object: of(self.object),
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
        }
    }
}

impl Made<LoggedObject> {
    fn of(object: &Inode) -> Self {
        let attr = object.attr.lock();
        let stat = attr.stat();
        Self {
            object: LoggedObject::of(object),
            atime: stat.atime,
            mtime: stat.mtime,
            ctime: stat.ctime,
        }
    }
}

impl<O> LoggedChange<O> {
    pub(super) fn known_as<P>(self, mut of: impl FnMut(O) -> P) -> LoggedChange<P> {
        LoggedChange {
            what: match self.what {
                LoggedWhat::File(file) => LoggedWhat::File(LoggedFile {
                    made: file.made.known_as(&mut of),
                    open: file.open,
                    access: file.access,
                    mode: file.mode,
                    verifier: file.verifier,
                    marks: file.marks,
                }),
                LoggedWhat::Directory { made, mode } => LoggedWhat::Directory {
                    made: made.known_as(&mut of),
                    mode,
                },
                LoggedWhat::Symlink { made, text } => LoggedWhat::Symlink {
                    made: made.known_as(&mut of),
                    text,
                },
                LoggedWhat::Remove { victim } => LoggedWhat::Remove { victim: of(victim) },
                LoggedWhat::Rename {
                    to,
                    moved,
                    replaced,
                } => LoggedWhat::Rename {
                    to,
                    moved: of(moved),
                    replaced: replaced.map(&mut of),
                },
                LoggedWhat::Attributes(set) => LoggedWhat::Attributes(set),
                LoggedWhat::AttributesOf(object, set) => LoggedWhat::AttributesOf(of(object), set),
            },
            dir: of(self.dir),
            cred: self.cred,
            name: self.name,
            sent: self.sent,
            request: self.request,
        }
    }

    /// What it makes.
    pub(super) fn makes(&self) -> Option<&O> {
        match &self.what {
            LoggedWhat::File(file) => Some(&file.made.object),
            LoggedWhat::Directory { made, .. } | LoggedWhat::Symlink { made, .. } => {
                Some(&made.object)
            }
            _ => None,
        }
    }
}

impl LoggedChange<LoggedObject> {
    /// As it is now; `sent`: it is about to be, and leaves this of a new file.
    pub(super) fn of(accepted: &Accepted, sent: Option<Option<Mark>>) -> Self {
        Self {
            dir: LoggedObject::of(&accepted.dir),
            cred: (*accepted.cred).clone(),
            name: Bytes::copy_from_slice(&accepted.name),
            what: LoggedWhat::of(&accepted.what, sent.flatten()),
            sent: accepted.again || sent.is_some(),
            request: accepted.request,
        }
    }
}

impl LoggedWhat<LoggedObject> {
    fn of(what: &What, mark: Option<Mark>) -> Self {
        match what {
            What::File(file) => Self::File(LoggedFile {
                made: Made::of(&file.inode),
                open: file.open.owner(),
                access: file.access,
                mode: file.mode,
                verifier: file.verifier,
                marks: file.marks.iter().copied().chain(mark).collect(),
            }),
            What::Directory { inode, mode, .. } => Self::Directory {
                made: Made::of(inode),
                mode: *mode,
            },
            What::Symlink { inode, text, .. } => Self::Symlink {
                made: Made::of(inode),
                text: text.clone(),
            },
            What::Remove { victim } => Self::Remove {
                victim: LoggedObject::of(victim),
            },
            What::Rename {
                to,
                moved,
                replaced,
            } => Self::Rename {
                to: Bytes::copy_from_slice(to),
                moved: LoggedObject::of(moved),
                replaced: replaced.as_deref().map(LoggedObject::of),
            },
            What::Attributes(set) => Self::Attributes(set.clone()),
            What::AttributesOf(object, set) => {
                Self::AttributesOf(LoggedObject::of(object), set.clone())
            }
        }
    }
}
