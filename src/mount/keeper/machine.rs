//! What the keeper does next: a plain machine, told what has happened, that says what to do.
//!
//! ```text
//! Mounting ──ready──► Serving ◄──ready── Starting(new) ──ended, late──► Starting(former)
//!    │                 │   │ next, ended      ▲                             │      │
//!    │ ended           │   └──────────────────┘         Serving ◄────ready───┘      │ ended
//!    ▼                 ▼ ended, and does not survive                               ▼
//!   end               end                                       end, if it does not survive
//!
//!                 Serving, Starting(former) ──ended, and survives──► Starting(former)
//! ```
//!
//! A daemon that is about to be followed by another (`next`) has written its state before it
//! said so: however it ends from there on, the next program takes over. That becomes the
//! daemon when it says `ready`, which it does before it answers the kernel for the first time.
//! If it ends without that, or says nothing in time, the former program takes over, from the
//! same state, as if nothing had been; only if that fails as well is the mount lost.
//!
//! A mount *survives* its daemon if what is held as the state is a write-ahead log. Then the end
//! of a daemon that has not said goodbye is a *crash*, and the same program is started again,
//! from that log, as often as [`Crashes`] allows. A daemon that is silent for too long is
//! killed, which is a crash as well.
//!
//! Not each process that was killed ends: a thread that has the kernel drop pages waits for a page
//! that is being read, and that is answered by whoever takes over. So a daemon has ended, too,
//! when the thread that is there to be its [`witness`](super::witness) has, and the others do not
//! follow it within [`LAST_THREADS`]. All that they can do yet is what the kernel is at for them.

use std::time::Duration;

use super::crashes::Crashes;
pub(super) use super::crashes::Hopeless;
use crate::nfs::handover::PATIENCE;

/// How long a program has from its start to its `ready`: it waits for the server's first answer
/// meanwhile, [`PATIENCE`] at most, and has the rest for itself.
pub(super) const START: Duration = Duration::from_secs(40);
const _: () = assert!(START.as_secs() >= PATIENCE.as_secs() + 20);

/// A daemon that serves gives a sign of life more often than this ([`super::BEAT`]).
pub(super) const SILENCE: Duration = Duration::from_secs(10);
const _: () = assert!(SILENCE.as_secs() >= 3 * super::BEAT.as_secs());

/// How long the end of the other threads is waited for.
pub(super) const LAST_THREADS: Duration = Duration::from_millis(200);

/// It is killed when it was silent so often, one after the other: after 30 s. That it is looked
/// at several times is for the case that nothing ran at all, the keeper neither: of a machine
/// that was stopped, or processes that were frozen, the keeper may be the first to wake, and
/// sees one silence, however long it was.
const SILENCES: u32 = 3;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The daemon serves, or is about to: nothing can take it back.
    Ready,
    /// What it gave to be held as the state is a log that is kept up to date.
    Survives,
    /// The daemon is alive.
    Beat,
    /// The mount ends with the daemon, which says so.
    Goodbye,
    /// Somebody has asked for the end of the mount.
    Asked,
    /// The daemon has written its state and will end, for the next program to take over.
    Next,
    /// It stays after all.
    Stay,
    /// A thread of the daemon has ended that lives as long as that, and the others are about to.
    Dying,
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
    /// A daemon is to take over, from one that has left its state.
    Start(Program),
    /// The program that served is to take over from a daemon that has crashed, or from
    /// one that was to do so and could not.
    Again(Crash),
    /// The daemon is to be ended; its end is another event.
    Kill,
    /// The daemon is to be asked to end the mount.
    Ask,
    /// The keeper ends as the daemon has, with this wait status.
    End(i32),
    /// The same, since starting a daemon once more would not help.
    GiveUp(i32, Hopeless),
}

/// How the last daemon has ended that served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Crash {
    /// Its wait status.
    pub(super) status: i32,
    /// It was killed here, since it gave no sign of life.
    pub(super) hung: bool,
    /// When it was noticed.
    pub(super) at: Duration,
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
    /// A daemon serves. `next`: another is to take over when it has ended. It was `silent` so
    /// often, and is looked at again at `look`.
    Serving {
        next: bool,
        silent: u32,
        look: Duration,
    },
    /// A daemon is taking over, until `late`. It has said that the mount `survives`.
    Starting {
        program: Program,
        survives: bool,
        late: Duration,
    },
}

/// See the module. Times are of a clock that runs on, since any moment.
#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    /// The state that is held is a log.
    survives: bool,
    /// The end of this daemon is the end of the mount.
    goodbye: bool,
    /// The end of any daemon is.
    asked: bool,
    /// A daemon takes over from one that has crashed.
    crash: Option<Crash>,
    crashes: Crashes,
    begun: Duration,
    /// Until when the daemon's last threads have time to end.
    dying: Option<Duration>,
}

impl Machine {
    /// The first daemon has been started. `crashes` is empty.
    pub(super) const fn new(crashes: Crashes) -> Self {
        Self {
            phase: Phase::Mounting,
            survives: false,
            goodbye: false,
            asked: false,
            crash: None,
            crashes,
            begun: Duration::ZERO,
            dying: None,
        }
    }

    /// How many crashes there were.
    pub(super) const fn crashes(&self) -> u32 {
        self.crashes.total()
    }

    /// What a daemon says now is void if it ends before it is ready.
    pub(super) const fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// When [`Event::Late`] is due.
    pub(super) fn deadline(&self) -> Option<Duration> {
        let of_phase = match self.phase {
            Phase::Starting { late, .. } => Some(late),
            Phase::Serving { look, .. } => self.survives.then_some(look),
            Phase::Mounting => None,
        };
        self.dying.into_iter().chain(of_phase).min()
    }

    /// Takes in what has happened.
    pub(super) fn on(&mut self, now: Duration, event: Event) -> Action {
        match event {
            Event::Ready => return self.ready(now),
            Event::Ended(status) => return self.ended(now, status),
            Event::Late if self.dying.is_some_and(|until| until <= now) => {
                // How it has ended is heard when it has.
                return self.ended(now, libc::SIGKILL);
            }
            Event::Late => return self.late(now),
            Event::Dying => {
                self.dying.get_or_insert(now + LAST_THREADS);
            }
            Event::Goodbye => self.goodbye = true,
            Event::Asked => self.asked = true,
            Event::Next | Event::Stay => {
                // Of one that does not serve yet nothing could be handed over.
                if let Phase::Serving { next, .. } = &mut self.phase {
                    *next = event == Event::Next;
                }
            }
            Event::Survives => {
                match &mut self.phase {
                    Phase::Starting { survives, .. } => *survives = true,
                    Phase::Serving { .. } | Phase::Mounting => self.survives = true,
                }
                self.heard(now);
            }
            Event::Beat => self.heard(now),
        }
        Action::Wait
    }

    /// The daemon has given a sign of life.
    fn heard(&mut self, now: Duration) {
        if let Phase::Serving { silent, look, .. } = &mut self.phase {
            (*silent, *look) = (0, now + SILENCE);
        }
    }

    fn ready(&mut self, now: Duration) -> Action {
        if let Phase::Starting { survives, .. } = self.phase {
            self.survives = survives;
        }
        self.crash = None;
        self.phase = Phase::Serving {
            next: false,
            silent: 0,
            look: now + SILENCE,
        };
        // Before, it could not have heard.
        match self.asked {
            true => Action::Ask,
            false => Action::Wait,
        }
    }

    fn ended(&mut self, now: Duration, status: i32) -> Action {
        self.dying = None;
        let (next, silent) = match self.phase {
            Phase::Mounting => return Action::End(status),
            Phase::Serving { next, silent, .. } => (next, silent),
            Phase::Starting { .. } => (false, 0),
        };
        if next {
            return self.start(now, Program::Next);
        }
        if self.goodbye || self.asked {
            return Action::End(status);
        }
        if let Phase::Starting {
            program: Program::Next,
            ..
        } = self.phase
        {
            return self.start(now, Program::Former);
        }
        if !self.survives {
            return Action::End(status);
        }
        let hung = silent >= SILENCES;
        let at = now;
        // Of several in a row, the one that ended the service.
        let crash = *self.crash.get_or_insert(Crash { status, hung, at });
        match self.crashes.count(self.begun, now) {
            Err(why) => Action::GiveUp(status, why),
            Ok(()) => {
                self.start(now, Program::Former);
                Action::Again(crash)
            }
        }
    }

    fn late(&mut self, now: Duration) -> Action {
        match &mut self.phase {
            Phase::Mounting => return Action::Wait,
            Phase::Serving { .. } if !self.survives => return Action::Wait,
            Phase::Serving { silent, look, .. } => {
                *silent += 1;
                if *silent < SILENCES {
                    *look = now + SILENCE;
                    return Action::Wait;
                }
                *look = Duration::MAX;
            }
            // Its end is an event, soon.
            Phase::Starting { late, .. } => *late = Duration::MAX,
        }
        Action::Kill
    }

    fn start(&mut self, now: Duration, program: Program) -> Action {
        self.goodbye = false;
        self.begun = now;
        self.phase = Phase::Starting {
            program,
            survives: false,
            late: now + START,
        };
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
        let mut machine = Machine::new(Crashes::new(false));
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

    /// A daemon that serves and is followed by another if it dies.
    const SURVIVES: [Event; 2] = [Event::Ready, Event::Survives];

    fn at(seconds: u64) -> Duration {
        T + Duration::from_secs(seconds)
    }

    fn again(status: i32, at: Duration) -> Action {
        let hung = false;
        Action::Again(Crash { status, hung, at })
    }

    #[test]
    fn who_crashes_is_followed_by_the_same_program_and_who_says_goodbye_is_not() {
        for status in [KILLED, libc::SIGSEGV, 101 << 8, 0] {
            let (mut machine, _) = after(&SURVIVES);
            assert_eq!(
                machine.on(at(5), Event::Ended(status)),
                again(status, at(5))
            );
        }
        for status in [KILLED, 0] {
            let (mut machine, _) = after(&SURVIVES);
            machine.on(at(5), Event::Goodbye);
            assert_eq!(machine.on(at(5), Event::Ended(status)), Action::End(status));
        }
    }

    #[test]
    fn a_taker_that_dies_is_followed_by_another_that_is_told_of_the_first_crash() {
        let (mut machine, _) = after(&SURVIVES);
        let first = again(KILLED, at(5));
        assert_eq!(machine.on(at(5), Event::Ended(KILLED)), first);
        // That its log would have survived does not count, as nobody holds it.
        machine.on(at(6), Event::Survives);
        assert_eq!(machine.on(at(8), Event::Ended(256)), first);
        // One that is late is killed, and counts as well.
        assert_eq!(machine.deadline(), Some(at(8) + START));
        assert_eq!(machine.on(at(8) + START, Event::Late), Action::Kill);
        assert_eq!(machine.on(at(50), Event::Ended(KILLED)), first);
        assert_eq!(machine.crashes(), 3);
        for event in SURVIVES {
            machine.on(at(51), event);
        }
        assert_eq!(
            machine.on(at(70), Event::Ended(256)),
            Action::Again(Crash {
                status: 256,
                hung: false,
                at: at(70),
            })
        );
    }

    #[test]
    fn a_taker_that_does_not_say_that_it_survives_does_not() {
        let (mut machine, _) = after(&SURVIVES);
        assert_eq!(
            machine.on(at(5), Event::Ended(KILLED)),
            again(KILLED, at(5))
        );
        machine.on(at(6), Event::Ready);
        assert_eq!(machine.on(at(9), Event::Ended(KILLED)), Action::End(KILLED));
    }

    #[test]
    fn too_many_crashes_are_the_end_and_so_are_two_at_the_start() {
        let (mut machine, _) = after(&SURVIVES);
        for n in 1..=5 {
            assert_eq!(
                machine.on(at(5 * n), Event::Ended(KILLED)),
                again(KILLED, at(5 * n))
            );
            machine.on(at(5 * n), Event::Survives);
            machine.on(at(5 * n), Event::Ready);
        }
        let often = Action::GiveUp(KILLED, Hopeless::Often);
        assert_eq!(machine.on(at(30), Event::Ended(KILLED)), often);

        let (mut machine, _) = after(&SURVIVES);
        machine.on(at(5), Event::Ended(KILLED));
        assert_eq!(machine.on(at(5), Event::Ended(256)), again(KILLED, at(5)));
        let at_start = Action::GiveUp(256, Hopeless::AtStart);
        assert_eq!(machine.on(at(6), Event::Ended(256)), at_start);
    }

    #[test]
    fn whoever_is_asked_to_end_is_followed_by_nobody() {
        let (mut machine, _) = after(&SURVIVES);
        machine.on(at(5), Event::Asked);
        assert_eq!(machine.on(at(6), Event::Ended(KILLED)), Action::End(KILLED));
        // Asked for while nobody could hear: the one that comes up is told.
        let (mut machine, _) = after(&SURVIVES);
        machine.on(at(5), Event::Ended(KILLED));
        machine.on(at(5), Event::Asked);
        machine.on(at(5), Event::Survives);
        assert_eq!(machine.on(at(6), Event::Ready), Action::Ask);
    }

    #[test]
    fn one_that_gives_no_sign_of_life_is_killed_and_is_a_crash() {
        let (mut machine, _) = after(&SURVIVES);
        machine.on(at(5), Event::Beat);
        assert_eq!(machine.deadline(), Some(at(15)));
        // All were asleep for an hour: that is one silence.
        assert_eq!(machine.on(at(3600), Event::Late), Action::Wait);
        machine.on(at(3601), Event::Beat);
        for seconds in [3611, 3621] {
            assert_eq!(machine.deadline(), Some(at(seconds)));
            assert_eq!(machine.on(at(seconds), Event::Late), Action::Wait);
        }
        assert_eq!(machine.on(at(3631), Event::Late), Action::Kill);
        let crash = Crash {
            status: KILLED,
            hung: true,
            at: at(3632),
        };
        assert_eq!(
            machine.on(at(3632), Event::Ended(KILLED)),
            Action::Again(crash)
        );
    }

    #[test]
    fn a_daemon_of_which_a_thread_cannot_end_is_followed_all_the_same() {
        let (mut machine, _) = after(&SURVIVES);
        assert_eq!(machine.on(at(5), Event::Dying), Action::Wait);
        assert_eq!(machine.deadline(), Some(at(5) + LAST_THREADS));
        // It is one end, whether it is heard of twice.
        machine.on(at(5), Event::Dying);
        let late = at(5) + LAST_THREADS;
        assert_eq!(machine.on(late, Event::Late), again(KILLED, late));
        assert_eq!(machine.deadline(), Some(late + START));
        // As a rule its end follows at once, and says how it was.
        let (mut machine, _) = after(&SURVIVES);
        machine.on(at(5), Event::Dying);
        let segv = libc::SIGSEGV;
        assert_eq!(machine.on(at(5), Event::Ended(segv)), again(segv, at(5)));
        assert_eq!(machine.deadline(), Some(at(5) + START));
        // That of one that mounts still is the end.
        let (mut machine, _) = after(&[]);
        machine.on(at(5), Event::Dying);
        let late = machine.on(at(6), Event::Late);
        assert_eq!(late, Action::End(KILLED));
    }

    #[test]
    fn a_next_program_that_fails_is_followed_by_the_former_one_as_often_as_it_crashes() {
        let (mut machine, _) = after(&SURVIVES);
        machine.on(at(5), Event::Next);
        assert_eq!(
            machine.on(at(5), Event::Ended(0)),
            Action::Start(Program::Next)
        );
        assert_eq!(
            machine.on(at(8), Event::Ended(256)),
            Action::Start(Program::Former)
        );
        assert_eq!(
            machine.on(at(11), Event::Ended(KILLED)),
            again(KILLED, at(11))
        );
    }
}
