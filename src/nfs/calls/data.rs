//! Data: READ, WRITE, COMMIT.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use super::super::client::Client;
use super::super::proto::attrs::{Attributes, CHANGE_ONLY, NewAttributes};
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, ReadResult, Reply, WriteResult};
use super::super::proto::status::{Status, state_is_gone};
use super::super::proto::types::{Stable, StateId, Verifier};
use super::super::reopen::renew_state;
use super::super::session::slots::Class;
use super::super::state::{OpenState, STATE_RETRIES};
use super::names::{PrePost, change_before};

/// What a WRITE came to.
#[derive(Clone, Debug)]
pub struct Written {
    /// What the server wrote; perhaps less than was sent.
    pub result: WriteResult,
    /// How the file moved.
    pub moved: PrePost,
    /// What became of the attributes that were to be set after it.
    pub set: Result<(), NfsError>,
    /// The verifier of the COMMIT after it, if that was executed.
    pub committed: Option<Verifier>,
}

/// What several WRITEs in one compound came to.
#[derive(Clone, Debug)]
pub struct WrittenSeveral {
    /// Of the first ones, one at least. The others are to be sent again: they were not
    /// executed, or what the server says of them makes no sense.
    pub results: Vec<WriteResult>,
    /// How the file moved.
    pub moved: PrePost,
    /// The verifier of the COMMIT after all of them, if that was executed.
    pub committed: Option<Verifier>,
}

/// What goes behind a WRITE, in the same compound and also if less was written than
/// was sent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// COMMIT of a range: offset and count, as [`Client::commit`] takes them.
    pub commit: Option<(u64, u32)>,
    /// Attributes to be set.
    pub attrs: Option<&'a NewAttributes>,
}

/// The change attribute of a GETATTR behind what was read, if the server says it.
pub(super) fn change_of(reply: &mut Reply) -> Option<u64> {
    let attrs = reply.attrs().ok()?;
    let told = CHANGE_ONLY.without(attrs.present).is_empty();
    told.then_some(attrs.change)
}

/// The server finds a message longer than the session allows. Our sizes are made to
/// fit it, but servers differ in what they count.
fn too_large(error: &NfsError) -> bool {
    matches!(
        error.status(),
        Some(Status::REQ_TOO_BIG | Status::REP_TOO_BIG)
    )
}

/// The first `limit` bytes of data in pieces.
fn front(data: &[Bytes], limit: u32) -> Cow<'_, [Bytes]> {
    let mut left = limit as usize;
    if data.iter().map(Bytes::len).sum::<usize>() <= left {
        return Cow::Borrowed(data);
    }
    let mut pieces = Vec::with_capacity(data.len());
    for piece in data {
        let piece = piece.slice(..piece.len().min(left));
        left -= piece.len();
        pieces.push(piece);
    }
    Cow::Owned(pieces)
}

/// Bytes of a request that may stand in front of the data of a WRITE, if it is not the only one:
/// they begin in its first page. Linux's server (seen: 6.1, svc_fill_write_vector) takes what begins
/// in a later page from that page's beginning: it writes the end of the data before, and the
/// operation's own arguments. No client of its age sends two WRITEs in a request, so other
/// servers may never have been tried with any either.
const FIRST_PAGE: usize = 4096;

/// The most of them that are neither data nor operations about them: headers, credential,
/// SEQUENCE, the file, and CLOSEs that go along.
const HEADERS: usize = 1280;

/// What that leaves for data and for the operations about them, which of a WRITE are 40 bytes.
pub const IN_FRONT: usize = FIRST_PAGE - HEADERS;

impl Client {
    /// READ of at most `count` bytes (and at most rsize), in the name of who
    /// opened the file. Fewer bytes without `eof` are the server's right; the
    /// rest has to be asked for.
    pub async fn read(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        offset: u64,
        count: u32,
    ) -> Result<ReadResult, NfsError> {
        let read = self.read_and_look(open, offset, count, false).await?;
        Ok(read.0)
    }

    /// The same. If `looks`, it also says the file's change attribute behind the READ, in the same
    /// compound, as far as the server tells: if it is the one that was known before, the data are of
    /// that version.
    pub async fn read_and_look(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        offset: u64,
        count: u32,
        looks: bool,
    ) -> Result<(ReadResult, Option<u64>), NfsError> {
        for _ in 0..STATE_RETRIES {
            let (stateid, token) = open.for_io();
            let reply = self
                .call(&open.cred, Class::Bulk, |c| {
                    // A session that came meanwhile may allow less.
                    c.put(&open.handle)
                        .read(stateid, offset, count.min(self.rsize()));
                    if looks {
                        c.then().get_attrs(CHANGE_ONLY);
                    }
                })
                .await;
            let mut reply = match reply {
                Err(error) if too_large(&error) && self.io_sizes.shrink_read() => continue,
                reply => reply?,
            };
            match reply.ok(Op::PutFh) {
                Err(error) if too_large(&error) && self.io_sizes.shrink_read() => continue,
                result => result.map(drop)?,
            }
            match reply.read() {
                Ok(read) if read.data.len() > count as usize => {
                    return Err(NfsError::Garbled(
                        Op::Read,
                        crate::xdr::DecodeError::TooLong("data"),
                    ));
                }
                Err(NfsError::Status(_, status)) if state_is_gone(status) => {
                    renew_state(self, open, token, status).await?;
                }
                Err(error) if too_large(&error) && self.io_sizes.shrink_read() => {}
                result => {
                    let read = result?;
                    self.metrics.bytes_read(read.data.len() as u64);
                    let change = looks.then(|| change_of(&mut reply)).flatten();
                    return Ok((read, change));
                }
            }
        }
        Err(NfsError::StateLost)
    }

    /// WRITE of at most wsize bytes, accepted from the writer when the open's
    /// [`fence`](OpenState::fence) was this: if locks were lost since then, the
    /// data are not written.
    pub async fn write(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        fence: u32,
        offset: u64,
        stable: Stable,
        data: &[Bytes],
    ) -> Result<Written, NfsError> {
        let data = (offset, data);
        self.write_and(open, data, fence, stable, Epilogue::default())
            .await
    }

    /// The same with something behind it.
    pub async fn write_and(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        (offset, data): (u64, &[Bytes]),
        fence: u32,
        stable: Stable,
        epilogue: Epilogue<'_>,
    ) -> Result<Written, NfsError> {
        for _ in 0..STATE_RETRIES {
            if open.fence() != fence {
                return Err(NfsError::StateLost);
            }
            let (stateid, token) = open.for_io();
            let reply = self
                .call(&open.cred, Class::Bulk, |c| {
                    // A session that came meanwhile may allow less: the rest is
                    // for the caller, as with any short WRITE.
                    c.once().put(&open.handle).get_attrs(CHANGE_ONLY).write(
                        stateid,
                        offset,
                        stable,
                        &front(data, self.wsize()),
                    );
                    if let Some(attrs) = epilogue.attrs {
                        c.set_attrs(StateId::ANONYMOUS, attrs);
                    }
                    c.then();
                    if let Some((offset, count)) = epilogue.commit {
                        c.commit(offset, count);
                    }
                    c.get_attrs(self.object());
                })
                .await;
            let mut reply = match reply {
                Err(error) if too_large(&error) && self.io_sizes.shrink_write() => {
                    continue;
                }
                reply => reply?,
            };
            let before = change_before(&mut reply)?;
            match reply.written() {
                Ok(result) => {
                    self.metrics.bytes_written(result.count.into());
                    let set = match epilogue.attrs {
                        Some(_) => reply.attrs_set(),
                        None => Ok(()),
                    };
                    let committed = epilogue.commit.and_then(|_| reply.committed().ok());
                    return Ok(Written {
                        result,
                        set,
                        committed,
                        moved: PrePost {
                            before,
                            after: reply.attrs().ok(),
                        },
                    });
                }
                Err(NfsError::Status(_, status)) if state_is_gone(status) => {
                    renew_state(self, open, token, status).await?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(NfsError::StateLost)
    }

    /// Several unstable WRITEs of few bytes in one compound, in their order, each as
    /// for [`Client::write`]; all together of at most wsize bytes, and but for the last one of at
    /// most [`IN_FRONT`]. `commit` as in [`Epilogue`].
    ///
    /// # Errors
    /// Those of the first WRITE. One of a later WRITE only ends the results.
    pub async fn write_several(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        pieces: &[(u64, &[Bytes])],
        fence: u32,
        commit: Option<(u64, u32)>,
    ) -> Result<WrittenSeveral, NfsError> {
        for _ in 0..STATE_RETRIES {
            if open.fence() != fence {
                return Err(NfsError::StateLost);
            }
            let (stateid, token) = open.for_io();
            let mut reply = self
                .call(&open.cred, Class::Bulk, |c| {
                    c.once().put(&open.handle).get_attrs(CHANGE_ONLY);
                    for (index, (offset, data)) in pieces.iter().enumerate() {
                        if index == 1 {
                            c.then();
                        }
                        c.write_fragment(stateid, *offset, Stable::Unstable, data);
                    }
                    c.then();
                    if let Some((offset, count)) = commit {
                        c.commit(offset, count);
                    }
                    c.get_attrs(self.object());
                })
                .await?;
            let before = change_before(&mut reply)?;
            let mut results = Vec::with_capacity(pieces.len());
            let failed = loop {
                match reply.written() {
                    Ok(result) => results.push(result),
                    Err(error) => break Some(error),
                }
                if results.len() == pieces.len() {
                    break None;
                }
            };
            match failed {
                Some(NfsError::Status(_, status))
                    if results.is_empty() && state_is_gone(status) =>
                {
                    renew_state(self, open, token, status).await?;
                    continue;
                }
                Some(error) if results.is_empty() => return Err(error),
                _ => {}
            }
            let bytes: u64 = results.iter().map(|result| u64::from(result.count)).sum();
            self.metrics.bytes_written(bytes);
            let all = failed.is_none();
            return Ok(WrittenSeveral {
                results,
                committed: commit.filter(|_| all).and_then(|_| reply.committed().ok()),
                moved: PrePost {
                    before,
                    after: reply.attrs().ok(),
                },
            });
        }
        Err(NfsError::StateLost)
    }

    /// COMMIT of a range; a count of 0 means to the end.
    pub async fn commit(
        self: &Arc<Self>,
        open: &Arc<OpenState>,
        offset: u64,
        count: u32,
    ) -> Result<(Verifier, Option<Attributes>), NfsError> {
        let mut reply = self
            .call(&open.cred, Class::Metadata, |c| {
                c.put(&open.handle)
                    .commit(offset, count)
                    .then()
                    .get_attrs(self.object());
            })
            .await?;
        let verifier = reply.ok(Op::PutFh)?.committed()?;
        Ok((verifier, reply.attrs().ok()))
    }
}
