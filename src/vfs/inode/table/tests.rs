//! The table of inodes, and what is left of it when its process is killed.

use super::logged::LoggedInodes;
use super::*;
use crate::nfs::proto::types::{FileType, Promises};
use crate::wal::Survived;
use crate::xdr::{Decoder, Encoder};

fn handle(name: &[u8]) -> FileHandle {
    let mut enc = Encoder::default();
    enc.opaque(name);
    FileHandle::decode(&mut Decoder::new(enc.into_vec().into())).unwrap()
}

fn attrs(fileid: u64) -> Attributes {
    Attributes {
        kind: Some(FileType::Directory),
        fileid,
        fsid: (1, 2),
        ..Attributes::default()
    }
}

fn table() -> InodeTable {
    table_with(Wal::off())
}

fn table_with(wal: Wal) -> InodeTable {
    let s = Duration::from_secs;
    let timeouts = Timeouts {
        reg_min: s(3),
        reg_max: s(60),
        dir_min: s(30),
        dir_max: s(60),
    };
    InodeTable::new(handle(b"root"), &attrs(128), Instant::now(), timeouts, wal)
}

/// The table of who goes on when this one's process is killed, which has a log.
fn killed(table: InodeTable) -> InodeTable {
    let memory = table.wal.memory().expect("memory").try_clone();
    let survived = Survived::read(memory.expect("a descriptor")).expect("a log");
    let records = LoggedInodes::read(&survived, Promises::default()).expect("inodes");
    let wal = Wal::create(0).expect("memory");
    let (records, now) = (records.into_records(), Instant::now());
    let taken = InodeTable::of_records(records, now, table.timeouts, wal);
    taken.expect("no contradiction").0
}

#[tokio::test(start_paused = true)]
async fn which_of_two_names_a_kernel_may_believe_is_known_after_a_kill_and_one_name_is_no_doubt() {
    let second = Duration::from_secs(1);
    let table = table_with(Wal::create(0).expect("memory"));
    let now = Instant::now();
    let root = Arc::clone(table.root());
    for (fileid, fh) in [(5, b"a"), (6, b"b")] {
        let (inode, _) = table.look_up(&handle(fh), &attrs(fileid), now, |_| None);
        inode.found_at(&root, &b"x"[..]);
        table.log_place(&inode);
        table.tells(ROOT_INO, b"x", fileid, 20 * second);
    }
    // The second is found by another name while the first is believed.
    let second_file = table.get(6).expect("it is held");
    second_file.found_at(&root, &b"y"[..]);
    table.tells(ROOT_INO, b"y", 6, second);
    let doubted = |table: &InodeTable| {
        [5, 6].map(|ino| {
            let inode = table.get(ino).expect("it is held");
            inode.may_have_another_name(table.ticks())
        })
    };
    assert_eq!(doubted(&table), [false, true]);
    let table = killed(killed(table));
    assert_eq!(doubted(&table), [false, true]);
    let believed = |name| table.get(5).expect("held").is_told_name(ROOT_INO, name, 0);
    assert!(believed(b"x") && !believed(b"y"));
    // Until its time is over.
    tokio::time::advance(21 * second).await;
    assert_eq!(doubted(&table), [false, false]);
}

#[test]
fn any_name_may_be_believed_of_what_was_found_by_none() {
    let table = table_with(Wal::create(0).expect("memory"));
    table.look_up(&handle(b"a"), &attrs(5), Instant::now(), |_| None);
    let table = killed(table);
    let inode = table.get(5).expect("it is held");
    assert!(inode.may_have_another_name(table.ticks()));
}

#[test]
fn numbers_are_the_servers_but_for_the_root_and_what_would_collide_with_it() {
    let table = table();
    assert_eq!(table.ino_of(&attrs(4711)), 4711);
    assert_eq!(table.ino_of(&attrs(128)), ROOT_INO);
    assert_eq!(table.root().attr.lock().stat().ino, 128, "as st_ino");
    assert_eq!(table.ino_of(&attrs(1)), 1 << 63 | 1);
    let mut elsewhere = attrs(128);
    elsewhere.fsid = (9, 9);
    assert_ne!(table.ino_of(&elsewhere), ROOT_INO);
}

#[test]
fn an_inode_lives_until_every_lookup_is_given_back() {
    let table = table();
    let now = Instant::now();
    let (a, new) = table.look_up(&handle(b"a"), &attrs(5), now, |_| None);
    assert!(new);
    assert!(!table.look_up(&handle(b"a"), &attrs(5), now, |_| None).1);
    table.forget(5, 1);
    assert!(table.get(5).is_some());
    table.forget(5, 1);
    assert!(table.get(5).is_none());
    assert!(table.look_up_again(&a));
    assert!(Arc::ptr_eq(&table.get(5).unwrap(), &a));
}

#[test]
fn a_reused_fileid_is_another_number_while_the_old_file_is_held() {
    let table = table();
    let now = Instant::now();
    let (old, _) = table.look_up(&handle(b"a"), &attrs(5), now, |_| None);
    let (new, is_new) = table.look_up(&handle(b"b"), &attrs(5), now, |_| None);
    assert!(is_new && old.ino == 5 && new.ino != 5);
    assert_eq!(new.attr.lock().stat().ino, 5, "as st_ino");
    // Replies about either, in any order.
    for _ in 0..2 {
        assert!(Arc::ptr_eq(
            &table.look_up(&handle(b"a"), &attrs(5), now, |_| None).0,
            &old
        ));
        assert!(Arc::ptr_eq(
            &table.look_up(&handle(b"b"), &attrs(5), now, |_| None).0,
            &new
        ));
    }
    assert!(Arc::ptr_eq(
        &table.find(&handle(b"b"), &attrs(5)).unwrap(),
        &new
    ));
    table.forget(5, 3);
    let (still, _) = table.look_up(&handle(b"b"), &attrs(5), now, |_| None);
    assert!(Arc::ptr_eq(&still, &new), "although its own number is free");
    table.forget(new.ino, 4);
    assert!(table.len() == 0 && table.elsewhere.lock().is_empty());
    let (later, _) = table.look_up(&handle(b"b"), &attrs(5), now, |_| None);
    assert_eq!(later.ino, 5);
    assert_eq!(later.generation, new.generation);
    assert_ne!(later.generation, old.generation);
}

#[tokio::test(start_paused = true)]
async fn what_a_killed_process_has_told_of_is_found_again_by_its_handle_with_what_it_was() {
    let table = table_with(Wal::create(0).expect("memory"));
    let now = Instant::now();
    let kinds = [
        FileType::Regular,
        FileType::Directory,
        FileType::Symlink,
        FileType::Fifo,
        FileType::Socket,
        FileType::Block,
        FileType::Char,
    ];
    let objects: Vec<_> = (kinds.iter().zip(1_u8..))
        .flat_map(|(kind, number)| {
            let of = |age: u8| {
                let attrs = Attributes {
                    kind: Some(*kind),
                    mode: 0o4750,
                    nlink: 3,
                    size: 1 << 40,
                    change: 1 << 60 | u64::from(age),
                    ..attrs(1000 + u64::from(number))
                };
                (handle(&[number, age]), attrs)
            };
            // The second has a number that is taken.
            [of(1), of(2)]
        })
        .collect();
    for (handle, attrs) in &objects {
        table.look_up(handle, attrs, now, |_| None);
    }
    let told: Vec<_> = (objects.iter())
        .map(|(handle, attrs)| table.find(handle, attrs).expect("it is held"))
        .collect();
    let table = killed(table);
    for ((handle, attrs), before) in objects.iter().zip(told) {
        let found = table.find(handle, attrs).expect("it is held");
        assert_eq!(found.ino, before.ino);
        assert_eq!(
            (found.kind, found.generation),
            (before.kind, before.generation)
        );
        let (now, before) = (found.attr.lock(), before.attr.lock());
        assert_eq!(now.change(), before.change());
        assert!(now.explains(before.change()));
        let [mut then, is] = [before.stat().clone(), now.stat().clone()];
        // Nobody is told of these before the server was asked.
        (then.blocks, then.blksize) = (is.blocks, is.blksize);
        (then.atime, then.mtime, then.ctime) = (is.atime, is.mtime, is.ctime);
        assert_eq!(is, then);
        assert!(now.ttl(Instant::now()).is_zero());
    }
}

#[test]
fn what_is_kept_is_taken_up_again_also_while_another_object_has_a_number_out_of_the_way() {
    let table = table();
    let now = Instant::now();
    let (kept, _) = table.look_up(&handle(b"k"), &attrs(7), now, |_| None);
    table.forget(7, 1);
    for name in [b"a", b"b"] {
        table.look_up(&handle(name), &attrs(5), now, |_| None);
    }
    assert_eq!(table.elsewhere_count.load(Ordering::Relaxed), 1);
    let by_number = |ino| (ino == 7).then(|| Arc::clone(&kept));
    let (again, is_new) = table.look_up(&handle(b"k"), &attrs(7), now, by_number);
    assert!(!is_new && Arc::ptr_eq(&again, &kept));
    table.forget(7, 1);
    let (other, is_new) = table.look_up(&handle(b"o"), &attrs(7), now, by_number);
    assert!(is_new && !Arc::ptr_eq(&other, &kept), "another object");
}
