//! Sending changes of names that were answered already ([`name_writeback`](super::name_writeback)),
//! and what the server makes of them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::Files;
use super::accepted_name::{Accepted, PromisedFile, What};
use super::deferred_setattr::new_attributes;
use super::logged_names::Ended;
use super::write::now;
use crate::nfs::NfsError;
use crate::nfs::calls::{self, FileMade, IN_FRONT, Mark, NameChange, NameChanged, NewFile};
use crate::nfs::proto::attrs::{NewAttributes, NewTime};
use crate::nfs::proto::status::Status;
use crate::nfs::proto::types::NfsTime;
use crate::vfs::inode::Inode;
use crate::vfs::types::{FileKind, Timestamp, VfsError};
use crate::vfs::writeback::name_queue::{Batch, Number, Queued, Rested};
use crate::vfs::writeback::{Chunks, RequestId};

/// Data of a new file that go along with it, bytes.
pub(super) const ALONG: usize = 64 << 10;

/// How long a directory is left alone whose server asks for that (DELAY, GRACE).
pub(super) const REST: Duration = Duration::from_millis(100);

/// So many changes of a directory are being sent. If the task that does it dies, they are done with:
/// what was promised is not kept.
pub(super) struct Sending {
    files: Arc<Files>,
    dir: Arc<Inode>,
    left: usize,
    /// Which they are.
    changes: Vec<(Number, Ended)>,
    /// Among them, of attributes of the directory.
    sets: usize,
    /// Files whose attributes are among them, which are then all of them.
    objects: Vec<Arc<Inode>>,
}

/// What goes along with a change.
#[derive(Default)]
struct Along {
    data: Option<(RequestId, Chunks)>,
    /// Attributes that were set by programs.
    changes: bool,
    attrs: NewAttributes,
    closes: bool,
    /// Nothing of the file is left to be sent, and nobody has it open: should the request run twice, and
    /// rename the file each time, no open of the first is left at the server.
    is_all: bool,
}

impl Along {
    /// What of a new file is known again by it.
    fn mark(&self) -> Option<Mark> {
        let data = self.data.as_ref().map_or(0, |(_, data)| len_of(data));
        Mark::of(&self.attrs, data as u64)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.left > 0 {
            for (number, ended) in &self.changes {
                self.files.change_ended(*number, ended);
            }
            self.namespace_answered();
            self.files.end_batch(&self.dir, self.left, Vec::new(), None);
        }
        for object in &self.objects {
            self.files.client.open_gate(&object.handle, 1);
        }
    }
}

impl Sending {
    /// What the server has answered for attributes of this file is known: whoever has waited for it
    /// goes on.
    pub(super) fn was_set(&mut self, object: &Arc<Inode>) {
        let at = (self.objects.iter()).position(|one| Arc::ptr_eq(one, object));
        if let Some(at) = at {
            self.objects.swap_remove(at);
            self.files.client.open_gate(&object.handle, 1);
        }
    }

    /// Of a batch of attributes of files these are to be sent again.
    pub(super) fn ends(mut self, again: Vec<Queued<Accepted>>, rests: Option<Rested>) {
        // Their gates stay shut.
        self.objects.clear();
        let done = std::mem::take(&mut self.left) - again.len();
        self.files.end_batch(&self.dir, done, again, rests);
    }

    fn namespace_answered(&self) {
        for object in &self.objects {
            let mut attr = object.attr.lock();
            attr.set_answered();
            attr.expire();
        }
        if !self.objects.is_empty() {
            return;
        }
        for _ in 0..self.sets {
            self.dir.attr.lock().set_answered();
        }
        self.files.namespace.doubt(&self.dir);
        self.files
            .namespace
            .answered(&self.dir, (self.left, 0), None);
    }
}

impl Files {
    pub(super) fn send_names(self: &Arc<Self>, batch: Batch<Accepted>) {
        let Some(first) = batch.changes.first() else {
            return;
        };
        debug_assert_eq!(first.change.dir.ino, batch.dir);
        let sending = Sending {
            files: Arc::clone(self),
            dir: Arc::clone(&first.change.dir),
            left: batch.changes.len(),
            changes: (batch.changes.iter())
                .map(|queued| (queued.number, Ended::of(&queued.change)))
                .collect(),
            sets: (batch.changes.iter())
                .filter(|queued| matches!(queued.change.what, What::Attributes(_)))
                .count(),
            objects: (batch.changes.iter())
                .filter_map(|queued| match &queued.change.what {
                    What::AttributesOf(object, _) => Some(Arc::clone(object)),
                    _ => None,
                })
                .collect(),
        };
        let files = Arc::clone(self);
        tokio::spawn(async move {
            let tasks = &files.metrics.tasks;
            let of_files = !sending.objects.is_empty();
            let sent = async {
                files.metrics.tasks.point("send_names");
                match of_files {
                    true => files.send_attributes(sending, batch.changes).await,
                    false => files.send_batch(sending, batch.changes).await,
                }
            };
            if tasks.watched("send_names", sent).await.is_err() {
                tracing::error!(
                    "changes of names that were answered are lost: the task that was to send them has died"
                );
            }
        });
    }

    async fn send_batch(self: &Arc<Self>, mut sending: Sending, mut all: Vec<Queued<Accepted>>) {
        let dir = Arc::clone(&sending.dir);
        if let Some(first) = all.first() {
            self.try_larger_requests(&dir, &first.change).await;
        }
        for number in 0..all.len() {
            if !is_renamed(&all, number) {
                self.before_change(&all[number].change).await;
            }
        }
        let (along, anywhere) = self.go_along(&all);
        let later = all.split_off(along.len());
        let changes: Vec<NameChange<'_>> = (all.iter().zip(&along))
            .map(|(queued, along)| change_of(&queued.change, along))
            .collect();
        let Some(first) = all.first() else {
            return;
        };
        for (queued, along) in all.iter().zip(&along) {
            self.log_sending(queued, along.mark());
        }
        let again = all.iter().any(|queued| queued.change.again);
        let cred = Arc::clone(&first.change.cred);
        let changing = self.namespace.changing(&dir);
        let sent = Instant::now();
        let changed = self
            .client
            .change_names(
                &cred,
                &dir.handle,
                &changes,
                calls::Sending { again, anywhere },
            )
            .await;
        drop(changes);
        let (mut again, mut rests, mut links) = (Vec::new(), None, 0);
        let (mut each, moved, redone) = match changed {
            Ok(changed) => (changed.each, Some(changed.dir), changed.redone),
            // A new session takes fewer at a time, or its server is not known as well.
            Err(NfsError::Outgrown { may_have_run }) if along.len() > 1 => {
                rests = Some(Rested(now() + REST));
                (Vec::new(), None, may_have_run)
            }
            // Nothing was done, as far as is known, and nothing will be.
            Err(error) => {
                let each = (0..along.len()).map(|_| Err(error.clone())).collect();
                (each, None, false)
            }
        };
        each.reverse();
        for (mut queued, along) in all.into_iter().zip(along) {
            let outcome = match each.pop() {
                // Nothing behind one that is put off was executed.
                Some(Err(error)) if is_put_off(&error) => {
                    rests = Some(Rested(now() + REST));
                    None
                }
                outcome => outcome,
            };
            match outcome {
                Some(outcome) => {
                    links += queued.change.links();
                    let ended = Ended::of(&queued.change);
                    self.take_outcome(queued.change, along, outcome, sent);
                    self.change_ended(queued.number, &ended);
                }
                None => {
                    if redone {
                        queued.change.may_have_run(along.mark());
                    }
                    self.give_back(&queued.change, along);
                    again.push(queued);
                }
            }
        }
        again.extend(later);
        sending.sets = 0;
        let done = std::mem::take(&mut sending.left) - again.len();
        let moved = moved.as_ref().map(|moved| (moved, sent));
        self.namespace.answered(&dir, (done, links), moved);
        drop(changing);
        self.end_batch(&dir, done, again, rests);
    }

    /// What goes along with each of the first changes, up to one that has to wait for those; and whether
    /// any data begin where [not every](calls::Sending::anywhere) server takes them.
    fn go_along(&self, all: &[Queued<Accepted>]) -> (Vec<Along>, bool) {
        let mut along: Vec<Along> = Vec::with_capacity(all.len());
        let (mut in_front, mut anywhere, room) = (0, false, self.room());
        for number in 0..all.len() {
            // What has a new name has its data before: if there were more of them meanwhile, or it is
            // open, the rename waits until it is there.
            if is_renamed(all, number) && !along.iter().all(|front| front.is_all) {
                break;
            }
            let change = &all[number].change;
            let goes = self.goes_along(change, room.for_data_behind(number, in_front));
            let data = goes.data.as_ref().map_or(0, |(_, data)| len_of(data));
            anywhere |= data > 0 && in_front > IN_FRONT;
            in_front += change.bytes(data);
            along.push(goes);
        }
        (along, anywhere)
    }

    /// A batch has come to its end.
    fn end_batch(
        self: &Arc<Self>,
        dir: &Arc<Inode>,
        done: usize,
        again: Vec<Queued<Accepted>>,
        rests: Option<Rested>,
    ) {
        self.client.open_gate(&dir.handle, done);
        self.metrics.gauges.names_ahead.sub(done as u64);
        self.names.queue.lock().done(dir.ino, again, rests);
        self.forget_made();
        self.names.answered.notify_waiters();
        self.pump_names();
    }

    /// What has to be at the server before a name goes: the data of the file that it leads to,
    /// which may not be found by then; and all names of a directory.
    async fn before_change(self: &Arc<Self>, change: &Accepted) {
        // A file whose attributes were set since had no data on their way then. What was written
        // later waits for those, and they may wait for this.
        let is_behind = |inode: &Arc<Inode>| self.client.is_gate_shut(&inode.handle);
        for inode in change.needs() {
            match inode.kind {
                FileKind::Directory => self.settle_names_in(inode.ino).await,
                FileKind::Regular if is_behind(inode) => {}
                FileKind::Regular => {
                    self.drain(inode).await;
                    self.send_changes(inode).await;
                }
                _ => {}
            }
        }
        let loses = match &change.what {
            What::Remove { victim } => Some(victim),
            What::Rename { replaced, .. } => replaced.as_ref(),
            _ => None,
        };
        if let Some(file) = loses.filter(|file| file.handle.is_given()) {
            self.client
                .close_before_removal(&file.handle, &change.cred)
                .await;
        }
    }

    /// What was done to a new file since: it leaves now, with its data if there are `most` at the most.
    fn goes_along(&self, change: &Accepted, most: usize) -> Along {
        let file = match &change.what {
            What::File(file) => file,
            What::Attributes(set) => {
                return Along {
                    attrs: new_attributes(set),
                    is_all: true,
                    ..Along::default()
                };
            }
            _ => {
                return Along {
                    is_all: true,
                    ..Along::default()
                };
            }
        };
        let mut inner = self.file_state(&file.inode).lock();
        let data = inner.writeback_mut().take_whole(most);
        let is_whole = inner.writeback().is_idle()
            || data
                .as_ref()
                .is_some_and(|(id, _)| inner.writeback().is_last(*id));
        let changes = is_whole.then(|| inner.deferred_mut().leave_as(&file.open.cred));
        let changes = changes.flatten();
        let closes = is_whole && inner.take_closing(&file.open);
        let is_all = closes && inner.deferred().is_leaving_whole();
        let (atime, mtime) = {
            let attr = file.inode.attr.lock();
            (attr.stat().atime, attr.stat().mtime)
        };
        let set = changes.as_ref().map(|change| new_attributes(&change.set));
        let mut attrs = set.unwrap_or_default();
        // What was shown of the times is made true.
        attrs.atime = attrs.atime.or_else(|| Some(at(atime)));
        attrs.mtime = attrs.mtime.or_else(|| Some(at(mtime)));
        Along {
            data,
            changes: changes.is_some(),
            attrs,
            closes,
            is_all,
        }
    }

    /// What was to go along with a change that was not executed goes with its next sending.
    fn give_back(self: &Arc<Self>, change: &Accepted, along: Along) {
        let What::File(file) = &change.what else {
            return;
        };
        if let Some((id, _)) = along.data {
            self.with_writeback(&file.inode, |inner| {
                inner.writeback_mut().not_executed(id);
            });
        }
        if along.changes {
            self.changes_left(&file.inode, true);
        }
        if along.closes {
            let mut inner = self.file_state(&file.inode).lock();
            inner.close_again(&file.open);
        }
    }

    fn take_outcome(
        self: &Arc<Self>,
        change: Accepted,
        along: Along,
        outcome: Result<NameChanged, NfsError>,
        sent: Instant,
    ) {
        let outcome = match outcome {
            Ok(outcome) => outcome,
            Err(error) => return self.was_refused(change, along, &error),
        };
        match (change.what, outcome) {
            (What::File(file), NameChanged::File(made)) => self.file_made(file, along, made, sent),
            (
                What::Directory { inode, promise, .. } | What::Symlink { inode, promise, .. },
                NameChanged::Object(handle, attrs),
            ) => {
                self.log_made(&inode, &handle);
                promise.keep(&handle);
                let attrs = attrs.as_ref();
                self.namespace.made_as_promised(&inode, attrs, sent);
                self.log_believed(&inode);
            }
            (What::Remove { .. } | What::Rename { .. }, _) => {}
            (What::Attributes(_), _) => change.dir.attr.lock().set_answered(),
            // They go in requests of their own.
            (What::AttributesOf(..), _) => {}
            // It was made by an earlier sending, and its handle is not known.
            (What::File(file), _) => {
                file.promise.break_off(Status::STALE);
                self.client.handle_is_given(&file.open);
                self.namespace.log_place(&file.inode);
            }
            (What::Directory { inode, promise, .. } | What::Symlink { inode, promise, .. }, _) => {
                promise.break_off(Status::STALE);
                self.namespace.log_place(&inode);
            }
        }
    }

    fn file_made(
        self: &Arc<Self>,
        file: PromisedFile,
        along: Along,
        made: FileMade,
        sent: Instant,
    ) {
        let inode = &file.inode;
        self.log_file_made(&file, &made);
        self.client.opened_as_made(&file.open, file.access, &made);
        file.promise.keep(&made.handle);
        self.client.handle_is_given(&file.open);
        self.namespace.made_as_promised(inode, None, sent);
        self.log_believed(inode);
        self.set_preserved(inode, made.preserves_unlinked);
        let mut is_whole = true;
        if let Some((id, data)) = &along.data {
            match made.written {
                Some(Ok(written)) => {
                    is_whole = written.count as usize >= len_of(data);
                    self.write_answered(inode, [(*id, written)].into_iter(), None);
                }
                // It goes by itself now, and tells its error then.
                Some(Err(_)) | None => {
                    is_whole = false;
                    self.with_writeback(inode, |inner| inner.writeback_mut().not_executed(*id));
                }
            }
        }
        if along.changes {
            let set = is_whole && made.set.is_ok();
            self.changes_left(inode, !set);
            if !set {
                self.changes_wait(inode);
            }
        }
        inode.attr.lock().overtaken(Instant::now());
        self.file_state(inode).notify_waiters();
        if along.closes && !made.closed {
            let (files, open, inode) = (Arc::clone(self), file.open, Arc::clone(inode));
            self.metrics.tasks.restarted("close_made", move || {
                let (files, open, inode) = (files.clone(), open.clone(), inode.clone());
                async move {
                    files.drain(&inode).await;
                    files.send_changes(&inode).await;
                    files.client.close_soon(&open);
                }
            });
        }
        self.pump(&file.inode);
    }

    /// The server refuses what was answered: whoever asks for the object is told, and so are
    /// fsync and close of the file, and fsync of the directory.
    fn was_refused(self: &Arc<Self>, change: Accepted, along: Along, error: &NfsError) {
        self.give_back(&change, along);
        let Accepted {
            dir,
            cred,
            name,
            what,
            ..
        } = change;
        let cause = self.namespace.failed(error, &dir);
        let did = match &what {
            What::File(_) => "new file",
            What::Directory { .. } => "new directory",
            What::Symlink { .. } => "new link",
            What::Remove { .. } => "removal",
            What::Rename { .. } => "rename",
            What::Attributes(_) | What::AttributesOf(..) => "change of attributes of",
        };
        let path = match &what {
            What::Attributes(_) => dir.path(),
            _ => dir.path_of(&name),
        };
        tracing::error!(
            "the {did} {path} was answered (writeback) and is refused by the server: {error}; fsync of \
             the directory tells the error"
        );
        self.metrics.set_last_error(error.to_string());
        self.refused_late(&dir, path, did, &cause);
        self.rights.refuted(&cred);
        self.namespace.not_as_accepted(&dir, &name);
        let status = error.status().unwrap_or(Status::IO);
        match what {
            What::File(file) => {
                file.promise.break_off(status);
                self.client.handle_is_given(&file.open);
                self.namespace.log_place(&file.inode);
                if self.file_state(&file.inode).lock().take_closing(&file.open) {
                    self.client.close_soon(&file.open);
                }
                self.file_refused(&file.inode, cause);
            }
            What::Directory { inode, promise, .. } | What::Symlink { inode, promise, .. } => {
                promise.break_off(status);
                self.namespace.log_place(&inode);
            }
            What::Remove { .. } | What::AttributesOf(..) => {}
            What::Rename { to, .. } => self.namespace.not_as_accepted(&dir, &to),
            What::Attributes(_) => {
                let mut attr = dir.attr.lock();
                attr.set_answered();
                attr.expire();
                drop(attr);
                self.namespace.inval_attr(dir.ino);
            }
        }
    }

    fn file_refused(self: &Arc<Self>, inode: &Arc<Inode>, error: VfsError) {
        inode.attr.lock().expire();
        self.namespace.lose_pages(inode);
        self.with_writeback(inode, |inner| {
            inner.writeback_mut().errors_mut().record(error);
            self.log_errors(inode, inner);
        });
        self.file_state(inode).notify_waiters();
        self.pump(inode);
    }
}

/// This one gives a name to what one in front of it makes.
fn is_renamed(all: &[Queued<Accepted>], number: usize) -> bool {
    let in_front = all[..number].iter().map(|queued| &queued.change);
    all[number].change.is_rename_of_one_in(in_front)
}

/// The change as the server is asked for it.
fn change_of<'a>(change: &'a Accepted, along: &'a Along) -> NameChange<'a> {
    let name = &*change.name;
    match &change.what {
        What::File(file) => NameChange::File(
            name,
            NewFile {
                open: &file.open,
                access: file.access,
                mode: file.mode,
                verifier: file.verifier,
                data: along.data.as_ref().map_or(&[], |(_, data)| &data[..]),
                attrs: along.attrs.clone(),
                closes: along.closes,
                earlier: &file.marks,
            },
        ),
        What::Directory { mode, .. } => NameChange::Directory(name, *mode),
        What::Symlink { text, .. } => NameChange::Symlink(name, text),
        What::Remove { .. } => NameChange::Remove(name),
        What::Rename { to, .. } => NameChange::Rename(name, to),
        What::Attributes(_) | What::AttributesOf(..) => NameChange::Attributes(&along.attrs),
    }
}

fn len_of(data: &Chunks) -> usize {
    data.iter().map(Bytes::len).sum()
}

pub(super) fn is_put_off(error: &NfsError) -> bool {
    matches!(error.status(), Some(Status::DELAY | Status::GRACE))
}

fn at(time: Timestamp) -> NewTime {
    NewTime::At(NfsTime {
        sec: time.sec,
        nsec: time.nsec,
    })
}
