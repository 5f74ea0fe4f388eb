//! Whether a call that should change something was refused rightly.

use super::super::history::{Answer, Call, Event, Kind, Path};
use super::super::state::{Led, State};
use super::Search;

/// Nothing is believed of what a name leads to.
pub(super) const UNKNOWN: Led = Err(0);

/// A rename that the kernel refused by what it believes of both names: a directory and something
/// else cannot replace each other, and nothing replaces the directory that it lies in.
pub(super) fn is_by_both_names(event: &Event) -> bool {
    let (Call::Rename { from, to, .. }, Some(Answer::Refused(errno))) =
        (&event.call, &event.answer)
    else {
        return false;
    };
    match *errno {
        libc::ENOTDIR | libc::EISDIR => true,
        libc::ENOTEMPTY => to.is_or_holds(*from),
        _ => false,
    }
}

/// The name that a call was refused for, if what is believed of that is enough to refuse it.
pub(super) fn refused_for(event: &Event) -> Option<Path> {
    let Some(Answer::Refused(errno)) = event.answer else {
        return None;
    };
    let (at, enough): (_, &[i32]) = match event.call {
        Call::Open { at, .. } => (at, &[libc::ENOENT, libc::EISDIR, libc::ELOOP]),
        Call::Rmdir(at) => (at, &[libc::ENOENT, libc::ENOTDIR]),
        Call::Unlink(at) => (at, &[libc::ENOENT, libc::EISDIR, libc::EPERM]),
        Call::Rename { from, .. } => (from, &[libc::ENOENT]),
        _ => return None,
    };
    enough.contains(&errno).then_some(at)
}

/// What a call is refused with for what its name is believed to lead to.
fn is_enough(call: &Call, kind: Result<Kind, i32>) -> &'static [i32] {
    match (call, kind) {
        (Call::Open { how, .. }, Err(libc::ENOENT)) if !how.create => &[libc::ENOENT],
        (Call::Rmdir(_) | Call::Unlink(_) | Call::Rename { .. }, Err(libc::ENOENT)) => {
            &[libc::ENOENT]
        }
        (Call::Open { .. }, Ok(Kind::Directory)) => &[libc::EISDIR],
        (Call::Open { .. }, Ok(Kind::Symlink)) => &[libc::ELOOP],
        (Call::Rmdir(_), Ok(Kind::File | Kind::Symlink)) => &[libc::ENOTDIR],
        (Call::Unlink(_), Ok(Kind::Directory)) => &[libc::EISDIR, libc::EPERM],
        _ => &[],
    }
}

impl Search<'_> {
    /// A change that was refused, and rightly so.
    pub(super) fn refuses(&self, state: &State, event: usize, call: &Call, errno: i32) -> bool {
        if call
            .fd()
            .is_some_and(|fd| !matches!(call, Call::Open { .. }) && state.opened(fd).is_none())
        {
            return false;
        }
        self.led(state, event).iter().any(|at| {
            let (at, learnt) = match (self.learnt[event], &at[..]) {
                (true, [at @ .., learnt]) => (at, *learnt),
                (_, at) => (at, UNKNOWN),
            };
            let hides = match *call {
                Call::Rmdir(path) => state.may_hide(at[0], path.name),
                Call::Rename { to, .. } => state.may_hide(at[1], to.name),
                _ => false,
            };
            let right = match state.outcome(call, &self.caller(event, at)) {
                Err(right) => right.contains(&errno),
                Ok(_) => hides && errno == libc::ENOTEMPTY,
            };
            let by_both = is_by_both_names(&self.history[event]);
            let above = by_both && errno == libc::ENOTEMPTY && at[2].is_ok() && at[3] == at[0];
            let unlike = by_both
                && match (state.kind(at[2]), state.kind(at[3])) {
                    (Ok(Kind::Directory), Ok(other)) => {
                        errno == libc::ENOTDIR && other != Kind::Directory
                    }
                    (Ok(_), Ok(other)) => errno == libc::EISDIR && other == Kind::Directory,
                    _ => false,
                };
            right
                || unlike
                || above
                || is_enough(call, state.kind(learnt)).contains(&errno)
                || self.missed(state, event, at, errno)
        })
    }

    /// The walk has led to what is gone, and the server said so; or the second walk was
    /// overtaken as the first. ("A call by path that meets what another host has removed.")
    pub(super) fn missed(&self, state: &State, event: usize, at: &[Led], errno: i32) -> bool {
        matches!(errno, libc::ENOENT | libc::ESTALE) && state.led_to_nothing(at)
            || errno == libc::ESTALE && self.overtaken[event]
    }
}
