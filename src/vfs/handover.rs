//! A mounted file system that another process goes on with.
//!
//! What it must know is written down room by room, in the files of this name: inodes and how often
//! the kernel has looked them up, open files with their locks, hidden names and errors that
//! nobody was told of, open directories and how far they are read. What is believed is not: it is
//! asked for again, and compared with what was known last.
//!
//! The process before has nothing on its way ([`Vfs::drained`]), and does nothing after. What it
//! still learns by itself, by what it had asked for ahead, the other one learns anew. But what the
//! kernel is to be told because of something that *is* written down has to be told: so
//! whoever hands over lets the queue to the kernel run empty once more afterwards. Should
//! it not come to that, the state says of which inodes the kernel was not told.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::nfs::Client;
use crate::nfs::handover::ClientState;
use crate::nfs::handover::TakenOver;
use crate::telemetry::Metrics;
use crate::vfs::dirs::Dirs;
use crate::vfs::dirs::handover::DirsState;
use crate::vfs::files::Files;
use crate::vfs::files::handover::FilesState;
use crate::vfs::files::logged::OnTheirWay;
use crate::vfs::files::logged_names::LoggedNames;
use crate::vfs::inode::table::handover::{Contradiction, InodeRecords};
use crate::vfs::inode::table::logged::LoggedInodes;
use crate::vfs::namespace::Namespace;
use crate::vfs::{Vfs, VfsConfig};
use crate::wal::{Survived, Unreadable};

/// All that another process must know to go on in the place of this one. Its numbers of opens
/// and locks are the client's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VfsState {
    inodes: InodeRecords,
    files: FilesState,
    dirs: DirsState,
    /// Nothing, if the process before has come to rest.
    #[serde(skip)]
    on_their_way: OnTheirWay,
}

/// What a [`VfsState`] is about, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Inodes that the kernel holds.
    pub inodes: usize,
    /// Open files.
    pub files: usize,
    /// Open directories.
    pub dirs: usize,
    /// Owners of file locks, those that hold none at the moment among them.
    pub owners: usize,
    /// Files that were removed while they are open.
    pub hidden: usize,
}

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            inodes,
            files,
            dirs,
            owners,
            hidden,
        } = self;
        write!(
            f,
            "{inodes} inodes, {files} open files ({hidden} of them removed), {dirs} open \
             directories, {owners} owners of file locks"
        )
    }
}

impl VfsState {
    /// What a process that was killed has left in its write-ahead log, and its `client`, which learns
    /// from that what became of promised handles.
    ///
    /// # Errors
    /// A record is not what it should be.
    pub fn survived(survived: &Survived, client: &mut ClientState) -> Result<Self, Unreadable> {
        let names = LoggedNames::read(survived)?;
        let mut inodes = LoggedInodes::read(survived, names.promises())?;
        client.knows(inodes.promises(), &names.opened());
        let (files, on_their_way) = FilesState::survived(survived, names, &mut inodes, client)?;
        let dirs = DirsState::survived(survived, &inodes)?;
        Ok(Self {
            inodes: inodes.into_records(),
            files,
            dirs,
            on_their_way,
        })
    }

    /// How much it is.
    pub fn extent(&self) -> Extent {
        let (files, owners, hidden) = self.files.count();
        Extent {
            inodes: self.inodes.count().0,
            files,
            dirs: self.dirs.count(),
            owners,
            hidden,
        }
    }
}

/// Why a state cannot be gone on with: no program like this one has written it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the state of the file system that was handed over contradicts itself: {0}")]
pub struct TakeOverError(&'static str);

impl From<Contradiction> for TakeOverError {
    fn from(Contradiction(what): Contradiction) -> Self {
        Self(what)
    }
}

/// After this time every request that the kernel had to send again has come: it sends them before
/// all others, and the longest that one is kept waiting before it begins is for a change of
/// attributes.
const RESENT: Duration = Duration::from_secs(60);

/// How often it is looked whether what is at work in tasks of its own has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

impl Vfs {
    /// Waits until nothing is on its way that somebody was answered for: all data are stable or
    /// have failed, changes of attributes are the server's, what is closed is closed there, and
    /// what was abandoned has ended. Requests of the kernel are not let in meanwhile, and none
    /// is under way. With a server that does not answer it does not end; to give up is to
    /// drop the future, after which all goes on as before.
    pub async fn drained(self: &Arc<Self>) {
        loop {
            self.files.abandoned().ended().await;
            self.files.close_kept().await;
            self.files.before_hand_over().await;
            self.client.closes_sent().await;
            if self.files.is_drained() {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// What another process needs to know to go on in the place of this one, which is
    /// [drained](Self::drained) and does nothing for the kernel any more.
    pub fn hand_over(&self) -> VfsState {
        let mut inodes = self.namespace.collect();
        let files = self.files.hand_over(&mut inodes);
        let dirs = self.dirs.hand_over(&mut inodes);
        VfsState {
            inodes: self.namespace.hand_over(inodes),
            files,
            dirs,
            on_their_way: OnTheirWay::default(),
        }
    }

    /// The file system of another process, which has ended. `taken` is what `client` has taken
    /// over for it: what nobody needs of that is closed.
    ///
    /// # Errors
    /// The state contradicts itself. A handle whose open or lock is not in `taken` is no error
    /// here, but is one (EIO) to whoever uses it.
    pub fn take_over(
        client: Arc<Client>,
        config: VfsConfig,
        metrics: Arc<Metrics>,
        state: VfsState,
        taken: TakenOver,
    ) -> Result<Arc<Self>, TakeOverError> {
        let VfsState {
            inodes,
            files: open_files,
            dirs: open_dirs,
            on_their_way,
        } = state;
        let opens = taken.opens.clone();
        let (of, to) = (|| Arc::clone(&client), || Arc::clone(&metrics));
        let (namespace, inodes) = Namespace::take_over(of(), config.names(), inodes, to())?;
        let namespace = Arc::new(namespace);
        let files = Files::new(of(), config.data(), Arc::clone(&namespace), to());
        files.take_over(open_files, &inodes, taken, &on_their_way)?;
        files.take_over_what_was_on_its_way(on_their_way, &inodes, opens)?;
        let dirs = Dirs::new(of(), Arc::clone(&namespace), Arc::clone(&files), to());
        dirs.take_over(open_dirs, &inodes)?;
        Ok(Self::of(client, metrics, namespace, files, dirs))
    }

    /// Another process can go on should this one be killed.
    pub fn survives(&self) -> bool {
        self.client.wal().is_on()
    }

    /// Goes on with what was on its way in a process that was killed. To be called once, when nobody
    /// can take this mount back any more, and before the kernel is answered.
    pub async fn go_on(self: &Arc<Self>) {
        self.files.go_on().await;
        let (client, files) = (Arc::clone(&self.client), Arc::clone(&self.files));
        self.metrics.tasks.restarted("resent", move || {
            let (client, files) = (Arc::clone(&client), Arc::clone(&files));
            async move {
                tokio::time::sleep(RESENT).await;
                client.outcomes_are_through();
                files.requests_are_through();
            }
        });
    }

    /// The kernel has its answer to this request: what was on record for the case that it is sent
    /// again is forgotten.
    pub fn request_answered(&self, unique: u64) {
        self.files.request_answered(unique);
        self.client.request_answered(unique);
    }

    /// The caller of this request is about to be answered although its operation has not ended.
    pub fn request_given_up(&self, unique: u64) {
        self.client.request_given_up(unique);
    }
}
