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

mod refused;
mod shown;

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use self::refused::{UNKNOWN, is_by_both_names, refused_for};
use super::history::{Answer, Call, Event, Name, OBSERVER, Path, Time, is_direct, text};
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
    /// O_TRUNC of that.
    FirstCut,
    Act,
    /// O_TRUNC, once the file is open.
    Cut,
    /// What was accepted reached the server before that lost it, and is sent once more.
    Early,
    /// What was accepted reaches the server.
    Flush,
    /// Of what was read.
    Slot(u8),
    Size,
}

impl Part {
    fn is_first(self) -> bool {
        matches!(self, Self::First | Self::FirstCut)
    }

    /// It need not be over when its call is.
    fn is_late(self) -> bool {
        matches!(self, Self::Early | Self::Flush)
    }
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
    /// Of each event, the host's own writes that it shows whatever else it knows.
    own: Vec<Vec<usize>>,
    /// Of each event, whether its last walk is to what it was refused for.
    learnt: Vec<bool>,
    /// Of each event, whether something has changed on its way meanwhile.
    overtaken: Vec<bool>,
    /// Of each event, whether it is an open that nobody need have been asked for.
    unasked: Vec<bool>,
    volatile: bool,
    torn: bool,
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
        let first = match event.call {
            Call::Open { how, .. } if how.truncate => vec![Part::First, Part::FirstCut],
            _ => vec![Part::First],
        };
        return [first, steady_parts(event, direct)].concat();
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

fn is_read(call: &Call) -> bool {
    matches!(
        call,
        Call::Readlink(_) | Call::Stat(_) | Call::List(_) | Call::Read(_) | Call::Fstat(_)
    )
}

/// Adds what is not there yet; the order says nothing.
fn found<T: Ord>(all: &mut Vec<T>, one: Option<T>) {
    if let Some(one) = one
        && let Err(place) = all.binary_search(&one)
    {
        all.insert(place, one);
    }
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
            own: vec![Vec::new(); history.len()],
            learnt: vec![false; history.len()],
            overtaken: (0..history.len())
                .map(|event| rules.is_overtaken(event))
                .collect(),
            unasked: (0..history.len())
                .map(|event| rules.is_unasked(event))
                .collect(),
            volatile: rules.volatile,
            torn: rules.torn,
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
            let mut parts = parts(event, rules.waits(number), is_direct(history, event));
            let is_write = matches!(event.call, Call::Write { .. } | Call::Append { .. });
            if rules.volatile && is_write && parts == [Part::Act, Part::Flush] {
                parts.insert(1, Part::Early);
            }
            for part in parts {
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
        let late = |piece: &Piece| piece.event == event && piece.part.is_late();
        let bits = self.pieces.iter().enumerate();
        let late = bits.filter(|(_, piece)| late(piece));
        self.all[event] & !late.fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// The same without O_TRUNC, which comes when the name was found and tells nothing of it.
    fn naming(&self, event: usize) -> u128 {
        let cuts = |piece: &Piece| {
            piece.event == event && matches!(piece.part, Part::Cut | Part::FirstCut)
        };
        let bits = self.pieces.iter().enumerate();
        let cuts = bits.filter(|(_, piece)| cuts(piece));
        self.prompt(event) & !cuts.fold(0, |bits, (bit, _)| bits | 1 << bit)
    }

    /// What comes before something that `event` does or sees and that was true at `since`
    /// at the earliest. `told`: the pieces of an earlier call of the same host that have told
    /// of it.
    fn before(&self, event: usize, since: Time, told: impl Fn(usize) -> u128) -> u128 {
        let this = &self.history[event];
        // They do not wait for what somebody who was killed has sent.
        let passes_by = matches!(this.call, Call::Read(_) | Call::Fsync(_) | Call::Close(_));
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
            } else if !killed && ended < since || killed && own && since >= this.began && !passes_by
            {
                before |= self.prompt(number);
            } else if !killed && own {
                before |= told(number);
            }
        }
        before
    }

    fn order(&mut self, rules: &Rules<'_>) {
        for event in 0..self.history.len() {
            let ways = self.walk(event, rules);
            self.ways.push(ways);
        }
        for event in 0..self.history.len() {
            self.own[event] = self.own_writes(event, rules);
        }
        for bit in 0..self.pieces.len() {
            let Piece { event, part, .. } = self.pieces[bit];
            let since = match part {
                Part::Act => rules.acts_since(event),
                Part::First | Part::FirstCut => self.history[event].began,
                Part::Cut | Part::Early | Part::Flush => self.history[event].began,
                Part::Slot(_) | Part::Size => rules.data_since(event),
            };
            let told = |other| {
                let tells = rules.informs(other, event)
                    && !self.is_laid_over(other, event, part)
                    && !self.is_of_data_alone(other, event);
                match tells {
                    true if rules.is_refused_for_a_name(event) => self.naming(other),
                    true => self.prompt(other),
                    false => 0,
                }
            };
            let mut after = self.before(event, since, told);
            let follows = match part {
                Part::Cut | Part::Early | Part::Flush | Part::FirstCut => true,
                // What is answered by what was believed before is not behind what was sent.
                Part::Act => {
                    let asks = since >= self.history[event].began;
                    asks && bit > 0 && self.pieces[bit - 1].part.is_first()
                }
                _ => false,
            };
            if follows {
                after |= 1 << (bit - 1);
            }
            self.pieces[bit].after = after;
        }
    }

    /// What a read has shown tells of the size, and of no other attribute: READ brings none along.
    fn is_of_data_alone(&self, one: usize, other: usize) -> bool {
        match (&self.history[one].answer, &self.history[other].answer) {
            (Some(Answer::Data(data)), Some(Answer::Seen(seen))) => {
                usize::try_from(seen.size) == Ok(data.len())
            }
            _ => false,
        }
    }

    /// The walks of an event.
    fn walk(&mut self, event: usize, rules: &Rules<'_>) -> Vec<Option<usize>> {
        let call = self.history[event].call;
        let mut ways = Vec::new();
        let step = |search: &mut Self, above, at: Path| {
            let window = rules.walks_since(event, at);
            let told = |other: usize| match rules.names(other, at) {
                true => search.naming(other),
                false => 0,
            };
            let walk = Walk {
                above,
                name: at.name,
                after: search.before(event, window.0, told),
                missing_after: search.before(event, window.1, told),
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
        let above = |search: &mut Self, path: Path| {
            let dir = path.dir.map(|name| Path { dir: None, name });
            dir.map(|dir| step(search, None, dir))
        };
        for (number, &path) in paths.iter().enumerate() {
            let above = above(self, path);
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
        // What either name leads to is believed by itself, and may be of another moment.
        if is_by_both_names(&self.history[event]) {
            for path in paths {
                let above = above(self, path);
                ways.push(Some(step(self, above, path)));
            }
        }
        // Its name was perhaps asked for when the directory had another.
        let refused = refused_for(&self.history[event]);
        if let Some(path) = refused.filter(|path| rules.is_of_renamed(*path)) {
            let above = above(self, path);
            ways.push(Some(step(self, above, path)));
            self.learnt[event] = true;
        }
        ways
    }

    /// Takes in where names lead now, for all that may be on its way there.
    fn look(&self, state: &mut State, done: u128) {
        for (number, walk) in self.walks.iter().enumerate() {
            if walk.until & !done == 0 {
                state.found[number].clear();
                state.below[number].clear();
                continue;
            }
            let leads = |state: &State, dir: Led| {
                let now = state.entry(dir, walk.name);
                let after = match now {
                    Err(libc::ENOENT) => walk.missing_after,
                    _ => walk.after,
                };
                (after & !done == 0).then_some(now)
            };
            let Some(above) = walk.above else {
                let now = leads(state, Ok(PLOT));
                found(&mut state.found[number], now);
                continue;
            };
            // What a directory holds may be believed from before it had its name.
            for dir in 1..state.nodes() {
                let now = leads(state, Ok(dir)).map(|now| (dir, now));
                found(&mut state.below[number], now);
            }
            for dir in state.found[above].clone() {
                match dir {
                    Err(_) => {
                        let now = leads(state, dir);
                        found(&mut state.found[number], now);
                    }
                    Ok(dir) => {
                        for (of, now) in state.below[number].clone() {
                            let now = (of == dir).then_some(now);
                            found(&mut state.found[number], now);
                        }
                    }
                }
            }
        }
        self.look_at_attributes(state, done);
    }

    /// Where the walks of an event may have led: one list for each way to combine them.
    fn led(&self, state: &State, event: usize) -> Vec<Vec<Led>> {
        let mut led = vec![Vec::new()];
        let by_both = is_by_both_names(&self.history[event]);
        for (number, way) in self.ways[event].iter().enumerate() {
            let mut to = match way {
                None => vec![Ok(PLOT)],
                Some(walk) => state.found[*walk].clone(),
            };
            // Nothing need be believed of what names lead to for the call to be refused.
            let learnt = self.learnt[event] && number + 1 == self.ways[event].len();
            if to.is_empty() && (by_both && number >= 2 || learnt) {
                to.push(UNKNOWN);
            }
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
            unasked: self.unasked[event],
            waits: matches!(this.call, Call::Chmod(..))
                && self
                    .pieces
                    .iter()
                    .any(|piece| piece.event == event && piece.part == Part::Flush),
        }
    }

    /// What a piece that changes something may lead to.
    fn changes(&self, state: &State, event: usize, part: Part) -> Vec<State> {
        let this = &self.history[event];
        let done = matches!(this.answer, None | Some(Answer::Done)) || part.is_first();
        if !done {
            return Vec::new();
        }
        if part.is_late() {
            let is_sent_again = part == Part::Early;
            return state.flush(event, is_sent_again).into_iter().collect();
        }
        let fd = this.call.fd();
        let opens =
            matches!(this.call, Call::Open { .. }) && !matches!(part, Part::Cut | Part::FirstCut);
        if !opens && fd.is_some_and(|fd| state.opened(fd).is_none()) {
            return Vec::new();
        }
        let mut next: Vec<State> = Vec::new();
        for at in self.led(state, event) {
            let by = self.caller(event, &at);
            let outcome = match (part, fd) {
                (Part::Cut | Part::FirstCut, Some(fd)) => state.cut_on_open(fd, &by),
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
                if free && self.agrees(state, *done, piece.event, piece.part) {
                    *done |= 1 << bit;
                    state.shown.remove(&piece.event);
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
            let killed = self.history[event].answer.is_none() && !part.is_late();
            if killed || part.is_first() || part == Part::Early {
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
