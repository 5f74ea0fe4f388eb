//! Whether a history is one that the rule book allows.
//!
//! Every call takes effect at a moment between its beginning and its end, and all hosts
//! agree on the order of those moments: the judge looks for such an order, step by step
//! from the empty plot ([`State`]), trying all that may come next. What a rule lets a host
//! answer from what it was told before ([`rules`](super::rules)) may have been true earlier than
//! the call began; how much, the rule says. What a host has accepted and may
//! send later is two moments: one for the host itself, one for all others.
//!
//! A call that sees and does not change is put as soon as it agrees with the state: if
//! there is an order at all, there is one with it in this place. So only changes are
//! tried in every order, and what was tried once is not tried again.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use super::history::{Answer, Call, Event, Name, OBSERVER, Path, Time, text};
use super::rules::Rules;
use super::state::{Caller, Led, PLOT, State};

/// Steps after which nothing is said about a history.
const ENOUGH: usize = 300_000;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Allowed,
    /// Not allowed by any rule: what could not be placed, and the whole history.
    Wrong(String),
    /// Too many orders to try them all.
    Open,
}

/// What of a call takes effect at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// What was sent before the session was lost.
    First,
    Act,
    /// O_TRUNC, once the file is open.
    Cut,
    /// What was accepted reaches the server.
    Flush,
    /// Of what was read.
    Slot(u8),
    Size,
}

#[derive(Clone, Debug)]
struct Piece {
    event: usize,
    part: Part,
    /// The pieces that come first.
    after: u128,
}

/// A name on a call's way, as the host may know it.
#[derive(Clone, Debug)]
struct Walk {
    /// The walk that leads to the directory; without: the plot.
    above: Option<usize>,
    name: Name,
    /// What must have come before what it leads to was true.
    after: u128,
    /// The same if it leads nowhere.
    missing_after: u128,
    /// Its event is over when these are.
    until: u128,
}

struct Search<'a> {
    history: &'a [Event],
    pieces: Vec<Piece>,
    walks: Vec<Walk>,
    /// Of each event, the walks in the order of its paths, and all pieces.
    ways: Vec<Vec<Option<usize>>>,
    all: Vec<u128>,
    volatile: bool,
    tried: HashSet<u64>,
    steps: usize,
    /// The most that could be placed.
    best: u128,
}

/// Judges one history. Events may come in any order.
pub(super) fn judge(history: &[Event], rules: &Rules<'_>) -> Verdict {
    let said = judge_without(history, rules, &HashSet::new());
    let Verdict::Wrong(why) = said else {
        return said;
    };
    let clashing = clashing(history, rules);
    Verdict::Wrong(format!("{why}\nThese alone cannot be:\n{clashing}"))
}

/// What changes nothing in a history that is wrong, and makes it wrong: without any one of
/// these it would be allowed, or nothing could be said.
fn clashing(history: &[Event], rules: &Rules<'_>) -> String {
    let mut without = HashSet::new();
    for (number, event) in history.iter().enumerate() {
        let refused = matches!(event.answer, Some(Answer::Refused(_)));
        if is_read(&event.call) || refused && !event.unsure {
            without.insert(number);
            if !matches!(judge_without(history, rules, &without), Verdict::Wrong(_)) {
                without.remove(&number);
            }
        }
    }
    let left: Vec<Event> = (history.iter().enumerate())
        .filter(|(number, event)| {
            let sees = is_read(&event.call) || matches!(event.answer, Some(Answer::Refused(_)));
            sees && !without.contains(number)
        })
        .map(|(_, event)| event.clone())
        .collect();
    text(&left)
}

fn judge_without(history: &[Event], rules: &Rules<'_>, without: &HashSet<usize>) -> Verdict {
    let Some(mut search) = Search::new(history, rules, without) else {
        return Verdict::Open;
    };
    let mut state = State::new(search.walks.len());
    match search.go(&mut state, 0) {
        Some(true) => Verdict::Allowed,
        None => Verdict::Open,
        Some(false) => Verdict::Wrong(search.report()),
    }
}

fn parts(event: &Event, waits: bool, direct: bool) -> Vec<Part> {
    let by_name = !event.call.paths().is_empty();
    if waits && matches!(event.answer, Some(Answer::Done) | None) {
        return vec![Part::Act, Part::Flush];
    }
    let was_sent = event.began < event.ended;
    if event.unsure && was_sent && by_name && !is_read(&event.call) {
        return [vec![Part::First], steady_parts(event, direct)].concat();
    }
    steady_parts(event, direct)
}

fn steady_parts(event: &Event, direct: bool) -> Vec<Part> {
    let done = matches!(event.answer, Some(Answer::Done) | None);
    match event.call {
        Call::Open { how, .. } if how.truncate && done => vec![Part::Act, Part::Cut],
        Call::Write { .. } | Call::Append { .. } if done && !direct => {
            vec![Part::Act, Part::Flush]
        }
        Call::Read(_) => match &event.answer {
            Some(Answer::Data(data)) => {
                let slots = (0..data.len() as u8).map(Part::Slot);
                slots.chain([Part::Size]).collect()
            }
            _ => vec![Part::Act],
        },
        _ => vec![Part::Act],
    }
}

/// Its descriptor was opened with O_DIRECT.
fn is_direct(history: &[Event], event: &Event) -> bool {
    let Some(mine) = event.call.fd() else {
        return false;
    };
    history
        .iter()
        .any(|other| matches!(other.call, Call::Open { fd, how, .. } if fd == mine && how.direct))
}

fn is_read(call: &Call) -> bool {
    matches!(
        call,
        Call::Readlink(_) | Call::Stat(_) | Call::List(_) | Call::Read(_) | Call::Fstat(_)
    )
}

impl<'a> Search<'a> {
    /// `None`: the history has more pieces than there are bits for.
    fn new(history: &'a [Event], rules: &Rules<'_>, without: &HashSet<usize>) -> Option<Self> {
        let mut search = Self {
            history,
            pieces: Vec::new(),
            walks: Vec::new(),
            ways: Vec::new(),
            all: vec![0; history.len()],
            volatile: rules.volatile,
            tried: HashSet::new(),
            steps: 0,
            best: 0,
        };
        for (number, event) in history.iter().enumerate() {
            // Of who was killed while he only looked there is nothing to say.
            let killed = event.answer.is_none() && is_read(&event.call);
            if killed || without.contains(&number) {
                continue;
            }
            for part in parts(event, rules.waits(number), is_direct(history, event)) {
                search.all[number] |= 1u128.checked_shl(search.pieces.len() as u32)?;
                search.pieces.push(Piece {
                    event: number,
                    part,
                    after: 0,
                });
            }
        }
        search.order(rules);
        Some(search)
    }

    /// The pieces of an event that are over when it has ended.
    fn prompt(&self, event: usize) -> u128 {
        let flush = self
            .pieces
            .iter()
            .position(|piece| piece.event == event && piece.part == Part::Flush);
        self.all[event] & !flush.map_or(0, |bit| 1 << bit)
    }

    /// What comes before something that `event` does or sees and that was true at `since`
    /// at the earliest. `tells`: an earlier call of the same host has told of it.
    fn before(&self, event: usize, since: Time, tells: impl Fn(usize) -> bool) -> u128 {
        let this = &self.history[event];
        let mut before = 0;
        for (number, other) in self.history.iter().enumerate() {
            if number == event {
                continue;
            }
            let ended = other.ended;
            let killed = other.answer.is_none();
            let own = other.host == this.host && ended < this.began;
            if this.host == OBSERVER && other.host != OBSERVER {
                before |= self.all[number];
            } else if !killed && (ended < since || own && tells(number))
                || killed && own && since >= this.began
            {
                before |= self.prompt(number);
            }
        }
        before
    }

    fn order(&mut self, rules: &Rules<'_>) {
        for event in 0..self.history.len() {
            let ways = self.walk(event, rules);
            self.ways.push(ways);
        }
        for bit in 0..self.pieces.len() {
            let Piece { event, part, .. } = self.pieces[bit];
            let since = match part {
                Part::Act => rules.acts_since(event),
                Part::First => self.history[event].began,
                Part::Cut | Part::Flush => self.history[event].began,
                Part::Slot(_) | Part::Size => rules.data_since(event),
            };
            let mut after = self.before(event, since, |other| rules.informs(other, event));
            let follows = match part {
                Part::Cut | Part::Flush => true,
                Part::Act => bit > 0 && self.pieces[bit - 1].part == Part::First,
                _ => false,
            };
            if follows {
                after |= 1 << (bit - 1);
            }
            self.pieces[bit].after = after;
        }
    }

    /// The walks of an event.
    fn walk(&mut self, event: usize, rules: &Rules<'_>) -> Vec<Option<usize>> {
        let call = self.history[event].call;
        let mut ways = Vec::new();
        let step = |search: &mut Self, above, at: Path| {
            let window = rules.walks_since(event, at);
            let tells = |other: usize| rules.names(other, at);
            let walk = Walk {
                above,
                name: at.name,
                after: search.before(event, window.0, tells),
                missing_after: search.before(event, window.1, tells),
                until: search.all[event],
            };
            search.walks.push(walk);
            search.walks.len() - 1
        };
        let paths = match call {
            Call::List(Some(name)) => vec![Path { dir: None, name }],
            _ => call.paths(),
        };
        let done = matches!(self.history[event].answer, Some(Answer::Done) | None);
        let same = self.history[event].answer == Some(Answer::Same);
        for (number, path) in paths.into_iter().enumerate() {
            let above = path
                .dir
                .map(|name| step(self, None, Path { dir: None, name }));
            let acts_on_object = match call {
                Call::Chmod(..)
                | Call::Truncate(_)
                | Call::Stat(_)
                | Call::Readlink(_)
                | Call::List(_) => true,
                Call::Link(..) => number == 0,
                _ => same,
            };
            ways.push(match acts_on_object {
                true => Some(step(self, above, path)),
                false => above,
            });
            // "A file that is known by two names."
            if done && matches!(call, Call::Open { how, .. } if !how.exclusive) {
                ways.push(Some(step(self, above, path)));
            }
        }
        ways
    }

    /// Takes in where names lead now, for all that may be on its way there.
    fn look(&self, state: &mut State, done: u128) {
        for (number, walk) in self.walks.iter().enumerate() {
            if walk.until & !done == 0 {
                state.found[number].clear();
                continue;
            }
            if walk.after & !done != 0 && walk.missing_after & !done != 0 {
                continue;
            }
            let above = match walk.above {
                None => vec![Ok(PLOT)],
                Some(above) => state.found[above].clone(),
            };
            for dir in above {
                let now = state.entry(dir, walk.name);
                let after = match now {
                    Err(libc::ENOENT) => walk.missing_after,
                    _ => walk.after,
                };
                if after & !done == 0 && !state.found[number].contains(&now) {
                    state.found[number].push(now);
                    state.found[number].sort_unstable();
                }
            }
        }
    }

    /// Where the walks of an event may have led: one list for each way to combine them.
    fn led(&self, state: &State, event: usize) -> Vec<Vec<Led>> {
        let mut led = vec![Vec::new()];
        for way in &self.ways[event] {
            let to = match way {
                None => vec![Ok(PLOT)],
                Some(walk) => state.found[*walk].clone(),
            };
            led = led
                .into_iter()
                .flat_map(|before: Vec<Led>| {
                    to.iter().map(move |&to| {
                        let mut all = before.clone();
                        all.push(to);
                        all
                    })
                })
                .collect();
        }
        led
    }

    fn caller<'b>(&self, event: usize, at: &'b [Led]) -> Caller<'b> {
        let this = &self.history[event];
        Caller {
            host: this.host,
            event,
            began: this.began,
            ended: this.ended,
            at,
            direct: is_direct(self.history, this),
            waits: matches!(this.call, Call::Chmod(..))
                && self
                    .pieces
                    .iter()
                    .any(|piece| piece.event == event && piece.part == Part::Flush),
        }
    }

    /// Whether a piece that changes nothing agrees with the state.
    fn agrees(&self, state: &State, event: usize, part: Part) -> bool {
        let this = &self.history[event];
        let Some(answer) = &this.answer else {
            return false;
        };
        if part == Part::First {
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
                state.opened(*fd).is_some()
                    && self
                        .views(state, *fd, host)
                        .iter()
                        .any(|view| view.len() == data.len())
            }
            (Call::Fstat(fd), Answer::Seen(seen), _) => {
                state.opened(*fd).is_some() && {
                    let now = state.seen_by(*fd, host);
                    now.mode == seen.mode && (self.volatile || now.size == seen.size)
                }
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
                        (Answer::Seen(seen), Ok(now)) => {
                            // Hosts that have it open may keep hidden names.
                            let hidden = now.links..=now.links + 3;
                            let links = seen.kind == super::history::Kind::Directory
                                || hidden.contains(&seen.links);
                            let size = self.volatile || seen.size == now.size;
                            links && size && (seen.kind, seen.mode) == (now.kind, now.mode)
                        }
                        (Answer::Refused(errno), Err(right)) => right.contains(errno),
                        (Answer::Refused(errno), Ok(_)) => self.missed(state, at, *errno),
                        _ => false,
                    })
            }
            (Call::List(name), _, _) => {
                let ways = match name {
                    None => vec![vec![Ok(PLOT)]],
                    Some(_) => self.led(state, event),
                };
                ways.iter().any(|at| match (answer, state.names(at[0])) {
                    (Answer::Listed(names), Ok(now)) => *names == now,
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

    /// What a host may see of a file now.
    fn views(&self, state: &State, fd: super::history::Fd, host: u8) -> Vec<Vec<u32>> {
        let mut views = vec![state.view(fd, host)];
        if self.volatile && host != OBSERVER {
            views.push(state.full_view(fd));
        }
        views
    }

    /// A change that was refused, and rightly so.
    fn refuses(&self, state: &State, event: usize, call: &Call, errno: i32) -> bool {
        if call
            .fd()
            .is_some_and(|fd| !matches!(call, Call::Open { .. }) && state.opened(fd).is_none())
        {
            return false;
        }
        self.led(state, event).iter().any(|at| {
            let hides = match *call {
                Call::Rmdir(path) => state.may_hide(at[0], path.name),
                Call::Rename { to, .. } => state.may_hide(at[1], to.name),
                _ => false,
            };
            let right = match state.outcome(call, &self.caller(event, at)) {
                Err(right) => right.contains(&errno),
                Ok(_) => hides && errno == libc::ENOTEMPTY,
            };
            right || self.missed(state, at, errno)
        })
    }

    /// The walk has led to what is gone, and the server said so.
    fn missed(&self, state: &State, at: &[Led], errno: i32) -> bool {
        matches!(errno, libc::ENOENT | libc::ESTALE) && state.led_to_nothing(at)
    }

    /// What a piece that changes something may lead to.
    fn changes(&self, state: &State, event: usize, part: Part) -> Vec<State> {
        let this = &self.history[event];
        let done = matches!(this.answer, None | Some(Answer::Done)) || part == Part::First;
        if !done {
            return Vec::new();
        }
        if part == Part::Flush {
            return state.flush(event).into_iter().collect();
        }
        let fd = this.call.fd();
        let opens = matches!(this.call, Call::Open { .. }) && part != Part::Cut;
        if !opens && fd.is_some_and(|fd| state.opened(fd).is_none()) {
            return Vec::new();
        }
        let mut next: Vec<State> = Vec::new();
        for at in self.led(state, event) {
            let by = self.caller(event, &at);
            let outcome = match (part, fd) {
                (Part::Cut, Some(fd)) => state.cut_on_open(fd, &by),
                _ => state.outcome(&this.call, &by),
            };
            let outcome = match outcome {
                Ok(state) => Some(state),
                Err([libc::ENOTDIR] | [libc::EISDIR, ..]) => {
                    state.removed_all_the_same(&this.call, at[0])
                }
                Err(_) => None,
            };
            if let Some(state) = outcome
                && !next.contains(&state)
            {
                next.push(state);
            }
        }
        next
    }

    /// Puts everything that sees and agrees, and hears where names lead.
    fn settle(&mut self, state: &mut State, done: &mut u128) {
        loop {
            self.look(state, *done);
            let before = *done;
            for (bit, piece) in self.pieces.iter().enumerate() {
                let free = *done & 1 << bit == 0 && piece.after & !*done == 0;
                if free && self.agrees(state, piece.event, piece.part) {
                    *done |= 1 << bit;
                }
            }
            if before == *done {
                break;
            }
        }
        if done.count_ones() > self.best.count_ones() {
            self.best = *done;
        }
    }

    /// Whether there is an order for all that is left. `None`: it takes too long to say.
    fn go(&mut self, state: &mut State, mut done: u128) -> Option<bool> {
        self.settle(state, &mut done);
        let all = u128::MAX >> (128 - self.pieces.len().max(1));
        if done == all || self.pieces.is_empty() {
            return Some(true);
        }
        self.steps += 1;
        if self.steps > ENOUGH {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (&*state, done).hash(&mut hasher);
        if !self.tried.insert(hasher.finish()) {
            return Some(false);
        }
        let mut free: Vec<usize> = (0..self.pieces.len())
            .filter(|bit| done & 1 << bit == 0 && self.pieces[*bit].after & !done == 0)
            .collect();
        // Who must be over first is tried first.
        free.sort_by_key(|bit| {
            let event = &self.history[self.pieces[*bit].event];
            (event.answer.is_none(), event.ended)
        });
        for &bit in &free {
            let Piece { event, part, .. } = self.pieces[bit];
            for mut next in self.changes(state, event, part) {
                match self.go(&mut next, done | 1 << bit) {
                    Some(false) => {}
                    said => return said,
                }
            }
        }
        // Of who was killed nothing need have been done; nor the rest of it.
        for &bit in &free {
            let Piece { event, part, .. } = self.pieces[bit];
            let killed = self.history[event].answer.is_none() && part != Part::Flush;
            if killed || part == Part::First {
                let mut next = state.clone();
                let dropped = match part {
                    Part::Act => self.all[event] & !done,
                    _ => 1 << bit,
                };
                match self.go(&mut next, done | dropped) {
                    Some(false) => {}
                    said => return said,
                }
            }
        }
        Some(false)
    }

    fn report(&self) -> String {
        let mut stuck: Vec<String> = Vec::new();
        for (bit, piece) in self.pieces.iter().enumerate() {
            if self.best & 1 << bit == 0 && piece.after & !self.best == 0 {
                stuck.push(format!("{:?} of {}", piece.part, self.history[piece.event]));
            }
        }
        format!(
            "no rule allows this. At the latest these could not be placed:\n{}\nAll:\n{}",
            stuck.join("\n"),
            text(self.history)
        )
    }
}
