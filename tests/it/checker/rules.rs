//! How old an answer may be: the rule book (`docs/SEMANTICS.md`) as numbers.
//!
//! Everything else is asked after the question: its answer was true at a moment between
//! the call's beginning and its end.

use super::history::{Answer, Call, Event, Fd, Kind, Name, Path, Time};

/// What hosts may believe, and the history it is applied to.
pub(super) struct Rules<'a> {
    history: &'a [Event],
    /// `acdirmax`: names, missing names that were asked for, attributes of directories.
    names: Time,
    /// `acregmax`: attributes and pages of files.
    attributes: Time,
    /// The server has lost data that were not committed: until they are sent again others may
    /// see the file without them, or with.
    pub(super) volatile: bool,
    /// The server reads a directory name by name, beside changes of it.
    pub(super) torn: bool,
    /// The hosts ask for the plot at any time, for others than whom the history tells of.
    pub(super) is_asked_for: bool,
    /// The path that each event is about, with those of descriptors.
    paths: Vec<Vec<Path>>,
    opens: Vec<Option<usize>>,
    /// Hosts with `nocto`.
    pub(super) nocto: Vec<u8>,
    /// Hosts with the kernel's client.
    pub(super) kernels: Vec<u8>,
}

impl<'a> Rules<'a> {
    pub(super) fn new(history: &'a [Event], names: Time, attributes: Time) -> Self {
        let open_of = |wanted: Fd| {
            history
                .iter()
                .position(|event| matches!(event.call, Call::Open { fd, .. } if fd == wanted))
        };
        let opens: Vec<_> = history
            .iter()
            .map(|event| event.call.fd().and_then(open_of))
            .collect();
        let paths = history
            .iter()
            .zip(&opens)
            .map(|(event, open)| match (event.call, open) {
                (Call::List(Some(name)), _) => vec![Path { dir: None, name }],
                (_, Some(open)) => history[*open].call.paths(),
                _ => event.call.paths(),
            })
            .collect();
        Self {
            history,
            names,
            attributes,
            volatile: false,
            torn: false,
            is_asked_for: false,
            paths,
            opens,
            nocto: Vec::new(),
            kernels: Vec::new(),
        }
    }

    /// An open for which nobody need have been asked: what is known of the name and of the file is
    /// believed for the cache times. ("With `nocto`")
    pub(super) fn is_unasked(&self, event: usize) -> bool {
        let this = &self.history[event];
        let reads = matches!(this.call, Call::Open { how, .. } if how.reads);
        reads && self.nocto.contains(&this.host)
    }

    /// An open that has perhaps gone to the file by its handle (CLAIM_FH), as the kernel's client
    /// opens what it believes a name to lead to: the name was not asked for.
    fn is_by_handle(&self, event: usize) -> bool {
        let this = &self.history[event];
        let may = matches!(this.call, Call::Open { how, .. } if !(how.create && how.exclusive));
        may && self.kernels.contains(&this.host)
    }

    /// A listing for which nobody need have been asked.
    fn is_unasked_listing(&self, event: usize) -> bool {
        let this = &self.history[event];
        matches!(this.call, Call::List(_)) && self.nocto.contains(&this.host)
    }

    /// Two calls of one host that are about the same: there the second never knows less
    /// than the first. ("POSIX on one host", "A host does not unsee".)
    pub(super) fn related(&self, one: usize, other: usize) -> bool {
        // A call by descriptor has heard nothing of the directory that its file is in.
        let by_descriptor = self.opens[one].is_some_and(|open| open != one);
        let touch = |a: &Path| {
            let is_it = |b: &Path| a == b || !by_descriptor && a.touches(*b);
            self.paths[other].iter().any(is_it)
        };
        self.paths[one].iter().any(touch)
    }

    /// A change of mode that may be sent later: of a file that its process has made, has
    /// open and has told nobody of. ("An unpublished file": once it was closed, synced or
    /// locked, it is published for good.)
    pub(super) fn waits(&self, event: usize) -> bool {
        let this = &self.history[event];
        let Call::Chmod(at, _) = this.call else {
            return false;
        };
        let publishes = |other: &Event, made: Fd| {
            let tells = matches!(
                other.call,
                Call::Close(_) | Call::Fsync(_) | Call::Lock { .. }
            );
            tells
                && other.call.fd() == Some(made)
                && other.answer == Some(Answer::Done)
                && other.ended <= this.began
        };
        let is_published = |made| self.history.iter().any(|other| publishes(other, made));
        // By the name that it was made by, or another one, which another host has given it.
        let leads_there = |made: Path| {
            let named = |other: &Event| match other.call {
                Call::Rename { from, to, .. } => from == made && to == at,
                Call::Link(from, to) => from == made && to == at,
                _ => false,
            };
            made == at || self.history.iter().any(named)
        };
        self.history.iter().any(|other| {
            matches!(other.call, Call::Open { at: made, how, fd }
                if leads_there(made) && how.create && !is_published(fd))
                && other.process == this.process
                && other.ended <= this.began
        })
    }

    fn is_looking(&self, event: usize) -> bool {
        matches!(
            self.history[event].call,
            Call::Stat(_) | Call::Chmod(..) | Call::Truncate(_)
        )
    }

    /// The name leads to one file all the time.
    fn is_stable(&self, at: Path) -> bool {
        !self.history.iter().enumerate().any(|(number, event)| {
            let moves = matches!(event.call, Call::Unlink(_) | Call::Rename { .. });
            let done = matches!(event.answer, None | Some(Answer::Done)) || event.unsure;
            moves && done && self.paths[number].iter().any(|path| path.touches(at))
        })
    }

    /// Somebody else changes a name on the way of a call while it runs.
    pub(super) fn is_overtaken(&self, event: usize) -> bool {
        let this = &self.history[event];
        let changes = |other: &Event| {
            let done = matches!(other.answer, None | Some(Answer::Done)) || other.unsure;
            let of_names = matches!(
                other.call,
                Call::Mkdir(_)
                    | Call::Rmdir(_)
                    | Call::Unlink(_)
                    | Call::Symlink(..)
                    | Call::Rename { .. }
            );
            done && of_names && other.began <= this.ended && this.began <= other.ended
        };
        let mine = &self.paths[event];
        (self.history.iter().enumerate()).any(|(number, other)| {
            let touch = |path: &Path| mine.iter().any(|own| own.touches(*path));
            number != event && changes(other) && self.paths[number].iter().any(touch)
        })
    }

    /// What is believed of a name is enough to refuse it.
    pub(super) fn is_refused_for_a_name(&self, event: usize) -> bool {
        let refused = matches!(
            self.history[event].answer,
            Some(Answer::Refused(errno)) if errno != libc::EEXIST && errno != libc::ENOTEMPTY
        );
        refused && self.opens[event].is_none_or(|open| open == event)
    }

    /// What this host has done to the names of a directory a listing shows that asks nobody.
    fn changes_listed(&self, one: usize, listing: usize) -> bool {
        let (this, Call::List(dir)) = (&self.history[one], self.history[listing].call) else {
            return false;
        };
        let changes = match this.call {
            // Without, it may have found the file there.
            Call::Open { how, .. } => how.exclusive,
            Call::Mkdir(_)
            | Call::Rmdir(_)
            | Call::Unlink(_)
            | Call::Symlink(..)
            | Call::Link(..)
            | Call::Rename { .. } => true,
            _ => false,
        };
        let is_there = |path: &Path| path.dir == dir;
        changes && this.answer == Some(Answer::Done) && this.call.paths().iter().any(is_there)
    }

    /// What one call has told its host, or changed, another may not be behind.
    pub(super) fn informs(&self, one: usize, other: usize) -> bool {
        if self.is_unasked_listing(other) {
            return self.changes_listed(one, other);
        }
        if self.is_refused_for_a_name(other) {
            // Which of two names the refusal is about is not always known.
            let about = self.refused_name(other);
            return about.is_some_and(|path| self.names(one, path));
        }
        let silent = matches!(
            self.history[one].call,
            Call::Fsync(_) | Call::Close(_) | Call::Unlock(_)
        );
        let silent = silent || self.is_unasked(one) || self.is_unasked_listing(one);
        // What is refused tells of names at most, and of no attributes.
        let is_told = !matches!(self.history[one].answer, Some(Answer::Refused(_)));
        let same_open = self.opens[one].is_some() && self.opens[one] == self.opens[other];
        let stable = || self.paths[other].iter().all(|path| self.is_stable(*path));
        let of_names = matches!(self.history[one].call, Call::List(_))
            || self.paths[other].iter().any(|path| self.names(one, *path));
        let by_name = self.history[other].call.paths() == self.paths[other];
        !silent
            && !self.is_of_another(one, other)
            && self.related(one, other)
            && (is_told && (same_open || stable())
                || of_names && by_name && !self.is_looking(other))
    }

    /// A call by a name that is believed is about the object, and has not been told the attributes of
    /// the directory, whether it has asked where the name leads or not. ("Attributes of directories
    /// are believed.")
    fn is_of_another(&self, one: usize, other: usize) -> bool {
        match (self.history[one].call, self.history[other].call) {
            (
                Call::Open { at, .. }
                | Call::Chmod(at, _)
                | Call::Truncate(at)
                | Call::Stat(at)
                | Call::Readlink(at),
                Call::Stat(dir),
            ) => dir.dir.is_none() && at.dir == Some(dir.name),
            _ => false,
        }
    }

    /// The name that a refusal is about.
    fn refused_name(&self, event: usize) -> Option<Path> {
        let this = &self.history[event];
        match (this.call, &this.answer) {
            // The plot is always there.
            (Call::Rename { from, to, .. }, Some(Answer::Refused(libc::ENOENT)))
                if to.dir.is_none() =>
            {
                Some(from)
            }
            _ => match self.paths[event][..] {
                [path] => Some(path),
                _ => None,
            },
        }
    }

    /// The server has told a call where this name leads, or it has changed that. Who has done so
    /// with the name of its directory is no wiser: what is known of the names in that is the
    /// directory's, whatever it is called.
    pub(super) fn names(&self, event: usize, at: Path) -> bool {
        let this = &self.history[event];
        if self.is_unasked(event) || self.is_by_handle(event) {
            return false;
        }
        let by_name = matches!(
            this.call,
            Call::Mkdir(_)
                | Call::Rmdir(_)
                | Call::Unlink(_)
                | Call::Symlink(..)
                | Call::Rename { .. }
                | Call::Open { .. }
        );
        let told = matches!(
            this.answer,
            Some(Answer::Done | Answer::Refused(libc::EEXIST))
        );
        if let Call::Link(_, to) = this.call {
            // Where the second leads.
            return told && to == at;
        }
        by_name && told && self.paths[event].contains(&at)
    }

    /// The beginning of the first call by which this host may have come to know what it
    /// now believes of a name, not longer ago than it may be believed.
    fn asked(&self, event: usize, longest: Time, about: impl Fn(usize) -> bool) -> Time {
        let this = &self.history[event];
        let oldest = this.began.saturating_sub(longest);
        let asks = |number: &usize| {
            let other = &self.history[*number];
            *number != event
                && other.host == this.host
                && other.began < this.ended
                && other.ended >= oldest
                && about(*number)
        };
        let first = (0..self.history.len())
            .filter(asks)
            .map(|number| self.history[number].began)
            .min();
        first.unwrap_or(this.began).clamp(oldest, this.began)
    }

    /// The same of what is in the directories of this call, and was asked for there or beside.
    fn asked_near(&self, event: usize, near: impl Fn(usize) -> bool) -> Time {
        let this = &self.history[event];
        let is_of_plot = self.paths[event].iter().any(|path| path.dir.is_none());
        match self.is_asked_for && is_of_plot && self.knew(event, &near) {
            true => this.began.saturating_sub(self.names),
            false => self.asked(event, self.names, near),
        }
    }

    /// This host has asked for it at any time: whoever asks for the directory again, and finds
    /// it unchanged, knows of all names that he has asked for there.
    fn knew(&self, event: usize, about: impl Fn(usize) -> bool) -> bool {
        let this = &self.history[event];
        (0..self.history.len()).any(|number| {
            let other = &self.history[number];
            number != event && other.host == this.host && other.began < this.ended && about(number)
        })
    }

    /// The names that a directory had before, by which its entries may be known.
    fn former(&self, dir: Option<Name>) -> Vec<Option<Name>> {
        let mut names = vec![dir];
        let mut next = 0;
        while let Some(Some(name)) = names.get(next).copied() {
            let renamed = self.history.iter().filter_map(|event| match event.call {
                Call::Rename { from, to, .. } if to.dir.is_none() && to.name == name => {
                    (from.dir.is_none()).then_some(Some(from.name))
                }
                _ => None,
            });
            for former in renamed {
                if !names.contains(&former) {
                    names.push(former);
                }
            }
            next += 1;
        }
        names
    }

    /// What a call by this path was refused for may have been learnt when the directory had
    /// another name.
    pub(super) fn is_of_renamed(&self, at: Path) -> bool {
        self.former(at.dir).len() > 1
    }

    /// A name on the way of a call: since when it may have led somewhere, and nowhere.
    /// ("A name that was never asked for is asked for"; a listing tells what is there,
    /// and not what is missing.)
    pub(super) fn walks_since(&self, event: usize, at: Path) -> (Time, Time) {
        let dirs = self.former(at.dir);
        let near = |number: usize| {
            let lists = match self.history[number].call {
                Call::List(None) => at.dir.is_none(),
                Call::List(name) => dirs.contains(&name),
                _ => false,
            };
            // Every walk begins in the plot, and asks there.
            let beside =
                |path: &Path| at.dir.is_none() || dirs.contains(&path.dir) || path.touches(at);
            lists || self.paths[number].iter().any(beside)
        };
        let is_it =
            |path: &Path| path.touches(at) || path.name == at.name && dirs.contains(&path.dir);
        let it = |number: usize| self.paths[number].iter().any(is_it);
        let missing = match self.knew(event, it) {
            true => self.asked_near(event, near),
            false => self.asked(event, self.names, it),
        };
        (self.asked_near(event, near), missing)
    }

    /// What a call does, or says that it may not do.
    pub(super) fn acts_since(&self, event: usize) -> Time {
        let this = &self.history[event];
        let near = |number: usize| {
            let mine = &self.paths[event];
            let beside = |path: &Path| {
                mine.iter()
                    .any(|own| own.dir.is_none() || own.dir == path.dir || own.touches(*path))
            };
            self.paths[number].iter().any(beside)
                || matches!(self.history[number].call, Call::List(_))
        };
        let same = |number: usize| self.related(number, event);
        match (&this.call, &this.answer) {
            // What is read through it may be as old as what is believed.
            (Call::Open { .. }, Some(Answer::Done) | None) if self.is_unasked(event) => {
                this.began.saturating_sub(self.names.max(self.attributes))
            }
            (Call::List(_), Some(Answer::Listed(_))) if self.is_unasked_listing(event) => {
                this.began.saturating_sub(self.names)
            }
            // "A directory is asked for when it is opened."
            (Call::List(_), Some(Answer::Listed(_))) => this.began,
            (Call::Stat(_), Some(Answer::Seen(seen))) => {
                match seen.kind {
                    Kind::Directory => self.asked(event, self.names, near),
                    // By whichever of its names it is known.
                    _ => self.asked(event, self.attributes, |_| true),
                }
            }
            (Call::Fstat(_), _) => self.data_since(event),
            // By the names on its way: that the one is above the other the kernel knows.
            (Call::Rename { from, to, .. }, Some(Answer::Refused(libc::ENOTEMPTY)))
                if to.is_or_holds(*from) =>
            {
                self.asked(event, self.names, near)
            }
            // "A call that must not find the name there is told of it by the server."
            (_, Some(Answer::Refused(libc::EEXIST | libc::ENOTEMPTY))) => this.began,
            (_, Some(Answer::Refused(libc::ENOENT))) if self.knew(event, same) => {
                self.asked_near(event, near)
            }
            (_, Some(Answer::Refused(libc::ENOENT))) => self.asked(event, self.names, same),
            // That something is there, and what.
            (_, Some(Answer::Refused(_))) => self.asked_near(event, near),
            (_, Some(Answer::Same)) => self.asked_near(event, near),
            // What a link's text is never changes.
            (Call::Readlink(_), _) => 0,
            _ => this.began,
        }
    }

    /// Data of an open file: close-to-open, or since it was locked.
    pub(super) fn data_since(&self, event: usize) -> Time {
        let this = &self.history[event];
        let oldest = this.began.saturating_sub(self.attributes);
        let Some(open) = self.opens[event] else {
            return this.began;
        };
        let locks = self.history.iter().filter(|other| {
            matches!(other.call, Call::Lock { .. })
                && other.answer == Some(Answer::Done)
                && other.call.fd() == this.call.fd()
                && other.ended < this.began
        });
        let asked = locks.map(|lock| lock.began).max().unwrap_or(0);
        match self.is_unasked(open) {
            true => oldest.max(asked),
            false => oldest.max(asked).max(self.history[open].began),
        }
    }
}
