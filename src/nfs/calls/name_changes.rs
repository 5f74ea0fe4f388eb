//! Changes of one directory's names that were accepted before the server knows of them
//! (`writeback`), several in a compound.
//!
//! They run in their order and stop at the first that fails, so that the directory is at every
//! moment as it was here a while ago. A new file brings along what was done to it since: its
//! data, if they are few, its attributes, its CLOSE. With EFS's sixteen operations a compound
//! takes two such files, three directories, or twelve names that are removed.
//!
//! What an earlier sending has made is known again ([`made_before`](super::made_before)).

use std::sync::Arc;

use bytes::Bytes;

use super::super::client::Client;
use super::super::fore_channel::gate::Past;
use super::super::proto::attrs::{Attributes, CHANGE_ONLY, NewAttributes, NewTime, number as n};
use super::super::proto::compound::Compound;
use super::super::proto::ops::{Claim, Create, Make, Op, PRESERVE_UNLINKED};
use super::super::proto::reply::{NfsError, Reply, WriteResult};
use super::super::proto::status::Status;
use super::super::proto::types::{FileHandle, Stable, StateId};
use super::super::session::slots::Class;
use super::super::state::OpenState;
use super::made_before::Mark;
use super::names::PrePost;
use crate::rpc::auth::Credential;

/// Operations that stand around the changes of a compound: SEQUENCE, PUTFH and GETATTR of the directory in
/// front, GETATTR behind.
pub const AROUND_CHANGES: usize = 4;

/// Operations of the largest change: a file with its data and its close.
pub const LARGEST_CHANGE: usize = NameChangeKind::File.most_operations();

/// A new file, and what was done to it since.
#[derive(Clone, Debug)]
pub struct NewFile<'a> {
    /// The open that it was made by, which the server does not know.
    pub open: &'a Arc<OpenState>,
    /// What that is to allow (OPEN4_SHARE_ACCESS_*).
    pub access: u32,
    /// Permission bits at creation.
    pub mode: u32,
    /// Drawn when it was accepted; by it an earlier sending is known.
    pub verifier: [u8; 8],
    /// All that was written to it, from its beginning; stable when it is answered.
    pub data: &'a [Bytes],
    /// What was set since, times at least if they have been told.
    pub attrs: NewAttributes,
    /// Nobody has it open any more.
    pub closes: bool,
    /// What earlier sendings, which may have run, have left of it if they have run to their end.
    pub earlier: &'a [Mark],
}

/// One change of a name.
#[derive(Clone, Debug)]
pub enum NameChange<'a> {
    /// OPEN that creates.
    File(&'a [u8], NewFile<'a>),
    /// CREATE of a directory with these permission bits.
    Directory(&'a [u8], u32),
    /// CREATE of a symbolic link to the second.
    Symlink(&'a [u8], &'a [u8]),
    /// REMOVE.
    Remove(&'a [u8]),
    /// RENAME within the directory.
    Rename(&'a [u8], &'a [u8]),
    /// SETATTR of the directory itself. None follows it in a compound.
    Attributes(&'a NewAttributes),
}

/// What became of a change.
#[derive(Debug)]
pub enum NameChanged {
    /// A file is there.
    File(FileMade),
    /// A directory or a link is there.
    Object(FileHandle, Option<Attributes>),
    /// The name is gone, or another; the attributes are set.
    Done,
}

/// A new file as the server has it.
#[derive(Debug)]
pub struct FileMade {
    /// Its handle.
    pub handle: FileHandle,
    /// The state of its open.
    stateid: StateId,
    /// What became of the data; `None` if it was not written.
    pub written: Option<Result<WriteResult, NfsError>>,
    /// What became of the attributes.
    pub set: Result<(), NfsError>,
    /// The open is closed.
    pub closed: bool,
    /// See [`OpenedFile::preserves_unlinked`](super::OpenedFile::preserves_unlinked).
    pub preserves_unlinked: bool,
}

impl FileMade {
    /// The state of the open, unless that is closed.
    pub fn stateid_left(&self) -> Option<StateId> {
        (!self.closed).then_some(self.stateid)
    }
}

/// What became of several.
#[derive(Debug)]
pub struct NamesChanged {
    /// Of each that was executed, the last of which may have failed. None of those behind it was.
    pub each: Vec<Result<NameChanged, NfsError>>,
    /// How the directory moved by all of them.
    pub dir: PrePost,
    /// An earlier sending may have done them: also those that were not executed now.
    pub redone: bool,
}

/// What a change costs, by its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameChangeKind {
    /// OPEN, GETFH, WRITE, SETATTR, CLOSE.
    File,
    /// CREATE, GETFH, GETATTR: a directory, or a symbolic link.
    Object,
    /// SAVEFH, RENAME.
    Rename,
    /// REMOVE, or SETATTR of the directory.
    Single,
}

/// How changes are sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sending {
    /// An earlier sending may have done them.
    pub again: bool,
    /// Their data begin where only a server [writes them rightly](Client::takes_several_writes) that was
    /// found to.
    pub anywhere: bool,
}

impl NameChangeKind {
    /// The directory is the current object behind it still.
    const fn stays(self) -> bool {
        matches!(self, Self::Rename | Self::Single)
    }

    /// Operations that it takes at the most, with the PUTFH of the directory that the next one needs.
    pub const fn most_operations(self) -> usize {
        match self {
            Self::File => 6,
            Self::Object => 4,
            Self::Rename => 2,
            Self::Single => 1,
        }
    }
}

impl NameChange<'_> {
    fn kind(&self) -> NameChangeKind {
        match self {
            Self::File(..) => NameChangeKind::File,
            Self::Directory(..) | Self::Symlink(..) => NameChangeKind::Object,
            Self::Rename(..) => NameChangeKind::Rename,
            Self::Remove(_) | Self::Attributes(_) => NameChangeKind::Single,
        }
    }

    /// Operations that it takes as it is.
    fn operations(&self) -> usize {
        let left_out = match self {
            Self::File(_, file) => usize::from(file.data.is_empty()) + usize::from(!file.closes),
            _ => 0,
        };
        self.kind().most_operations() - left_out
    }
}

impl Client {
    /// Makes the server know changes of the names in `dir`, in their order. One round trip.
    ///
    /// # Errors
    /// The server's about the directory, and those of the transport: nothing was done then, as
    /// far as is known. What is about a change is in the result. [`NfsError::Outgrown`]: they are more
    /// than a compound of the session takes that there is now, or its server has not been found to.
    pub async fn change_names(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
        changes: &[NameChange<'_>],
        sending: Sending,
    ) -> Result<NamesChanged, NfsError> {
        let each = changes.iter().map(NameChange::operations);
        let operations = AROUND_CHANGES + each.sum::<usize>();
        if changes
            .iter()
            .any(|change| matches!(change, NameChange::File(..)))
        {
            self.close_queue.room_to_open().await;
        }
        let mut reply = self
            .fore
            .call_past(Past::Gate, cred, Class::Metadata, |c| {
                // A session that is being made anew says what it takes when it is there.
                let is_right = || self.takes_several_writes() == Some(true);
                if operations > c.most() || sending.anywhere && !is_right() {
                    c.outgrown();
                    return;
                }
                c.once().put(dir).get_attrs(CHANGE_ONLY).then();
                let mut current = true;
                for change in changes {
                    if !current {
                        c.put(dir);
                    }
                    self.add_change(c, change);
                    current = change.kind().stays();
                }
                if !current {
                    c.put(dir);
                }
                c.get_attrs(self.object());
            })
            .await?;
        if sending.again {
            reply.set_redone();
        }
        reply.ok(Op::PutFh)?;
        let before = reply.attrs()?.change;
        let mut each = Vec::with_capacity(changes.len());
        let mut current = true;
        for change in changes {
            let taken = match current {
                true => Ok(()),
                false => reply.ok(Op::PutFh).map(drop),
            };
            let changed = match taken {
                Ok(()) => self.take_change(&mut reply, change),
                Err(error) => Err(error),
            };
            current = change.kind().stays();
            let failed = changed.is_err() || is_partial(&changed);
            let made_before = reply.redone() && changed.as_ref().is_err_and(is_done_before);
            each.push(match (changed, change) {
                (_, _) if made_before => self.found_made(cred, dir, change).await,
                (Err(refused), NameChange::File(name, file))
                    if reply.redone() && is_there(&refused) =>
                {
                    let found = self.found_file(cred, dir, name, file).await;
                    found.unwrap_or(Err(refused))
                }
                (changed, _) => changed,
            });
            if failed {
                break;
            }
        }
        let whole = reply.failed_at().is_none();
        let after = match whole {
            true if current => reply.attrs().ok(),
            true => (reply.ok(Op::PutFh).and_then(|reply| reply.attrs())).ok(),
            false => self.attrs_of_changed(cred, dir).await.ok(),
        };
        Ok(NamesChanged {
            each,
            dir: PrePost {
                before: Some(before),
                after,
            },
            redone: reply.redone(),
        })
    }

    fn add_change(&self, c: &mut Compound, change: &NameChange<'_>) {
        match change {
            NameChange::File(name, file) => {
                let (at_creation, _) = self.split_attrs(file);
                let owner = file.open.owner.to_be_bytes();
                c.open(
                    self.open_owner(&owner),
                    file.access,
                    &Create::Exclusive(file.verifier, &at_creation),
                    Claim::Name(name),
                )
                .get_handle();
                self.add_rest_of_file(c, file);
            }
            NameChange::Directory(name, mode) => {
                let new = NewAttributes {
                    mode: Some(*mode),
                    ..NewAttributes::default()
                };
                c.create(Make::Directory, name, &new)
                    .get_handle()
                    .get_attrs(self.object());
            }
            NameChange::Symlink(name, text) => {
                let new = NewAttributes {
                    mode: Some(0o777),
                    ..NewAttributes::default()
                };
                c.create(Make::Symlink(text), name, &new)
                    .get_handle()
                    .get_attrs(self.object());
            }
            NameChange::Remove(name) => {
                c.remove(name);
            }
            NameChange::Rename(from, to) => {
                c.save().rename(from, to);
            }
            NameChange::Attributes(new) => {
                c.set_attrs(StateId::ANONYMOUS, new);
            }
        }
    }

    /// What comes behind the OPEN and its GETFH.
    pub(super) fn add_rest_of_file(&self, c: &mut Compound, file: &NewFile<'_>) {
        let (_, afterwards) = self.split_attrs(file);
        if !file.data.is_empty() {
            c.write_fragment(StateId::CURRENT, 0, Stable::FileSync, file.data);
        }
        c.set_attrs(StateId::ANONYMOUS, &afterwards);
        if file.closes {
            c.close(StateId::CURRENT);
        }
    }

    /// What is set by the OPEN, and what after the data: what was set by programs, what the
    /// server cannot set together with the verifier, and the times, in which it may have kept
    /// that (RFC 8881 §18.16.3).
    pub(super) fn split_attrs(&self, file: &NewFile<'_>) -> (NewAttributes, NewAttributes) {
        let with_mode = self.fs().exclcreat.has(n::MODE);
        let at_creation = NewAttributes {
            mode: with_mode.then_some(file.mode),
            ..NewAttributes::default()
        };
        let mut afterwards = file.attrs.clone();
        if !with_mode {
            afterwards.mode = afterwards.mode.or(Some(file.mode));
        }
        afterwards.atime = afterwards.atime.or(Some(NewTime::Server));
        afterwards.mtime = afterwards.mtime.or(Some(NewTime::Server));
        (at_creation, afterwards)
    }

    fn take_change(
        &self,
        reply: &mut Reply,
        change: &NameChange<'_>,
    ) -> Result<NameChanged, NfsError> {
        match change {
            NameChange::File(_, file) => self.take_file(reply, file).map(NameChanged::File),
            NameChange::Directory(..) | NameChange::Symlink(..) => {
                reply.created()?;
                let handle = reply.handle()?;
                Ok(NameChanged::Object(handle, reply.attrs().ok()))
            }
            NameChange::Remove(_) => reply.change(Op::Remove).map(|_| NameChanged::Done),
            NameChange::Rename(..) => {
                reply.ok(Op::SaveFh)?;
                reply.renamed().map(|_| NameChanged::Done)
            }
            NameChange::Attributes(_) => reply.attrs_set().map(|()| NameChanged::Done),
        }
    }

    pub(super) fn take_file(
        &self,
        reply: &mut Reply,
        file: &NewFile<'_>,
    ) -> Result<FileMade, NfsError> {
        let opened = reply.open()?;
        let handle = reply.handle()?;
        let written = (!file.data.is_empty()).then(|| reply.written());
        if let Some(Ok(written)) = &written {
            self.metrics.bytes_written(written.count.into());
        }
        let set = reply.attrs_set();
        let closed = file.closes && reply.stateid(Op::Close).is_ok();
        Ok(FileMade {
            handle,
            stateid: opened.stateid,
            written,
            set,
            closed,
            preserves_unlinked: opened.flags & PRESERVE_UNLINKED != 0,
        })
    }

    async fn attrs_of_changed(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
    ) -> Result<Attributes, NfsError> {
        let mut reply = self
            .fore
            .call_past(Past::Gate, cred, Class::Metadata, |c| {
                c.put(dir).get_attrs(self.object());
            })
            .await?;
        reply.ok(Op::PutFh)?;
        reply.attrs()
    }

    /// The open of a file that was made knows its state, or that it is closed. To be called right
    /// before its handle is given: with the one and without the other nothing can be asked.
    pub fn opened_as_made(&self, open: &OpenState, access: u32, made: &FileMade) {
        match made.closed {
            true => self.opens.closed_along(open),
            false => drop(open.opened(made.stateid, access)),
        }
    }

    /// The handle of the file that this opens is given, or will never be.
    pub fn handle_is_given(&self, open: &OpenState) {
        open.record_again();
    }

    /// A change of this object was accepted, of its attributes or of the names in a directory, of which
    /// the server is to know before it is asked, or told, anything else about the object.
    pub fn shut_gate(&self, object: &FileHandle) {
        self.fore.gate.shut(object);
    }

    /// Has this called whenever a request begins to wait for such changes. Only the first one given
    /// is kept.
    pub fn on_waiting(&self, hurry: impl Fn() + Send + Sync + 'static) {
        self.fore.gate.on_waiting(hurry);
    }

    /// Requests wait for the changes of this object. Who accepts more has them wait for ever.
    pub fn is_awaited(&self, object: &FileHandle) -> bool {
        self.fore.gate.is_awaited(object)
    }

    /// Such changes of this object are not answered.
    pub fn is_gate_shut(&self, object: &FileHandle) -> bool {
        self.fore.gate.is_shut_for(object)
    }

    /// So many of those were answered, or will never be sent.
    pub fn open_gate(&self, object: &FileHandle, answered: usize) {
        self.fore.gate.open(object, answered);
    }

    /// Sends the CLOSEs of a file that wait, and waits for them: its name is to be removed.
    pub async fn close_before_removal(self: &Arc<Self>, file: &FileHandle, cred: &Credential) {
        let all = usize::MAX;
        drop(self.close_queue.close_in_front(Some(file), cred, all).await);
    }
}

/// A file that is there, of which something behind its OPEN was refused: nothing behind that was
/// executed.
fn is_partial(changed: &Result<NameChanged, NfsError>) -> bool {
    match changed {
        Ok(NameChanged::File(file)) => file.set.is_err() || matches!(&file.written, Some(Err(_))),
        Ok(NameChanged::Object(_, attrs)) => attrs.is_none(),
        Ok(NameChanged::Done) | Err(_) => false,
    }
}

/// A new file is refused because its name leads to one.
fn is_there(error: &NfsError) -> bool {
    matches!(error, NfsError::Status(Op::Open, Status::EXIST))
}

fn is_done_before(error: &NfsError) -> bool {
    let done = [
        (Op::Create, Status::EXIST),
        (Op::Remove, Status::NOENT),
        (Op::Rename, Status::NOENT),
    ];
    matches!(error, NfsError::Status(op, status) if done.contains(&(*op, *status)))
}
