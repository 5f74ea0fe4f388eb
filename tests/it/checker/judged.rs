//! The judge judged: for the rules of the book a history that it allows beside one that it
//! does not, the two as alike as can be.

mod believed;

use super::history::{Answer, Call, Event, Fd, How, Kind, OBSERVER, Path, Seen, Time};
use super::judge::{Verdict, judge};
use super::rules::Rules;

const MS: Time = 1000;

/// What hosts may believe in these histories.
const BELIEVED: Time = 100 * MS;

/// A history in which one call follows the other, a millisecond each.
#[derive(Default)]
struct Told {
    events: Vec<Event>,
    now: Time,
    volatile: bool,
    torn: bool,
    is_asked_for: bool,
    kernels: Vec<u8>,
}

impl Told {
    fn call(self, host: u8, call: Call, answer: Answer) -> Self {
        self.put(host, call, Some(answer))
    }

    fn done(self, host: u8, call: Call) -> Self {
        self.call(host, call, Answer::Done)
    }

    /// The caller is killed in the middle of it.
    fn killed(self, host: u8, call: Call) -> Self {
        self.put(host, call, None)
    }

    fn put(mut self, host: u8, call: Call, answer: Option<Answer>) -> Self {
        let began = self.now;
        self.now += MS;
        self.events.push(Event {
            host,
            process: host.into(),
            call,
            began,
            ended: began + MS / 2,
            answer,
            unsure: false,
        });
        self
    }

    /// The call before goes on until now.
    fn slow(mut self) -> Self {
        let last = self.events.last_mut().expect("a call");
        last.ended = self.now + 20 * MS;
        self
    }

    /// The server has lost its sessions while the call before ran.
    fn unsure(mut self) -> Self {
        self.events.last_mut().expect("a call").unsure = true;
        self
    }

    fn later(mut self, time: Time) -> Self {
        self.now += time;
        self
    }

    /// The server restarts meanwhile, and has lost what was not committed.
    fn lost(mut self) -> Self {
        self.volatile = true;
        self
    }

    /// The server reads directories name by name.
    fn torn(mut self) -> Self {
        self.torn = true;
        self
    }

    /// This host has the kernel's client.
    fn kernels(mut self, host: u8) -> Self {
        self.kernels.push(host);
        self
    }

    /// Others, of whom nothing is told, ask for the plot all the time.
    fn beside_others(mut self) -> Self {
        self.is_asked_for = true;
        self
    }

    fn verdict(&self) -> Verdict {
        let mut rules = Rules::new(&self.events, BELIEVED, BELIEVED);
        rules.volatile = self.volatile;
        rules.torn = self.torn;
        rules.is_asked_for = self.is_asked_for;
        rules.kernels.clone_from(&self.kernels);
        judge(&self.events, &rules)
    }

    #[track_caller]
    fn is_allowed(&self) {
        assert_eq!(self.verdict(), Verdict::Allowed);
    }

    #[track_caller]
    fn is_wrong(&self) {
        let said = self.verdict();
        assert!(matches!(said, Verdict::Wrong(_)), "{said:?}");
    }
}

fn at(name: u8) -> Path {
    Path { dir: None, name }
}

fn open(fd: Fd) -> Call {
    let how = How {
        create: true,
        ..How::default()
    };
    Call::Open {
        at: at(b'a'),
        how,
        fd,
    }
}

fn write(fd: Fd, slot: u8, token: u32) -> Call {
    Call::Write { fd, slot, token }
}

fn append(fd: Fd, token: u32) -> Call {
    Call::Append { fd, token }
}

fn data(tokens: &[u32]) -> Answer {
    Answer::Data(tokens.to_vec())
}

fn lock(fd: Fd) -> Call {
    Call::Lock {
        fd,
        exclusive: true,
    }
}

fn file(mode: u16, size: u32) -> Answer {
    Answer::Seen(Seen {
        kind: Kind::File,
        mode,
        links: 1,
        size,
    })
}

fn rename(from: u8, to: u8) -> Call {
    Call::Rename {
        from: at(from),
        to: at(to),
        replaces: true,
    }
}

/// Host 0 has the file open, and host 1 has written to it and closed it.
fn written_elsewhere() -> Told {
    Told::default()
        .done(0, open(1))
        .done(1, open(2))
        .done(1, write(2, 0, 7))
        .done(1, write(2, 1, 8))
        .done(1, Call::Close(2))
}

#[test]
fn what_was_closed_is_seen_by_who_opens_after_it() {
    let told = || written_elsewhere().done(2, open(3));
    told().call(2, Call::Read(3), data(&[7, 8])).is_allowed();
    told().call(2, Call::Read(3), data(&[])).is_wrong();
    told().call(2, Call::Read(3), data(&[7])).is_wrong();
}

#[test]
fn an_open_file_may_be_shown_as_of_its_open_for_as_long_as_it_is_believed() {
    let told = written_elsewhere;
    told().call(0, Call::Read(1), data(&[])).is_allowed();
    let later = || told().later(BELIEVED);
    later().call(0, Call::Read(1), data(&[])).is_wrong();
    later().call(0, Call::Read(1), data(&[7, 8])).is_allowed();
}

#[test]
fn own_writes_lie_on_top_of_what_is_believed() {
    let told = || written_elsewhere().done(0, write(1, 0, 9));
    told().call(0, Call::Read(1), data(&[9])).is_allowed();
    told().call(0, Call::Read(1), data(&[9, 8])).is_allowed();
    told().call(0, Call::Fstat(1), file(0o644, 1)).is_allowed();
    // Its own write is never missing, and nothing is shown that nobody has written.
    told().call(0, Call::Read(1), data(&[])).is_wrong();
    told().call(0, Call::Read(1), data(&[7, 8])).is_wrong();
    told().call(0, Call::Read(1), data(&[9, 0, 0])).is_wrong();
    told().call(0, Call::Fstat(1), file(0o644, 0)).is_wrong();
}

#[test]
fn own_writes_lie_on_top_only_until_what_is_believed_is_too_old() {
    let told = || written_elsewhere().done(0, write(1, 0, 9)).later(BELIEVED);
    told().call(0, Call::Read(1), data(&[9])).is_wrong();
    told().call(0, Call::Read(1), data(&[9, 8])).is_allowed();
}

#[test]
fn what_was_cut_off_on_this_host_does_not_come_back() {
    let told = || {
        Told::default()
            .done(0, open(1))
            .done(0, write(1, 1, 9))
            .done(0, Call::Ftruncate(1))
    };
    told().call(0, Call::Read(1), data(&[])).is_allowed();
    told().call(0, Call::Read(1), data(&[0, 9])).is_wrong();
    told().call(0, Call::Read(1), data(&[0, 0])).is_wrong();
}

#[test]
fn who_locks_a_file_sees_it_as_the_last_holder_left_it() {
    let told = || {
        Told::default()
            .done(0, open(1))
            .done(1, open(2))
            .done(1, lock(2))
            .done(1, write(2, 0, 7))
            .done(1, Call::Unlock(2))
            .done(0, lock(1))
    };
    told().call(0, Call::Read(1), data(&[7])).is_allowed();
    told().call(0, Call::Read(1), data(&[])).is_wrong();
}

#[test]
fn two_hosts_do_not_hold_one_lock() {
    let told = || {
        Told::default()
            .done(0, open(1))
            .done(1, open(2))
            .done(1, lock(2))
    };
    told()
        .done(1, Call::Unlock(2))
        .done(0, lock(1))
        .is_allowed();
    told().done(0, lock(1)).is_wrong();
}

#[test]
fn appends_of_one_host_do_not_meet() {
    let told = || {
        Told::default()
            .done(0, open(1))
            .done(0, append(1, 7))
            .done(0, append(1, 8))
    };
    told().call(0, Call::Read(1), data(&[7, 8])).is_allowed();
    told().call(0, Call::Read(1), data(&[8])).is_wrong();
}

#[test]
fn an_append_goes_behind_what_was_closed_before_its_open() {
    let told = || {
        written_elsewhere()
            .done(2, open(3))
            .done(2, append(3, 9))
            .done(2, Call::Close(3))
    };
    told()
        .call(OBSERVER, Call::Read(1), data(&[7, 8, 9]))
        .is_allowed();
    told()
        .call(OBSERVER, Call::Read(1), data(&[9, 8]))
        .is_wrong();
}

#[test]
fn a_name_that_was_never_asked_for_is_asked_for() {
    let told = || Told::default().done(1, Call::Mkdir(at(b'a')));
    let missing = || Answer::Refused(libc::ENOENT);
    told().call(0, Call::Stat(at(b'a')), missing()).is_wrong();
    let asked = |told: Told| told.call(0, Call::Stat(at(b'a')), missing());
    asked(asked(Told::default()).done(1, Call::Mkdir(at(b'a')))).is_allowed();
    let too_old = asked(Told::default())
        .done(1, Call::Mkdir(at(b'a')))
        .later(BELIEVED);
    asked(too_old).is_wrong();
}

#[test]
fn a_call_that_must_not_find_the_name_is_told_of_it_by_the_server() {
    let told = || {
        Told::default().done(1, Call::Mkdir(at(b'a'))).call(
            0,
            Call::Mkdir(at(b'a')),
            Answer::Refused(libc::EEXIST),
        )
    };
    told().is_allowed();
    let freed = told().done(1, Call::Rmdir(at(b'a')));
    freed
        .call(0, Call::Mkdir(at(b'a')), Answer::Refused(libc::EEXIST))
        .is_wrong();
}

#[test]
fn two_hosts_do_not_both_make_or_take_one_name() {
    let told = || Told::default().done(0, Call::Mkdir(at(b'a')));
    told().done(1, Call::Mkdir(at(b'a'))).is_wrong();
    let taken = || told().done(0, Call::Rmdir(at(b'a')));
    taken().done(1, Call::Rmdir(at(b'a'))).is_wrong();
}

#[test]
fn a_listing_shows_what_the_directory_held_during_the_call() {
    let told = || Told::default().done(1, Call::Mkdir(at(b'a')));
    let listed = |names: &[u8]| Answer::Listed(names.to_vec());
    told().call(0, Call::List(None), listed(b"a")).is_allowed();
    told().call(0, Call::List(None), listed(b"")).is_wrong();
}

#[test]
fn a_change_of_mode_is_seen_by_others_when_it_was_answered() {
    let chmod = Call::Chmod(at(b'a'), 0o600);
    let told = || {
        Told::default()
            .done(1, open(2))
            .done(1, Call::Close(2))
            .done(2, chmod)
    };
    told()
        .call(0, Call::Stat(at(b'a')), file(0o600, 0))
        .is_allowed();
    told()
        .call(0, Call::Stat(at(b'a')), file(0o644, 0))
        .is_wrong();
}

#[test]
fn what_waits_for_an_unpublished_file_is_seen_on_its_host_and_by_all_after_the_close() {
    let told = || {
        Told::default()
            .done(1, open(2))
            .done(1, Call::Chmod(at(b'a'), 0o600))
    };
    let stat = Call::Stat(at(b'a'));
    told().call(0, stat, file(0o644, 0)).is_allowed();
    told().call(1, stat, file(0o644, 0)).is_wrong();
    told()
        .done(1, Call::Close(2))
        .call(0, stat, file(0o600, 0))
        .is_allowed();
}

#[test]
fn what_was_killed_is_done_before_its_host_begins_anything_else_or_never() {
    let told = || Told::default().killed(0, Call::Mkdir(at(b'a')));
    let listed = |names: &[u8]| Answer::Listed(names.to_vec());
    let look = |told: Told, host, names| told.call(host, Call::List(None), listed(names));
    look(told(), 0, b"").is_allowed();
    look(told(), 0, b"a").is_allowed();
    look(look(told(), 0, b""), 0, b"a").is_wrong();
}

/// The kernel holds pages meanwhile, and a process that is killed closes its files: seed 20300140 of
/// the histories in memory.
#[test]
fn a_close_that_begins_after_a_kill_may_be_over_before_what_was_killed_is_done() {
    let told = |call| {
        Told::default()
            .done(0, open(1))
            .done(0, open(2))
            .killed(0, Call::Truncate(at(b'a')))
            .done(0, call)
            .done(1, open(3))
            .done(1, write(3, 0, 7))
            .done(1, Call::Fsync(3))
            .call(OBSERVER, Call::Read(3), data(&[]))
    };
    told(Call::Close(1)).is_allowed();
    told(Call::Fsync(1)).is_allowed();
    told(Call::Chmod(at(b'a'), 0o600)).is_wrong();
}

/// Seed 20821619 of the histories in memory.
#[test]
fn what_a_read_has_shown_tells_of_no_attribute_but_the_size() {
    let told = |shown: &[u32]| {
        Told::default()
            .done(0, open(1))
            .call(0, Call::Stat(at(b'a')), file(0o644, 0))
            .done(1, open(2))
            .done(1, Call::Chmod(at(b'a'), 0o600))
            .done(1, write(2, 0, 7))
            .done(1, Call::Fsync(2))
            .call(0, Call::Read(1), data(shown))
    };
    let stat = Call::Stat(at(b'a'));
    told(&[7]).call(0, stat, file(0o600, 1)).is_allowed();
    told(&[7]).call(0, stat, file(0o644, 0)).is_wrong();
}

#[test]
fn what_two_names_of_a_rename_lead_to_may_be_believed_from_two_moments() {
    let found = |kind| {
        Answer::Seen(Seen {
            kind,
            mode: 0o755,
            links: 1,
            size: 0,
        })
    };
    let told = || {
        Told::default()
            .done(1, Call::Mkdir(at(b'b')))
            .call(0, Call::Stat(at(b'b')), found(Kind::Directory))
            .done(1, Call::Rmdir(at(b'b')))
            .done(1, open(2))
    };
    let refused = Answer::Refused(libc::ENOTDIR);
    told()
        .call(0, rename(b'b', b'a'), refused.clone())
        .is_allowed();
    let later = told().later(BELIEVED);
    later.call(0, rename(b'b', b'a'), refused).is_wrong();
}

/// The kernel walks both paths before it asks: seed 20045010 of the histories in memory.
#[test]
fn a_rename_whose_second_path_leads_through_a_file_may_have_walked_the_first_before_that_was_gone()
{
    let below = |dir, name| Path {
        dir: Some(dir),
        name,
    };
    let call = Call::Rename {
        from: below(b'a', b'd'),
        to: below(b'b', b'c'),
        replaces: true,
    };
    let refused = || Answer::Refused(libc::ENOTDIR);
    let make = Call::Open {
        at: at(b'b'),
        how: How {
            create: true,
            ..How::default()
        },
        fd: 1,
    };
    let made = || Told::default().done(1, Call::Mkdir(at(b'a')));
    let others = |told: Told| told.done(1, Call::Rmdir(at(b'a'))).done(1, make);
    others(made().call(0, call, refused()).slow()).is_allowed();
    others(made()).call(0, call, refused()).is_wrong();
}

#[test]
fn what_was_sent_to_a_lost_session_may_be_done_twice_and_other_calls_once() {
    let told = || {
        Told::default().done(0, Call::Mkdir(at(b'a'))).call(
            0,
            rename(b'a', b'b'),
            Answer::Refused(libc::ENOENT),
        )
    };
    told().is_wrong();
    told().unsure().is_allowed();
}

#[test]
fn calls_at_the_same_time_may_be_in_any_order() {
    let told = || Told::default().done(0, Call::Mkdir(at(b'a'))).slow();
    let listed = |names: &[u8]| Answer::Listed(names.to_vec());
    for names in [&b""[..], &b"a"[..]] {
        told().call(1, Call::List(None), listed(names)).is_allowed();
    }
    // But all hosts agree on it.
    told()
        .call(1, Call::List(None), listed(b"a"))
        .call(2, Call::List(None), listed(b""))
        .is_wrong();
}

#[test]
fn what_is_renamed_while_a_directory_is_read_may_be_missed_by_both_names_and_nothing_else_may() {
    let told = |names: &[u8]| {
        Told::default()
            .done(0, Call::Mkdir(at(b'a')))
            .done(0, Call::Mkdir(at(b'b')))
            .call(1, Call::List(None), Answer::Listed(names.to_vec()))
            .slow()
            .done(0, rename(b'b', b'c'))
    };
    for names in [&b"a"[..], b"ab", b"ac", b"abc"] {
        told(names).torn().is_allowed();
    }
    told(b"b").torn().is_wrong();
    told(b"a").is_wrong();
}

/// "What is refused tells of no attributes."
#[test]
fn a_refusal_tells_nothing_of_what_else_is_believed() {
    let told = |refused: Call, errno| {
        Told::default()
            .done(0, open(1))
            .call(1, Call::Stat(at(b'a')), file(0o644, 0))
            .done(0, Call::Chmod(at(b'a'), 0o600))
            .call(1, refused, Answer::Refused(errno))
            .call(1, Call::Stat(at(b'a')), file(0o644, 0))
    };
    let below = Path {
        dir: Some(b'a'),
        name: b'b',
    };
    told(Call::Mkdir(below), libc::ENOTDIR).is_allowed();
    told(Call::Mkdir(at(b'a')), libc::EEXIST).is_allowed();
    // What is seen of it does.
    told(Call::Mkdir(below), libc::ENOTDIR)
        .call(1, Call::Stat(at(b'a')), file(0o600, 0))
        .call(1, Call::Stat(at(b'a')), file(0o644, 0))
        .is_wrong();
}

/// "What is sent again after a restart may land on what others did meanwhile."
#[test]
fn what_a_restart_has_lost_is_sent_again_over_what_others_did_and_nothing_else_is() {
    let cut = || {
        Told::default()
            .done(0, open(1))
            .done(0, write(1, 0, 7))
            .call(1, Call::Stat(at(b'a')), file(0o644, 1))
            .done(1, Call::Truncate(at(b'a')))
            .later(BELIEVED)
            .call(0, Call::Read(1), data(&[]))
            .done(0, Call::Close(1))
            .done(OBSERVER, open(9))
            .call(OBSERVER, Call::Read(9), data(&[7]))
    };
    cut().is_wrong();
    cut().lost().is_allowed();
    // What was closed is at the server for good.
    Told::default()
        .done(0, open(1))
        .done(0, write(1, 0, 7))
        .done(0, Call::Close(1))
        .done(1, Call::Truncate(at(b'a')))
        .done(OBSERVER, open(9))
        .call(OBSERVER, Call::Read(9), data(&[7]))
        .lost()
        .is_wrong();
}

/// "Attributes are believed by whichever name the file is found."
#[test]
fn attributes_that_were_learnt_by_another_name_may_be_shown_by_a_new_one_while_they_are_believed() {
    let linked = |later| {
        Told::default()
            .done(0, open(1))
            .call(1, Call::Stat(at(b'a')), file(0o644, 0))
            .done(0, Call::Chmod(at(b'a'), 0o600))
            .done(0, Call::Link(at(b'a'), at(b'b')))
            .later(later)
            .call(1, Call::Stat(at(b'b')), file(0o644, 0))
    };
    linked(0).is_allowed();
    linked(2 * BELIEVED).is_wrong();
}

/// "A call by path that meets what another host has removed is made once more."
#[test]
fn a_call_that_was_overtaken_is_estale_and_one_that_was_not_is_not() {
    let told = |other: Call| {
        Told::default()
            .done(0, open(1))
            .done(1, Call::Unlink(at(b'a')))
            .call(
                0,
                Call::Chmod(at(b'a'), 0o600),
                Answer::Refused(libc::ESTALE),
            )
            .slow()
            .done(1, other)
    };
    told(Call::Symlink(at(b'a'), 7)).is_allowed();
    told(Call::Symlink(at(b'c'), 7)).is_allowed();
    Told::default()
        .done(0, open(1))
        .call(
            0,
            Call::Chmod(at(b'a'), 0o600),
            Answer::Refused(libc::ESTALE),
        )
        .slow()
        .done(1, Call::Symlink(at(b'c'), 7))
        .is_wrong();
}

/// The same of calls that only look: what they look at goes during their second walk.
#[test]
fn what_is_removed_while_it_is_looked_at_is_estale_and_what_stays_is_not() {
    let told = |made: Call, look: Call, other: Call| {
        Told::default()
            .done(0, made)
            .call(0, look, Answer::Refused(libc::ESTALE))
            .slow()
            .done(1, other)
    };
    let (dir, link) = (Call::Mkdir(at(b'a')), Call::Symlink(at(b'a'), 7));
    let (list, read) = (Call::List(Some(b'a')), Call::Readlink(at(b'a')));
    told(dir, list, Call::Rmdir(at(b'a'))).is_allowed();
    told(link, read, Call::Unlink(at(b'a'))).is_allowed();
    told(dir, list, Call::Mkdir(at(b'c'))).is_wrong();
    told(link, read, Call::Mkdir(at(b'c'))).is_wrong();
    // Who comes later, and has never heard of it, is told that it is missing.
    Told::default()
        .done(0, dir)
        .done(0, Call::Rmdir(at(b'a')))
        .call(1, list, Answer::Refused(libc::ESTALE))
        .is_wrong();
}
