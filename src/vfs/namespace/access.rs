//! access: what the server allows whom (ACCESS, RFC 8881 §18.1).
//!
//! Asked only where the kernel does not decide by mode bits itself
//! (`nodefault_permissions`, access points). An answer is good for the same user
//! as long as the object's attributes are believed and its time of change is the
//! one that came with the answer: chmod, chown and a new ACL move that, wherever
//! they are done. By what may be searched names are answered from the caches
//! ([`Namespace::may_search`]). Owned by the cache's own locks; nothing else is locked with it.
//!
//! With `nocto` it is remembered beside that for whom the server has opened a file for reading
//! ([`Namespace::may_read`]).

use std::sync::Arc;

use moka::sync::Cache as Bounded;
use tokio::time::Instant;

use super::Namespace;
use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::ops;
use crate::rpc::auth::Credential;
use crate::telemetry::Cache;
use crate::vfs::inode::Inode;
use crate::vfs::types::{Errno, FileKind, Ino, Timestamp, VfsResult};

/// Bytes that all answers may take.
const MOST: u64 = 4 << 20;

/// Beside the bits of ACCESS: OPEN for reading. The server grants that also to who may but
/// execute a file, of whom ACCESS says that he may not read it.
const OPENED: u32 = 1 << 31;

/// Whose answer about what. A number that comes back means another object, of
/// another generation.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Question {
    ino: Ino,
    generation: u64,
    who: Arc<Credential>,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    /// ACCESS4_* bits that were asked for, and those of them that are granted.
    asked: u32,
    granted: u32,
    /// When the object was changed last, as of the answer.
    ctime: Timestamp,
}

impl Question {
    fn of(inode: &Inode, who: Arc<Credential>) -> Self {
        Self {
            ino: inode.ino,
            generation: inode.generation,
            who,
        }
    }
}

impl Answer {
    /// What came along with these attributes.
    fn new(asked: u32, granted: u32, attrs: &Attributes) -> Self {
        Self {
            asked,
            granted,
            ctime: Timestamp {
                sec: attrs.ctime.sec,
                nsec: attrs.ctime.nsec,
            },
        }
    }

    /// Both, about the same state of the object.
    fn join(self, other: Self) -> Self {
        Self {
            asked: self.asked | other.asked,
            granted: self.granted | other.granted & !self.asked,
            ..self
        }
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct AccessCache(Bounded<Question, Answer>);

impl Default for AccessCache {
    fn default() -> Self {
        let weight = |question: &Question, _: &Answer| {
            let groups = size_of_val(&question.who.gids[..]);
            let fixed = size_of::<(Question, Answer, Credential)>() + 64;
            u32::try_from(fixed + groups).unwrap_or(u32::MAX)
        };
        Self(
            Bounded::builder()
                .max_capacity(MOST)
                .weigher(weight)
                .build(),
        )
    }
}

impl Namespace {
    /// ACCESS: one round trip, or none. `mask` is that of access(2).
    ///
    /// # Errors
    /// EACCES, and whatever the server answers.
    pub(in crate::vfs) async fn access(
        &self,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
        mask: u32,
    ) -> VfsResult<()> {
        let wanted = wanted(mask, inode.kind);
        if wanted == 0 {
            return Ok(());
        }
        let question = Question::of(inode, Arc::clone(cred));
        let known = self.access.0.get(&question);
        let known = known.filter(|known| believed_at(inode) == Some(known.ctime));
        let good = known.filter(|known| known.asked & wanted == wanted);
        self.metrics.cache(Cache::Access, good.is_some());
        let granted = match good {
            Some(good) => good.granted,
            None => {
                self.ask_access(cred, inode, question, known, wanted)
                    .await?
            }
        };
        if granted & wanted == wanted {
            Ok(())
        } else {
            Err(Errno(libc::EACCES).into())
        }
    }

    /// Whether names in this directory may be answered to this user from what is known.
    pub(in crate::vfs) fn may_search(
        &self,
        who: impl FnOnce() -> Arc<Credential>,
        dir: Ino,
    ) -> bool {
        if !self.config.asks_who_searches {
            return true;
        }
        let Some(inode) = self.inodes.get(dir) else {
            return false;
        };
        let question = Question::of(&inode, who());
        let known = self.access.0.get(&question);
        known.is_some_and(|known| {
            believed_at(&inode) == Some(known.ctime) && known.granted & ops::CAN_LOOKUP != 0
        })
    }

    /// Asks whether this user may list the directory, if the kernel does not look: what it
    /// holds is known to who has asked before.
    ///
    /// # Errors
    /// EACCES, and whatever the server answers.
    pub(in crate::vfs) async fn may_list(
        &self,
        cred: &Arc<Credential>,
        dir: &Arc<Inode>,
    ) -> VfsResult<()> {
        match self.config.asks_who_searches {
            true => self.access(cred, dir, libc::R_OK as u32).await,
            false => Ok(()),
        }
    }

    /// The kernel does not look who may search a directory.
    pub(in crate::vfs) fn asks_who_searches(&self) -> bool {
        self.config.asks_who_searches
    }

    async fn ask_access(
        &self,
        cred: &Arc<Credential>,
        inode: &Arc<Inode>,
        question: Question,
        known: Option<Answer>,
        wanted: u32,
    ) -> VfsResult<u32> {
        // Who is asked about a directory for one of these is asked for the other next.
        let wanted = match inode.kind {
            FileKind::Directory => wanted | ops::CAN_READ | ops::CAN_LOOKUP,
            _ => wanted,
        };
        let sent = Instant::now();
        let (granted, attrs) = self
            .client
            .access(cred, &inode.handle, wanted)
            .await
            .map_err(|error| self.failed(&error, inode))?;
        if let Some(attrs) = attrs {
            self.learn(inode, &attrs, sent);
            // Unless attributes that are newer than the answer were known already.
            self.remember(question, known, Answer::new(wanted, granted, &attrs));
        }
        Ok(granted)
    }

    fn remember(&self, question: Question, known: Option<Answer>, new: Answer) {
        let all = known.filter(|known| known.ctime == new.ctime);
        self.access
            .0
            .insert(question, all.map_or(new, |all| new.join(all)));
    }

    /// The server has opened the file for reading by this user, and these attributes came along.
    pub(in crate::vfs) fn opened_to_read(
        &self,
        cred: &Arc<Credential>,
        inode: &Inode,
        attrs: &Attributes,
    ) {
        if self.asks_at_open() {
            return;
        }
        let question = Question::of(inode, Arc::clone(cred));
        let known = self.access.0.get(&question);
        self.remember(question, known, Answer::new(OPENED, OPENED, attrs));
    }

    /// Whether the server has said, of the file as it is known here, that this user may read it.
    /// That he may not is never known so: then the server is to say it.
    pub(super) fn may_read(&self, cred: &Arc<Credential>, inode: &Inode) -> bool {
        let known = self.access.0.get(&Question::of(inode, Arc::clone(cred)));
        let ctime = inode.attr.lock().stat().ctime;
        known.is_some_and(|known| {
            known.ctime == ctime && known.granted & (OPENED | ops::CAN_READ) != 0
        })
    }
}

/// The object's time of change, if its attributes are believed.
fn believed_at(inode: &Inode) -> Option<Timestamp> {
    let attr = inode.attr.lock();
    (!attr.ttl(Instant::now()).is_zero()).then(|| attr.stat().ctime)
}

fn wanted(mask: u32, kind: FileKind) -> u32 {
    let mut wanted = 0;
    if mask & libc::R_OK as u32 != 0 {
        wanted |= ops::CAN_READ;
    }
    if mask & libc::W_OK as u32 != 0 {
        wanted |= ops::CAN_MODIFY | ops::CAN_EXTEND;
    }
    if mask & libc::X_OK as u32 != 0 {
        wanted |= match kind {
            FileKind::Directory => ops::CAN_LOOKUP,
            _ => ops::CAN_EXECUTE,
        };
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_answer_has_the_last_word_about_what_it_was_asked() {
        let ctime = Timestamp { sec: 1, nsec: 2 };
        let answer = |asked, granted| Answer {
            asked,
            granted,
            ctime,
        };
        let both = answer(0b011, 0b001).join(answer(0b110, 0b110));
        assert_eq!((both.asked, both.granted), (0b111, 0b101));
    }
}
