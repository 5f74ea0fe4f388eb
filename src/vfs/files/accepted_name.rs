//! A change of a name that was answered before the server knows of it (`writeback`), and which of
//! those that wait in a directory go in one request.
//!
//! A request has [room](Room) for so many operations, and for the data of a file only where they may
//! begin. What has to be there before a change is sent is there, or made by the
//! same request with all its data.
//!
//! A request whose reply is lost with its session may run twice, from its first change on. So no two
//! changes of it are about one [name](Touched): the second run finds each done, or does it, and never to
//! what has come to a name since. `rm x; mv y x` would remove what is x by then.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use super::request_room::Room;
use super::send_names::ALONG;
use crate::nfs::calls::{Mark, NameChangeKind};
use crate::nfs::proto::types::Promise;
use crate::nfs::state::OpenState;
use crate::rpc::auth::Credential;
use crate::vfs::inode::Inode;
use crate::vfs::inode::dentry_cache::Name;
use crate::vfs::inode::name_hash::hash_name;
use crate::vfs::types::{FileKind, SetAttr};
use crate::vfs::writeback::name_queue::{Fit, Queued, Ripe};

/// A change of a name that was answered and that the server has not.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) dir: Arc<Inode>,
    pub(super) cred: Arc<Credential>,
    pub(super) name: Name,
    pub(super) what: What,
    /// An earlier sending may have done it.
    pub(super) again: bool,
    /// The kernel's request that asked for it, where that is on record; 0: none is.
    pub(super) request: u64,
}

/// What is done with the name.
#[derive(Debug)]
pub(super) enum What {
    File(PromisedFile),
    Directory {
        inode: Arc<Inode>,
        mode: u32,
        promise: Promise,
    },
    Symlink {
        inode: Arc<Inode>,
        text: Bytes,
        promise: Promise,
    },
    Remove {
        victim: Arc<Inode>,
    },
    Rename {
        to: Name,
        moved: Arc<Inode>,
        replaced: Option<Arc<Inode>>,
    },
    /// Of the directory itself; the name is none.
    Attributes(SetAttr),
    /// Of what has the name, a file or a symbolic link.
    AttributesOf(Arc<Inode>, SetAttr),
}

/// A file that the server has yet to make.
#[derive(Debug)]
pub(super) struct PromisedFile {
    pub(super) inode: Arc<Inode>,
    pub(super) open: Arc<OpenState>,
    pub(super) access: u32,
    pub(super) mode: u32,
    pub(super) verifier: [u8; 8],
    /// What earlier sendings that may have run have made of it.
    pub(super) marks: SmallVec<[Mark; 1]>,
    pub(super) promise: Promise,
}

impl Accepted {
    /// Operations that it takes at the most.
    fn operations(&self) -> usize {
        let kind = match &self.what {
            What::File(_) => NameChangeKind::File,
            What::Directory { .. } | What::Symlink { .. } => NameChangeKind::Object,
            What::Rename { .. } => NameChangeKind::Rename,
            What::Remove { .. } | What::Attributes(_) => NameChangeKind::Single,
            // In a request of its own kind.
            What::AttributesOf(..) => return 0,
        };
        kind.most_operations()
    }

    /// Bytes of a request that it takes at the most, with so many of them data.
    pub(super) fn bytes(&self, data: usize) -> usize {
        // A longest name, the handle of the directory, attributes.
        const EACH: usize = 700;
        EACH + match &self.what {
            What::Symlink { text, .. } => text.len(),
            What::Rename { to, .. } => to.len(),
            _ => data,
        }
    }

    /// As many as it would take now.
    fn bytes_now(&self) -> usize {
        let file = match &self.what {
            What::File(file) => file.inode.opened(),
            _ => None,
        };
        let data = file.map_or(0, |file| file.lock().writeback().bytes());
        self.bytes(data.min(ALONG))
    }

    /// It brings data along, which may not begin anywhere ([`Room::in_front`]).
    fn brings_data(&self) -> bool {
        matches!(self.what, What::File(_))
    }

    /// It is the last of its request: should that run twice, nothing that came after it in the
    /// directory has moved the times that it sets.
    fn is_last(&self) -> bool {
        matches!(self.what, What::Attributes(_))
    }

    /// So many links more the directory has with it.
    pub(super) fn links(&self) -> i32 {
        match &self.what {
            What::Directory { .. } => 1,
            What::Remove { victim } => -i32::from(victim.kind == FileKind::Directory),
            _ => 0,
        }
    }

    /// The objects that must be there before the server is told.
    pub(super) fn needs(&self) -> impl Iterator<Item = &Arc<Inode>> {
        let (first, second) = match &self.what {
            What::File(_)
            | What::Directory { .. }
            | What::Symlink { .. }
            | What::Attributes(_)
            | What::AttributesOf(..) => (None, None),
            What::Remove { victim } => (Some(victim), None),
            What::Rename {
                moved, replaced, ..
            } => (Some(moved), replaced.as_ref()),
        };
        first.into_iter().chain(second)
    }

    /// A sending of it may have run; of a new file that has left this.
    pub(super) fn may_have_run(&mut self, mark: Option<Mark>) {
        self.again = true;
        if let (What::File(file), Some(mark)) = (&mut self.what, mark)
            && !file.marks.contains(&mark)
        {
            file.marks.push(mark);
        }
    }

    /// It sets attributes of a file, and goes with others that do.
    pub(super) fn is_of_file(&self) -> bool {
        matches!(self.what, What::AttributesOf(..))
    }

    /// What it sets of this object, if it does.
    pub(super) fn set_of(&mut self, object: &Arc<Inode>) -> Option<&mut SetAttr> {
        match &mut self.what {
            What::Attributes(set) if Arc::ptr_eq(&self.dir, object) => Some(set),
            What::AttributesOf(file, set) if Arc::ptr_eq(file, object) => Some(set),
            _ => None,
        }
    }

    /// Others are told something by it: what it makes or sets is there.
    pub(super) fn tells(&self) -> bool {
        !matches!(self.what, What::Remove { .. })
    }

    /// It makes this file.
    pub(super) fn makes(&self, inode: &Arc<Inode>) -> bool {
        match &self.what {
            What::File(file) => Arc::ptr_eq(&file.inode, inode),
            _ => false,
        }
    }

    /// It gives another name, which nothing has, to a file that one of these makes by the first.
    pub(super) fn is_rename_of_one_in<'a>(
        &self,
        mut in_front: impl Iterator<Item = &'a Self>,
    ) -> bool {
        match &self.what {
            What::Rename {
                moved,
                replaced: None,
                ..
            } => in_front.any(|front| front.makes(moved) && front.name == self.name),
            _ => false,
        }
    }

    /// The names that it is about.
    fn names(&self) -> impl Iterator<Item = &Name> {
        let (name, other) = match &self.what {
            What::Attributes(_) | What::AttributesOf(..) => (None, None),
            What::Rename { to, .. } => (Some(&self.name), Some(to)),
            _ => (Some(&self.name), None),
        };
        name.into_iter().chain(other)
    }

    /// More may come that is to go along with it.
    fn grows(&self) -> bool {
        match &self.what {
            What::File(file) => {
                let state = file.inode.opened();
                state.is_some_and(|state| {
                    let state = state.lock();
                    !state.closes_along(&file.open) && state.writeback().bytes() <= ALONG
                })
            }
            _ => false,
        }
    }
}

/// The names that the changes of a request are about, by their hashes: two that are alike are one name.
#[derive(Default)]
struct Touched(SmallVec<[u64; 32]>);

impl Touched {
    fn has(&self, name: &[u8]) -> bool {
        self.0.contains(&hash_name(name))
    }

    /// None of the names of `change` is among them, but for that of a new file which it renames: where
    /// both have run, they make the file once more, and have it replace the first.
    fn lets(&self, change: &Accepted, made_in_front: bool) -> bool {
        match &change.what {
            What::Rename { to, .. } if made_in_front => !self.has(to),
            _ => !change.names().any(|name| self.has(name)),
        }
    }

    fn add(&mut self, change: &Accepted) {
        self.0.extend(change.names().map(|name| hash_name(name)));
    }
}

/// How many changes that wait in a directory go in one request; and whether more would, if data might
/// begin anywhere in it.
pub(super) fn fits(waiting: &VecDeque<Queued<Accepted>>, ripe: Ripe, room: Room) -> (Fit, bool) {
    let none = Fit {
        count: 0,
        is_full: false,
    };
    let Some(first) = waiting.front() else {
        return (none, false);
    };
    if first.change.dir.handle.is_undecided() {
        return (none, false);
    }
    if first.change.is_of_file() {
        return (fits_of_files(waiting, room), false);
    }
    let (mut operations, mut bytes, mut last) = (0, 0, 0);
    let mut touched = Touched::default();
    for (count, queued) in waiting.iter().enumerate() {
        let change = &queued.change;
        if !ripe.is(queued) && change.grows() {
            let is_full = false;
            return (Fit { count, is_full }, false);
        }
        let starts = bytes;
        last = change.operations();
        operations += last;
        bytes += change.bytes_now();
        // What stands in front of it in the same request is not made yet, but for a rename of
        // what has all its data by then.
        let mut in_front = waiting.iter().take(count).map(|front| &front.change);
        let is_behind_last = in_front.clone().next_back().is_some_and(Accepted::is_last);
        let renames_new = count > 0 && change.is_rename_of_one_in(&mut in_front);
        let is_there =
            count == 0 || renames_new || !change.needs().any(|inode| inode.handle.is_undecided());
        let goes = *change.cred == *first.change.cred
            && !change.is_of_file()
            && is_there
            && touched.lets(change, renames_new)
            && !is_behind_last
            && (count == 0 || operations <= room.operations && bytes <= room.bytes);
        let is_cut = goes && change.brings_data() && starts > room.in_front;
        if !goes || is_cut {
            let is_full = true;
            return (Fit { count, is_full }, is_cut);
        }
        touched.add(change);
    }
    let fit = Fit {
        count: waiting.len(),
        is_full: operations + last > room.operations,
    };
    (fit, false)
}

/// The same where the first sets attributes of a file.
fn fits_of_files(waiting: &VecDeque<Queued<Accepted>>, room: Room) -> Fit {
    let first = waiting.front().map(|queued| &queued.change.cred);
    let alike = waiting
        .iter()
        .take_while(|queued| queued.change.is_of_file() && Some(&queued.change.cred) == first);
    let alike = alike.count();
    Fit {
        count: alike.min(room.objects),
        is_full: alike >= room.objects || alike < waiting.len(),
    }
}
