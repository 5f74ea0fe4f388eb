//! Whether this server may be sent several WRITEs with much data in one request: found out by trying
//! it, on a file of our own that is gone with the same request.
//!
//! Linux's server (seen: 6.1, svc_fill_write_vector) writes the data of a WRITE wrongly if they begin
//! in a later page of their request than the first: it takes that page from its beginning. Nothing
//! that a server says of itself tells whether it does. So without a trial no second WRITE begins
//! behind the first page ([`IN_FRONT`](super::IN_FRONT)). What a trial has shown is believed for as
//! long as the client id lives, which a restart of the server ends.
//!
//! The file is in a directory that is this host's alone, and has a name that every NFS client
//! takes for a hidden one (`.nfs…`). If the server dies in the middle, that is what is left.

use std::sync::Arc;

use bytes::Bytes;

use super::super::client::Client;
use super::super::fore_channel::gate::Past;
use super::super::proto::attrs::{CHANGE_ONLY, NewAttributes};
use super::super::proto::ops::{ACCESS_READ, ACCESS_WRITE, Claim, Create, Op};
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::types::{FileHandle, Stable, StateId};
use super::super::server::Trial;
use super::super::session::slots::Class;
use super::names::PrePost;
use crate::rpc::auth::Credential;

/// Data of each of the two WRITEs, bytes. With the first in front, the data of the second begin in a
/// later page also where pages are of 64 KiB; and not at its beginning, wherever they are.
const PIECE: u32 = (68 << 10) + 20;

/// Words of the data are numbered, so that nothing else can be taken for what is at its place.
const WORD: usize = size_of::<u32>();

/// The file that is tried on.
struct Tried<'a> {
    cred: &'a Arc<Credential>,
    dir: &'a FileHandle,
    name: &'a [u8],
    /// By it an earlier sending is known.
    verifier: [u8; 8],
    /// Both pieces.
    data: &'a Bytes,
}

/// What became of it.
struct Told {
    is_right: bool,
    moved: PrePost,
    /// It is open.
    left: Option<(FileHandle, StateId)>,
}

impl Client {
    /// Whether the data of any WRITE of a request are written rightly, wherever they begin. `None`: that
    /// is to be [tried](Self::try_several_writes).
    pub fn takes_several_writes(&self) -> Option<bool> {
        let client_id = self.client_id.lock().id;
        let trial = self.features.several_writes()?;
        (trial.client_id == client_id).then_some(trial.is_right)
    }

    /// Finds that out in this directory, past the requests that wait for its changes; and how the
    /// directory has moved by it, if it may have. One round trip, if all goes well. What does not
    /// counts as "no".
    pub async fn try_several_writes(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
    ) -> Option<PrePost> {
        let client_id = self.client_id.lock().id;
        let mut verifier = [0; 8];
        let fits = self.rsize().min(self.wsize()) >= 2 * PIECE;
        let told = match fits && getrandom::fill(&mut verifier).is_ok() {
            true => {
                let unique = u64::from_be_bytes(verifier);
                let name = format!(".nfs{client_id:016x}{unique:016x}");
                let tried = Tried {
                    cred,
                    dir,
                    name: name.as_bytes(),
                    verifier,
                    data: &numbered_words(),
                };
                Some(self.try_on(&tried).await)
            }
            false => None,
        };
        let is_right = told.as_ref().is_some_and(|told| told.is_right);
        tracing::debug!("several WRITEs of much data in a request are written rightly: {is_right}");
        self.features.tried_several_writes(Trial {
            client_id,
            is_right,
        });
        told.map(|told| told.moved)
    }

    async fn try_on(self: &Arc<Self>, tried: &Tried<'_>) -> Told {
        let (first, second) = (
            tried.data.slice(..PIECE as usize),
            tried.data.slice(PIECE as usize..),
        );
        let mode = NewAttributes {
            mode: Some(0o600),
            ..NewAttributes::default()
        };
        let owner = self.opens.next_owner().to_be_bytes();
        let reply = self
            .fore
            .call_past(Past::Gate, tried.cred, Class::Bulk, |c| {
                // It may run twice; and no server keeps a reply with so much data.
                c.put(tried.dir)
                    .get_attrs(CHANGE_ONLY)
                    .then()
                    .open(
                        self.open_owner(&owner),
                        ACCESS_READ | ACCESS_WRITE,
                        &Create::Exclusive(tried.verifier, &mode),
                        Claim::Name(tried.name),
                    )
                    .get_handle();
                let at = [(0, &first), (u64::from(PIECE), &second)];
                for (offset, data) in at {
                    let data = std::slice::from_ref(data);
                    c.write_fragment(StateId::CURRENT, offset, Stable::Unstable, data);
                }
                c.read(StateId::CURRENT, 0, 2 * PIECE)
                    .close(StateId::CURRENT)
                    .put(tried.dir)
                    .remove(tried.name)
                    .get_attrs(self.object());
            })
            .await;
        let told = reply.and_then(|reply| take(reply, tried.data));
        let told = told.unwrap_or_else(|error| {
            tracing::debug!("several WRITEs in a request could not be tried: {error}");
            Told::nothing()
        });
        if told.moved.after.is_none() {
            self.clear_away(tried, told.left.as_ref()).await;
        }
        told
    }

    /// Something was refused in the middle: what is left is closed and removed, or was never there.
    async fn clear_away(self: &Arc<Self>, tried: &Tried<'_>, left: Option<&(FileHandle, StateId)>) {
        let cleared = self
            .fore
            .call_past(Past::Gate, tried.cred, Class::Metadata, |c| {
                c.once();
                if let Some((file, stateid)) = left {
                    c.put(file).close(*stateid);
                }
                c.put(tried.dir).remove(tried.name);
            })
            .await;
        if let Err(error) = cleared {
            let name = tried.name.escape_ascii();
            tracing::warn!("{name}, on which a request was tried, may be left: {error}");
        }
    }
}

impl Told {
    fn nothing() -> Self {
        Self {
            is_right: false,
            moved: PrePost::default(),
            left: None,
        }
    }
}

/// Two pieces, each word of which has a number of its own.
fn numbered_words() -> Bytes {
    let words = 0..(2 * PIECE as usize / WORD) as u32;
    words.flat_map(u32::to_be_bytes).collect()
}

/// Takes the reply apart, up to where it ends.
fn take(mut reply: Reply, data: &Bytes) -> Result<Told, NfsError> {
    reply.ok(Op::PutFh)?;
    let before = Some(reply.attrs()?.change);
    let mut told = Told {
        moved: PrePost {
            before,
            after: None,
        },
        ..Told::nothing()
    };
    let opened = reply.open()?;
    let file = reply.handle()?;
    told.left = Some((file, opened.stateid));
    let wrote = reply
        .written()
        .and_then(|first| Ok((first, reply.written()?)));
    let Ok((first, second)) = wrote else {
        return Ok(told);
    };
    let Ok(read) = reply.read() else {
        return Ok(told);
    };
    told.is_right = first.count == PIECE && second.count == PIECE && read.data == *data;
    if reply.stateid(Op::Close).is_err() {
        return Ok(told);
    }
    told.left = None;
    let gone = reply.ok(Op::PutFh).and_then(|reply| {
        reply.change(Op::Remove)?;
        reply.attrs()
    });
    told.moved.after = gone.ok();
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_the_data_is_like_another() {
        let data = numbered_words();
        assert_eq!(data.len(), 2 * PIECE as usize);
        let words: std::collections::HashSet<_> = data.chunks(WORD).collect();
        assert_eq!(words.len(), data.len() / WORD);
    }
}
