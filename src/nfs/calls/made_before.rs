//! What an earlier sending of changes that were accepted ahead (`writeback`) has made, and how it is
//! known again.
//!
//! A new file is known by the verifier that was drawn for it when it was accepted, so its OPEN may
//! run again. Servers that keep that in the times of the file (RFC 8881 §18.16.3) know it no longer when these
//! have moved, and say that the name exists. Then the file is ours
//!
//! - if it has the times, to the nanosecond, and the size that one of the sendings has [set](Mark); one
//!   of the times is this host's clock, unless a program has set both;
//! - or if its time of access is a half of the verifier, as such servers keep it (seen: nfs-ganesha, Linux),
//!   and it is no longer than its data: the server has died behind the OPEN or the WRITE, which
//!   moves the other time.
//!
//! Its data and attributes are sent once more.
//!
//! What else "exists already" or "is not there" when a compound runs a second time, with the session and
//! its reply cache gone, was done by the first: the directory is one in which nobody else makes
//! names, or else the change would not have been accepted.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::client::Client;
use super::super::fore_channel::gate::Past;
use super::super::proto::attrs::{Attributes, NewAttributes, NewTime};
use super::super::proto::ops::{Claim, Create, Op};
use super::super::proto::reply::NfsError;
use super::super::proto::types::{FileHandle, NfsTime};
use super::super::session::slots::Class;
use super::name_changes::{NameChange, NameChanged, NewFile};
use crate::rpc::auth::Credential;

/// Times and size that a sending gives a new file, if it runs to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    atime: NfsTime,
    mtime: NfsTime,
    size: u64,
}

impl Mark {
    /// Of so many bytes of data, and these attributes behind them. `None` if a time is the server's.
    pub fn of(attrs: &NewAttributes, data: u64) -> Option<Self> {
        match (attrs.atime, attrs.mtime) {
            (Some(NewTime::At(atime)), Some(NewTime::At(mtime))) => Some(Self {
                atime,
                mtime,
                size: attrs.size.unwrap_or(data),
            }),
            _ => None,
        }
    }

    fn is_on(self, attrs: &Attributes) -> bool {
        (self.atime, self.mtime, self.size) == (attrs.atime, attrs.mtime, attrs.size)
    }
}

impl NewFile<'_> {
    fn len(&self) -> u64 {
        self.data.iter().map(|data| data.len() as u64).sum()
    }
}

impl Client {
    /// What a change has come to that an earlier sending has made.
    pub(super) async fn found_made(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
        change: &NameChange<'_>,
    ) -> Result<NameChanged, NfsError> {
        let (NameChange::Directory(name, _) | NameChange::Symlink(name, _)) = change else {
            return Ok(NameChanged::Done);
        };
        let (handle, attrs) = self.look_up_made(cred, dir, name).await?;
        Ok(NameChanged::Object(handle, Some(attrs)))
    }

    /// What a name leads to that an earlier sending may have made.
    async fn look_up_made(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
        name: &[u8],
    ) -> Result<(FileHandle, Attributes), NfsError> {
        let mut reply = self
            .fore
            .call_past(Past::Gate, cred, Class::Metadata, |c| {
                c.put(dir)
                    .lookup(name)
                    .get_handle()
                    .get_attrs(self.object());
            })
            .await?;
        reply.ok(Op::PutFh)?.ok(Op::Lookup)?;
        Ok((reply.handle()?, reply.attrs()?))
    }

    /// The file of this name, if it is the one that an earlier sending has made: it is opened, and all
    /// else is done to it once more. `None`: it is another's.
    pub(super) async fn found_file(
        self: &Arc<Self>,
        cred: &Arc<Credential>,
        dir: &FileHandle,
        name: &[u8],
        file: &NewFile<'_>,
    ) -> Option<Result<NameChanged, NfsError>> {
        let (handle, attrs) = self.look_up_made(cred, dir, name).await.ok()?;
        if !self.is_made(file, &attrs) {
            return None;
        }
        let reply = self
            .fore
            .call_past(Past::Gate, cred, Class::Metadata, |c| {
                c.put(&handle)
                    .once()
                    .open(
                        self.open_owner(&file.open.owner.to_be_bytes()),
                        file.access,
                        &Create::No,
                        Claim::Handle,
                    )
                    .get_handle();
                self.add_rest_of_file(c, file);
            })
            .await;
        Some(reply.and_then(|mut reply| {
            reply.ok(Op::PutFh)?;
            self.take_file(&mut reply, file).map(NameChanged::File)
        }))
    }

    /// A file with these attributes is the one that was made with this request.
    fn is_made(&self, file: &NewFile<'_>, attrs: &Attributes) -> bool {
        let (_, set) = self.split_attrs(file);
        let now = Mark::of(&set, file.len());
        let mut marks = file.earlier.iter().copied().chain(now);
        marks.any(|mark| mark.is_on(attrs))
            || attrs.size <= file.len() && is_kept_in(file.verifier, attrs.atime)
    }
}

/// A server that keeps verifiers in times has this one there: a half of it, in its own byte order, and
/// without the sign where times are of 31 bits.
fn is_kept_in(verifier: [u8; 8], time: NfsTime) -> bool {
    let [a, b, c, d, e, f, g, h] = verifier;
    let halves = [[a, b, c, d], [e, f, g, h]];
    let numbers = halves.map(|half| [u32::from_be_bytes(half), u32::from_le_bytes(half)]);
    let mut numbers = numbers.into_iter().flatten();
    let is = |number: u32| time.sec == i64::from(number);
    time.nsec == 0 && numbers.any(|number| is(number) || is(number & 0x7fff_ffff))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERIFIER: [u8; 8] = [0x81, 2, 3, 4, 5, 6, 7, 0x88];

    fn time(sec: i64) -> NfsTime {
        NfsTime { sec, nsec: 0 }
    }

    #[test]
    fn a_verifier_is_found_in_a_time_as_ganesha_and_linux_keep_it() {
        for kept in [0x0403_0281, 0x0807_0605_i64 | 0x8000_0000, 0x0807_0605] {
            assert!(is_kept_in(VERIFIER, time(kept)), "{kept:x}");
        }
        for kept in [0x8102_0304, 0x0102_0304, 0x0506_0788] {
            assert!(is_kept_in(VERIFIER, time(kept)), "{kept:x}");
        }
        assert!(!is_kept_in(VERIFIER, time(1_796_000_000)));
        let moved = NfsTime {
            nsec: 1,
            ..time(0x8102_0304)
        };
        assert!(!is_kept_in(VERIFIER, moved));
    }

    #[test]
    fn a_mark_is_of_times_of_this_host_alone() {
        let at = |sec| Some(NewTime::At(time(sec)));
        let set = NewAttributes {
            atime: at(7),
            mtime: at(8),
            ..NewAttributes::default()
        };
        let mark = Mark::of(&set, 5).expect("a mark");
        let is = Attributes {
            atime: time(7),
            mtime: time(8),
            size: 5,
            ..Attributes::default()
        };
        assert!(mark.is_on(&is));
        assert!(!mark.is_on(&Attributes { size: 6, ..is }));
        let server = NewAttributes {
            mtime: Some(NewTime::Server),
            ..set
        };
        assert_eq!(Mark::of(&server, 5), None);
    }
}
