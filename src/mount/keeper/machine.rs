//! What the keeper does next: a plain machine, told what has happened, that says what to do.
//!
//! ```text
//! Mounting ──ready──► Serving ◄──ready── Starting(new) ──ended, late──► Starting(former)
//!    │                 │   │ next, ended      ▲                             │      │
//!    │ ended           │   └──────────────────┘         Serving ◄────ready───┘      │ ended
//!    ▼                 ▼ ended                                                     ▼
//!   end               end                                                         end
//! ```
//!
//! A daemon that is about to be followed by another (`next`) has written its state before it
//! said so: however it ends from there on, the next program takes over. That becomes the
//! daemon when it says `ready`, which it does before it answers the kernel for the first time.
//! If it ends without that, or says nothing in time, the former program takes over, from the
//! same state, as if nothing had been; only if that fails as well is the mount lost.

use std::time::Duration;

/// How long a program has from its start to its `ready`. The server's silence is not its
/// fault and does not count: it is ready then all the same.
pub(super) const START: Duration = Duration::from_secs(20);

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The daemon serves, or is about to: nothing can take it back.
    Ready,
    /// The daemon has written its state and will end, for the next program to take over.
    Next,
    /// It stays after all.
    Stay,
    /// The daemon has ended, with this wait status.
    Ended(i32),
    /// The time of [`Machine::deadline`] has come.
    Late,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Nothing.
    Wait,
    /// A daemon is to take over.
    Start(Program),
    /// The daemon is to be ended; its end is another event.
    Kill,
    /// The keeper ends as the daemon has, with this wait status.
    End(i32),
}

/// Which program takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    /// The one that the daemon has named.
    Next,
    /// The one that served last.
    Former,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The first daemon mounts: its end is the end.
    Mounting,
    /// A daemon serves. `next`: another is to take over when it has ended.
    Serving { next: bool },
    /// A daemon is taking over, until `late`.
    Starting { program: Program, late: Duration },
}

/// See the module. Times are of a clock that runs on, since any moment.
#[derive(Debug)]
pub(super) struct Machine(Phase);

impl Machine {
    /// The first daemon has been started.
    pub(super) const fn new() -> Self {
        Self(Phase::Mounting)
    }

    /// When [`Event::Late`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        match self.0 {
            Phase::Starting { late, .. } => Some(late),
            Phase::Mounting | Phase::Serving { .. } => None,
        }
    }

    /// Takes in what has happened.
    pub(super) fn on(&mut self, now: Duration, event: Event) -> Action {
        match (self.0, event) {
            (_, Event::Ready) => self.0 = Phase::Serving { next: false },
            (Phase::Serving { .. }, Event::Next) => self.0 = Phase::Serving { next: true },
            (Phase::Serving { .. }, Event::Stay) => self.0 = Phase::Serving { next: false },
            (Phase::Serving { next: true }, Event::Ended(_)) => {
                return self.start(now, Program::Next);
            }
            (
                Phase::Starting {
                    program: Program::Next,
                    ..
                },
                Event::Ended(_),
            ) => return self.start(now, Program::Former),
            (_, Event::Ended(status)) => return Action::End(status),
            (Phase::Starting { program, .. }, Event::Late) => {
                // Its end is waited for without a limit: SIGKILL has none.
                let late = Duration::MAX;
                self.0 = Phase::Starting { program, late };
                return Action::Kill;
            }
            // Nothing is served yet that could be handed over, or nobody is late.
            (Phase::Mounting | Phase::Starting { .. }, Event::Next | Event::Stay)
            | (Phase::Mounting | Phase::Serving { .. }, Event::Late) => {}
        }
        Action::Wait
    }

    fn start(&mut self, now: Duration, program: Program) -> Action {
        let late = now + START;
        self.0 = Phase::Starting { program, late };
        Action::Start(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: Duration = Duration::from_secs(1000);
    const KILLED: i32 = libc::SIGKILL;

    /// The actions upon these events, all at the same time.
    fn after(events: &[Event]) -> (Machine, Vec<Action>) {
        let mut machine = Machine::new();
        let actions = events.iter().map(|event| machine.on(T, *event)).collect();
        (machine, actions)
    }

    fn last(events: &[Event]) -> Action {
        after(events).1.last().copied().unwrap_or(Action::Wait)
    }

    #[test]
    fn the_end_of_a_daemon_that_gave_nothing_over_is_the_end() {
        assert_eq!(last(&[Event::Ended(256)]), Action::End(256));
        assert_eq!(last(&[Event::Ready, Event::Ended(0)]), Action::End(0));
        let killed = [Event::Ready, Event::Ended(KILLED)];
        assert_eq!(last(&killed), Action::End(KILLED));
        // Before it served there was nothing to give.
        assert_eq!(last(&[Event::Next, Event::Ended(256)]), Action::End(256));
    }

    #[test]
    fn whoever_was_named_takes_over_however_the_daemon_ends() {
        for status in [0, 256, KILLED] {
            let given = [Event::Ready, Event::Next, Event::Ended(status)];
            assert_eq!(last(&given), Action::Start(Program::Next));
        }
        let stays = [Event::Ready, Event::Next, Event::Stay, Event::Ended(0)];
        assert_eq!(last(&stays), Action::End(0));
    }

    #[test]
    fn the_former_program_takes_over_from_one_that_does_not_come_up() {
        let mut given = vec![Event::Ready, Event::Next, Event::Ended(0)];
        given.push(Event::Ended(KILLED));
        assert_eq!(last(&given), Action::Start(Program::Former));
        // And is served by from then on, as if nothing had been.
        given.extend([Event::Ready, Event::Next, Event::Ended(0)]);
        assert_eq!(last(&given), Action::Start(Program::Next));
    }

    #[test]
    fn one_that_is_silent_is_killed_in_time_and_counts_as_one_that_died() {
        let (mut machine, _) = after(&[Event::Ready, Event::Next, Event::Ended(0)]);
        assert_eq!(machine.deadline(), Some(T + START));
        assert_eq!(machine.on(T + START, Event::Late), Action::Kill);
        let ended = machine.on(T + START, Event::Ended(KILLED));
        assert_eq!(ended, Action::Start(Program::Former));
        assert_eq!(machine.deadline(), Some(T + 2 * START));
        assert_eq!(machine.on(T, Event::Ended(256)), Action::End(256));
    }

    #[test]
    fn who_serves_is_never_late() {
        let (mut machine, _) = after(&[Event::Ready]);
        assert_eq!(machine.deadline(), None);
        assert_eq!(machine.on(T, Event::Late), Action::Wait);
        let (machine, _) = after(&[Event::Ready, Event::Next, Event::Ended(0), Event::Ready]);
        assert_eq!(machine.deadline(), None);
    }
}
