//! What a call that sees, and changes nothing, may show of a state.

use super::super::history::{Answer, Call, Event, Fd, Kind, Name, OBSERVER, Path, Seen};
use super::super::rules::Rules;
use super::super::state::{NodeId, PLOT, State};
use super::{Part, Search};

/// The sizes, in slots, that a file may be shown with.
struct Sizes {
    least: usize,
    more: Vec<usize>,
}

impl Sizes {
    fn contains(&self, size: usize) -> bool {
        size == self.least || self.more.contains(&size)
    }
}

/// A write whose place is known and that its host has accepted.
fn is_placed_write(event: &Event) -> bool {
    matches!(event.call, Call::Write { .. }) && event.answer == Some(Answer::Done)
}

impl Search<'_> {
    /// This host's own writes of before, which a call shows on top of what it believes.
    pub(super) fn own_writes(&self, event: usize, rules: &Rules<'_>) -> Vec<usize> {
        let this = &self.history[event];
        (0..self.history.len())
            .filter(|&number| {
                let other = &self.history[number];
                is_placed_write(other)
                    && other.host == this.host
                    && other.ended < this.began
                    && rules.informs(number, event)
            })
            .collect()
    }

    /// An own write says nothing of what others have done to the rest of the file: what is
    /// shown of that may be older than the write. ("This host's own
    /// writes lie on top.")
    pub(super) fn is_laid_over(&self, write: usize, event: usize, part: Part) -> bool {
        let Call::Write { slot: written, .. } = self.history[write].call else {
            return false;
        };
        let shows = match part {
            Part::Slot(slot) => slot != written,
            Part::Size => true,
            Part::Act => matches!(self.history[event].answer, Some(Answer::Seen(_))),
            _ => false,
        };
        shows && is_placed_write(&self.history[write])
    }

    /// The sizes that a file may be shown with where it had so many slots at a moment: this
    /// host's own writes lie on top; those that are still under way, or not.
    fn shows_size(&self, state: &State, done: u128, event: usize, file: (NodeId, usize)) -> Sizes {
        let this = &self.history[event];
        let (node, len) = file;
        let end = |number: usize| match self.history[number].call {
            Call::Write { fd, slot, .. } if state.opened(fd) == Some(node) => usize::from(slot) + 1,
            _ => 0,
        };
        let is_left = |number: &usize| self.prompt(*number) & !done != 0;
        let due = self.own[event].iter().copied().filter(is_left);
        let least = due.map(end).max().unwrap_or(0).max(len);
        let may = |number: &usize| {
            let other = &self.history[*number];
            other.host == this.host
                && other.began <= this.ended
                && matches!(other.answer, Some(Answer::Done) | None)
        };
        let others = (0..self.history.len()).filter(may).filter(is_left);
        let more = others.map(end).filter(|&size| size > least).collect();
        Sizes { least, more }
    }

    /// Takes in which objects had the attributes that calls by path show. They may be believed
    /// from before the name was seen to lead there: from another name of the same file.
    pub(super) fn look_at_attributes(&self, state: &mut State, done: u128) {
        for (bit, piece) in self.pieces.iter().enumerate() {
            let this = &self.history[piece.event];
            let (Call::Stat(_), Some(Answer::Seen(seen))) = (this.call, &this.answer) else {
                continue;
            };
            if done & 1 << bit != 0 || piece.after & !done != 0 {
                continue;
            }
            for node in 0..state.nodes() {
                let is_listed = |nodes: &Vec<NodeId>| nodes.contains(&node);
                if !state.shown.get(&piece.event).is_some_and(is_listed)
                    && self.has_attributes(state, done, piece.event, node, *seen)
                {
                    state.shown.entry(piece.event).or_default().push(node);
                }
            }
        }
    }

    /// A host may show an object with these attributes now.
    fn has_attributes(
        &self,
        state: &State,
        done: u128,
        event: usize,
        node: NodeId,
        seen: Seen,
    ) -> bool {
        let Ok(now) = state.seen(Ok(node), self.history[event].host) else {
            return false;
        };
        // Hosts that have it open may keep hidden names.
        let hidden = now.links..=now.links + 3;
        let links = seen.kind == Kind::Directory || hidden.contains(&seen.links);
        let sizes = self.shows_size(state, done, event, (node, now.size as usize));
        let size = self.volatile || sizes.contains(seen.size as usize);
        links && size && (seen.kind, seen.mode) == (now.kind, now.mode)
    }

    /// Whether a piece that changes nothing agrees with the state.
    pub(super) fn agrees(&self, state: &State, done: u128, event: usize, part: Part) -> bool {
        let this = &self.history[event];
        let Some(answer) = &this.answer else {
            return false;
        };
        if part.is_first() {
            return false;
        }
        let host = this.host;
        match (&this.call, answer, part) {
            (Call::Read(fd), Answer::Data(data), Part::Slot(slot)) => {
                let Some(_) = state.opened(*fd) else {
                    return false;
                };
                let slot = usize::from(slot);
                self.views(state, *fd, host)
                    .iter()
                    .any(|view| view.get(slot).copied().unwrap_or(0) == data[slot])
            }
            (Call::Read(fd), Answer::Data(data), _) => {
                let Some(node) = state.opened(*fd) else {
                    return false;
                };
                self.views(state, *fd, host).iter().any(|view| {
                    self.shows_size(state, done, event, (node, view.len()))
                        .contains(data.len())
                })
            }
            (Call::Fstat(fd), Answer::Seen(seen), _) => {
                let Some(node) = state.opened(*fd) else {
                    return false;
                };
                let now = state.seen_by(*fd, host);
                let sizes = self.shows_size(state, done, event, (node, now.size as usize));
                now.mode == seen.mode && (self.volatile || sizes.contains(seen.size as usize))
            }
            // The second walk was overtaken as the first.
            (Call::List(_) | Call::Readlink(_), Answer::Refused(libc::ESTALE), _)
                if self.overtaken[event] =>
            {
                true
            }
            // Of an open file that is gone.
            (call, Answer::Refused(libc::ESTALE), _) if call.paths().is_empty() => {
                let fd = call.fd();
                fd.is_some_and(|fd| state.opened(fd).is_some() && state.is_nameless(fd))
            }
            (Call::Stat(_), _, _) => {
                let ways = self.led(state, event);
                ways.iter()
                    .any(|at| match (answer, state.seen(at[0], host)) {
                        (Answer::Seen(_), Ok(_)) => {
                            let node = at[0].unwrap_or(PLOT);
                            let shown = state.shown.get(&event);
                            shown.is_some_and(|nodes| nodes.contains(&node))
                        }
                        (Answer::Refused(errno), now) => {
                            now.is_err_and(|right| right.contains(errno))
                                || self.missed(state, event, at, *errno)
                        }
                        _ => false,
                    })
            }
            (Call::List(name), _, _) => {
                let ways = match name {
                    None => vec![vec![Ok(PLOT)]],
                    Some(_) => self.led(state, event),
                };
                ways.iter().any(|at| match (answer, state.names(at[0])) {
                    (Answer::Listed(names), Ok(now)) => self.lists(event, names, &now),
                    (Answer::Refused(errno), Err(right)) => right.contains(errno),
                    _ => false,
                })
            }
            (Call::Readlink(_), _, _) => {
                let ways = self.led(state, event);
                ways.iter().any(|at| match (answer, state.text(at[0])) {
                    (Answer::Text(text), Ok(now)) => *text == now,
                    (Answer::Refused(errno), Err(right)) => right.contains(errno),
                    _ => false,
                })
            }
            (Call::Rename { .. }, Answer::Same, _) => {
                let ways = self.led(state, event);
                ways.iter().any(|at| at[0].is_ok() && at[0] == at[1])
            }
            (call, Answer::Refused(errno), Part::Act) => self.refuses(state, event, call, *errno),
            _ => false,
        }
    }

    /// A listing may have these names where the directory has those now. What a rename moves while
    /// a server reads its directory may be missed by both names, or be shown by both (readdir(3)).
    fn lists(&self, event: usize, names: &[Name], now: &[Name]) -> bool {
        if names == now || !self.torn {
            return names == now;
        }
        let this = &self.history[event];
        let beside = |other: &&Event| other.began <= this.ended && this.began <= other.ended;
        let moving: Vec<Path> = (self.history.iter().filter(beside))
            .filter_map(|other| match other.call {
                Call::Rename { from, to, .. } => Some([from, to]),
                _ => None,
            })
            .flatten()
            .collect();
        let stays = |names: &[Name]| -> Vec<Name> {
            let moves = |name: Name| moving.iter().any(|path| path.name == name);
            names.iter().copied().filter(|name| !moves(*name)).collect()
        };
        stays(names) == stays(now)
    }

    /// What a host may see of a file now.
    fn views(&self, state: &State, fd: Fd, host: u8) -> Vec<Vec<u32>> {
        let mut views = vec![state.view(fd, host)];
        if self.volatile && host != OBSERVER {
            views.push(state.full_view(fd));
            views.extend(state.kept_view(fd, host));
        }
        views
    }
}
