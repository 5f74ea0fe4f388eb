//! What is believed of names, and of data that a server has lost.

use super::super::history::{Answer, Call, How, Kind, Path, Seen};
use super::{BELIEVED, MS, Told, at, data, file, open, rename, write};

#[test]
fn what_is_known_of_the_names_in_a_directory_goes_with_it_when_it_is_renamed() {
    let at = |dir: u8, name: u8| Path {
        dir: Some(dir),
        name,
    };
    let how = How::default();
    let open = |fd| Call::Open {
        at: at(b'd', b'b'),
        how,
        fd,
    };
    let missing = || Answer::Refused(libc::ENOENT);
    let made = |asks: bool| {
        let told = Told::default().done(0, Call::Mkdir(super::at(b'c')));
        let told = match asks {
            true => told.call(0, Call::Unlink(at(b'c', b'b')), missing()),
            false => told,
        };
        told.done(1, Call::Mkdir(at(b'c', b'b')))
            .done(0, Call::Mkdir(super::at(b'd')))
            .done(0, rename(b'c', b'd'))
    };
    made(true).call(0, open(1), missing()).is_allowed();
    made(true)
        .call(0, Call::Rmdir(at(b'd', b'b')), missing())
        .is_allowed();
    // Not by who has never asked, nor for longer, nor if this host has made the name.
    made(false).call(0, open(1), missing()).is_wrong();
    made(true)
        .later(2 * BELIEVED)
        .call(0, open(1), missing())
        .is_wrong();
    made(true)
        .call(
            0,
            Call::Mkdir(at(b'd', b'b')),
            Answer::Refused(libc::EEXIST),
        )
        .call(0, open(1), missing())
        .is_wrong();
}

/// The kernel walks to `d/b` by what it believes, and sees that `d` is above it.
#[test]
fn nothing_replaces_the_directory_that_it_is_believed_to_lie_in() {
    let below = Path {
        dir: Some(b'd'),
        name: b'b',
    };
    let up = || Call::Rename {
        from: below,
        to: at(b'd'),
        replaces: true,
    };
    let full = || Answer::Refused(libc::ENOTEMPTY);
    let moved = |later| {
        Told::default()
            .done(0, Call::Mkdir(at(b'd')))
            .done(0, Call::Mkdir(below))
            .done(1, rename(b'd', b'e'))
            .later(later)
            .call(0, up(), full())
    };
    moved(0).is_allowed();
    moved(2 * BELIEVED).is_wrong();
    // Who has never heard of it cannot believe it.
    Told::default()
        .done(1, Call::Mkdir(at(b'e')))
        .call(0, up(), full())
        .is_wrong();
}

/// Seeds 40217664 and 50392974 of the histories in memory.
#[test]
fn a_call_by_a_believed_name_tells_nothing_of_the_attributes_of_its_directory() {
    let open = |create, fd| Call::Open {
        at: Path {
            dir: Some(b'd'),
            name: b'f',
        },
        how: How {
            create,
            ..How::default()
        },
        fd,
    };
    let seen = |mode| {
        Answer::Seen(Seen {
            kind: Kind::Directory,
            mode,
            links: 2,
            size: 0,
        })
    };
    let opened = |later| {
        Told::default()
            .done(1, Call::Mkdir(at(b'd')))
            .done(1, open(true, 1))
            .done(0, Call::Chmod(at(b'd'), 0o640))
            .later(later)
            .done(1, open(false, 2))
    };
    let stat = || Call::Stat(at(b'd'));
    opened(0).call(1, stat(), seen(0o755)).is_allowed();
    opened(0).call(1, stat(), seen(0o640)).is_allowed();
    let file = Path {
        dir: Some(b'd'),
        name: b'f',
    };
    let changed = || opened(0).done(1, Call::Chmod(file, 0o600));
    changed().call(1, stat(), seen(0o755)).is_allowed();
    opened(2 * BELIEVED).call(1, stat(), seen(0o755)).is_wrong();
    // Who has been told of the change does not unsee it.
    opened(0)
        .call(1, stat(), seen(0o640))
        .call(1, stat(), seen(0o755))
        .is_wrong();
}

#[test]
fn the_kernels_client_opens_what_it_believes_a_name_to_lead_to_and_is_told_nothing_of_the_name() {
    let cuts = |fd| Call::Open {
        at: at(b'a'),
        how: How {
            truncate: true,
            ..How::default()
        },
        fd,
    };
    let replaced = |told: Told, later| {
        told.done(0, open(1))
            .done(0, Call::Link(at(b'a'), at(b'b')))
            .done(1, open(2))
            .done(0, Call::Symlink(at(b'c'), 9))
            .done(0, rename(b'c', b'a'))
            .later(later)
            // Both go to the file, which has the other name.
            .done(1, cuts(3))
            .done(1, cuts(4))
    };
    let kernel = || Told::default().kernels(1);
    replaced(kernel(), 0).is_allowed();
    replaced(kernel(), 2 * BELIEVED).is_wrong();
    replaced(Told::default(), 2 * BELIEVED).is_wrong();
    // Another host has to be told, when it asks.
    let told = |told: Told| {
        replaced(told, 0)
            .call(1, Call::Readlink(at(b'a')), Answer::Text(9))
            .done(1, open(5))
    };
    told(Told::default()).is_wrong();
}

#[test]
fn whoever_asks_for_a_directory_confirms_what_is_missing_in_it_for_all_of_his_host() {
    let missing = || Answer::Refused(libc::ENOENT);
    let stat = || Call::Stat(at(b'a'));
    let made = |asks: bool| {
        let told = match asks {
            true => Told::default().call(0, stat(), missing()),
            false => Told::default(),
        };
        told.later(3 * BELIEVED).done(1, Call::Mkdir(at(b'a')))
    };
    made(true)
        .beside_others()
        .call(0, stat(), missing())
        .is_allowed();
    made(true).call(0, stat(), missing()).is_wrong();
    made(false)
        .beside_others()
        .call(0, stat(), missing())
        .is_wrong();
    made(true)
        .beside_others()
        .later(BELIEVED)
        .call(0, stat(), missing())
        .is_wrong();
}

#[test]
fn what_a_restart_has_lost_of_a_file_is_missing_until_it_is_sent_again() {
    let opened = || {
        Told::default()
            .done(0, open(1))
            .done(0, write(1, 0, 7))
            .done(0, write(1, 1, 8))
            .done(1, open(2))
            .call(1, Call::Read(2), data(&[7]))
    };
    // The first had been sent, and came back.
    let lost = || opened().lost().call(1, Call::Read(2), data(&[]));
    lost().is_allowed();
    lost()
        .done(0, Call::Fsync(1))
        .later(2 * BELIEVED)
        .call(1, Call::Read(2), data(&[7, 8]))
        .is_allowed();
    opened().call(1, Call::Read(2), data(&[])).is_wrong();
    opened()
        .lost()
        .done(0, Call::Fsync(1))
        .later(2 * BELIEVED)
        .call(1, Call::Read(2), data(&[]))
        .is_wrong();
}

/// O_TRUNC comes once the file is open: another host may have given its name away by then.
#[test]
fn an_open_that_cuts_tells_where_the_name_led_when_it_was_opened_and_not_when_it_was_cut() {
    let cuts = Call::Open {
        at: at(b'a'),
        how: How {
            truncate: true,
            ..How::default()
        },
        fd: 2,
    };
    let moved = |told: Told, later| {
        told.done(0, rename(b'a', b'b'))
            .done(0, write(1, 0, 7))
            .done(0, Call::Fsync(1))
            .later(later)
    };
    // It finds the name before that goes, and cuts what was written after it went.
    let slowly = |later| moved(Told::default().done(0, open(1)).done(1, cuts).slow(), later);
    let soon = 20 * MS;
    let by_old_name = |told: Told, answer| {
        told.call(1, Call::Rmdir(at(b'a')), answer)
            .call(2, Call::Stat(at(b'b')), file(0o644, 0))
    };
    let chmod = |told: Told| {
        told.done(1, Call::Chmod(at(b'a'), 0o600))
            .call(2, Call::Stat(at(b'b')), file(0o600, 0))
    };
    let not_a_dir = || Answer::Refused(libc::ENOTDIR);
    chmod(slowly(soon)).is_allowed();
    by_old_name(slowly(soon), not_a_dir()).is_allowed();
    // Not when that is too old, nor once this host has moved the name itself.
    chmod(slowly(2 * BELIEVED)).is_wrong();
    by_old_name(slowly(2 * BELIEVED), not_a_dir()).is_wrong();
    chmod(slowly(soon).done(1, rename(b'a', b'c'))).is_wrong();
    // What has been cut when the open is over stays as it was written afterwards.
    let quickly = moved(Told::default().done(0, open(1)).done(1, cuts), soon);
    chmod(quickly).is_wrong();
    // Of the file's size it tells.
    Told::default()
        .done(0, open(1))
        .done(0, write(1, 0, 7))
        .done(0, Call::Fsync(1))
        .done(1, cuts)
        .call(1, Call::Stat(at(b'a')), file(0o644, 1))
        .is_wrong();
}
