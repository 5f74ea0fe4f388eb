//! What is committed, when a drain ends, and what is written again.

use super::*;

#[test]
fn the_last_data_of_a_drain_need_no_commit() {
    let mut rig = Rig::new();
    rig.put(0, b"small file");
    let ticket = rig.writeback.begin_drain();
    let write = rig.write();
    assert_eq!(write.stable, Stable::FileSync);
    assert!(!rig.writeback.drained(&ticket));
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.writeback.drained(&ticket) && rig.writeback.is_idle());
}

#[test]
fn a_drain_of_several_writes_is_sent_at_once_and_committed_once() {
    let mut rig = Rig::new();
    rig.put(0, b"a");
    rig.put(100, b"b");
    let ticket = rig.writeback.begin_drain();
    let writes = rig.writes();
    assert_eq!(writes.len(), 2);
    for write in &writes {
        rig.ack(write, Stable::Unstable, V1);
    }
    let Some(Action::Commit { id, range, .. }) = rig.next() else {
        panic!("no COMMIT");
    };
    assert_eq!((range.offset, range.count), (0, 101));
    assert!(rig.next().is_none() && !rig.writeback.drained(&ticket));
    rig.writeback.committed(id, V1);
    assert!(rig.writeback.drained(&ticket) && rig.writeback.is_idle());
}

#[test]
fn a_server_that_answers_file_sync_is_never_sent_a_commit() {
    let mut rig = Rig::new();
    rig.put(0, b"a");
    rig.put(100, b"b");
    let ticket = rig.writeback.begin_drain();
    for write in rig.writes() {
        rig.ack(&write, Stable::FileSync, V1);
    }
    assert!(rig.next().is_none() && rig.writeback.drained(&ticket));
}

#[test]
fn a_commit_by_another_instance_brings_the_data_again() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    let ticket = rig.writeback.begin_drain();
    let commit = rig.commit();
    rig.writeback.committed(commit, V2);
    assert!(!rig.writeback.drained(&ticket));
    let again = rig.write();
    assert_eq!(
        (&again.data[..], again.stable),
        (&b"abc"[..], Stable::FileSync)
    );
    rig.ack(&again, Stable::FileSync, V2);
    assert!(rig.writeback.drained(&ticket) && rig.error().is_none());
}

#[test]
fn a_write_answered_by_another_instance_brings_the_data_again() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put(50, b"x");
    rig.linger();
    let write = rig.write();
    rig.ack(&write, Stable::Unstable, V2);
    assert_eq!(rig.write().data, b"abc");
}

#[test]
fn a_server_that_changes_its_verifier_for_ever_is_an_error() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    let ticket = rig.writeback.begin_drain();
    let mut rounds = 0;
    while !rig.writeback.drained(&ticket) {
        match rig.next() {
            Some(Action::Write { id, .. }) => {
                rig.writeback.written(id, 3, Stable::Unstable, V1);
            }
            Some(Action::Commit { id, .. }) => {
                rounds += 1;
                assert!(rounds < 10);
                rig.writeback.committed(id, V2);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((rounds, rig.error()), (6, Some(EIO)));
    assert!(rig.writeback.is_idle());
}

#[test]
fn lost_data_are_not_written_over_newer_ones() {
    let mut rig = Rig::new();
    rig.retain(0, b"abcdef");
    rig.put(1, b"X");
    rig.linger();
    let flying = rig.write();
    rig.put(3, b"Y");
    rig.writeback.begin_drain();
    // The queued one is sent as well, and answered by the new instance.
    let queued = rig.write();
    rig.ack(&queued, Stable::Unstable, V2);
    let mut again: Vec<_> = rig
        .writes()
        .into_iter()
        .map(|w| (w.offset, w.data))
        .collect();
    again.sort_unstable();
    let expected = [(0, &b"a"[..]), (2, b"c"), (4, b"ef")];
    assert_eq!(again, expected.map(|(at, data)| (at, data.to_vec())));
    rig.writeback.failed(flying.id, ENOSPC.into());
    assert_eq!(rig.error(), Some(ENOSPC));
}

#[test]
fn a_commit_covers_only_what_was_acknowledged_before_it_was_sent() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put(50, b"x");
    rig.linger();
    let late = rig.write();
    rig.writeback.make_room();
    let commit = rig.commit();
    rig.ack(&late, Stable::Unstable, V1);
    let before = rig.writeback.uncommitted_bytes();
    rig.writeback.committed(commit, V1);
    let after = rig.writeback.uncommitted_bytes();
    assert!(0 < after && after < before);
    let ticket = rig.writeback.begin_drain();
    let commit = rig.commit();
    rig.writeback.committed(commit, V1);
    assert!(rig.writeback.drained(&ticket));
}

#[test]
fn a_failed_commit_is_one_error() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.retain(50, b"abc");
    let ticket = rig.writeback.begin_drain();
    let commit = rig.commit();
    let mut seen = rig.writeback.errors().sample();
    rig.writeback.commit_failed(commit, ENOSPC.into());
    assert_eq!(rig.writeback.errors().check(&mut seen), Some(ENOSPC.into()));
    assert_eq!(rig.writeback.errors().check(&mut seen), None);
    assert!(rig.writeback.drained(&ticket) && rig.writeback.is_idle());
}

#[test]
fn two_thirds_of_the_window_retained_are_committed_without_a_drain() {
    let mut rig = Rig::with(16, 2700);
    // It may not go behind a WRITE in another name.
    for (i, origin) in ['a', 'b', 'b', 'b'].into_iter().enumerate() {
        assert!(rig.writes().is_empty());
        rig.put_as(origin, i as u64 * 100, b"abc", false);
        rig.linger();
        let write = rig.write();
        assert_eq!(write.commit, None);
        rig.ack(&write, Stable::Unstable, V1);
    }
    let commit = rig.commit();
    assert!(rig.next().is_none(), "a second COMMIT");
    rig.writeback.committed(commit, V1);
    assert!(rig.writeback.is_idle());
}

/// More than a third of the window is retained, all places are taken, and a full
/// segment is queued.
fn about_to_commit() -> (Rig, Sent) {
    let mut rig = Rig::with(1, 2700);
    rig.retain(0, b"abc");
    rig.put(100, &[b'x'; WSIZE]);
    let flying = rig.write();
    assert_eq!(flying.commit, None);
    rig.put(200, &[b'y'; WSIZE]);
    rig.ack(&flying, Stable::Unstable, V1);
    let next = rig.write();
    (rig, next)
}

#[test]
fn a_commit_that_is_due_goes_behind_the_next_write_and_proves_it_too() {
    let (mut rig, write) = about_to_commit();
    assert_eq!((write.offset, write.stable), (200, Stable::Unstable));
    assert_eq!(write.commit, Some((0, 216)));
    rig.writeback
        .written_and_committed(write.id, WSIZE as u32, Stable::Unstable, V1, V1);
    assert!(rig.writeback.is_idle() && rig.error().is_none());
}

#[test]
fn a_commit_behind_a_write_shows_what_the_server_has_lost() {
    let (mut rig, write) = about_to_commit();
    let count = WSIZE as u32;
    rig.writeback
        .written_and_committed(write.id, count, Stable::Unstable, V2, V2);
    let mut again = Vec::new();
    while !rig.writeback.is_idle() {
        for write in rig.writes() {
            again.push(write.offset);
            rig.ack(&write, Stable::FileSync, V2);
        }
    }
    again.sort_unstable();
    assert_eq!(again, [0, 100]);
}

#[test]
fn a_write_is_only_as_stable_as_the_commit_of_its_own_server_makes_it() {
    let (mut rig, write) = about_to_commit();
    let count = WSIZE as u32;
    // It crashed between the two.
    rig.writeback
        .written_and_committed(write.id, count, Stable::Unstable, V1, V2);
    assert!(rig.writeback.uncommitted_bytes() > 0, "taken for stable");
}

#[test]
fn a_commit_behind_a_write_that_was_not_executed_goes_alone() {
    for failed in [false, true] {
        let (mut rig, write) = about_to_commit();
        match failed {
            true => rig.writeback.failed(write.id, ENOSPC.into()),
            false => rig.ack(&write, Stable::Unstable, V1),
        }
        rig.put(300, &[b'z'; WSIZE]);
        let beside = match rig.next() {
            Some(Action::Write { id, commit, .. }) => {
                assert_eq!(commit, None);
                id
            }
            other => panic!("{other:?}"),
        };
        let commit = rig.commit();
        rig.writeback.committed(commit, V1);
        let count = WSIZE as u32;
        rig.writeback.written(beside, count, Stable::FileSync, V1);
        assert!(rig.writeback.is_idle());
    }
}

#[test]
fn the_last_write_that_a_drain_waits_for_takes_the_commit_of_the_rest_along() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put(50, b"x");
    let ticket = rig.writeback.begin_drain();
    let write = rig.write();
    assert_eq!(write.commit, Some((0, 51)));
    rig.writeback
        .written_and_committed(write.id, 1, Stable::Unstable, V1, V1);
    assert!(rig.writeback.drained(&ticket) && rig.writeback.is_idle());
}

#[test]
fn who_waited_for_room_while_a_commit_was_under_way_does_not_make_it_two() {
    let mut rig = Rig::with(16, 2700);
    rig.retain(0, b"abc");
    rig.writeback.make_room();
    let commit = rig.commit();
    rig.retain(100, b"abc");
    rig.writeback.make_room();
    rig.writeback.committed(commit, V1);
    assert!(rig.writes().is_empty() && rig.writeback.uncommitted_bytes() > 0);
    rig.writeback.make_room();
    rig.commit();
}

#[test]
fn a_commit_does_not_go_behind_a_write_in_another_name() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put_as('b', 50, b"x", false);
    rig.writeback.begin_drain();
    let write = rig.write();
    assert_eq!(write.commit, None);
    rig.ack(&write, Stable::FileSync, V1);
    rig.commit();
}

#[test]
fn a_thousand_small_pieces_retained_are_committed_without_a_drain() {
    let mut rig = Rig::with(16, 1 << 30);
    for i in 0..1023 {
        rig.retain(i * 100, b"x");
        assert!(rig.writes().is_empty());
    }
    rig.retain(1 << 20, b"x");
    rig.commit();
}

#[test]
fn concurrent_drains_share_a_commit() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    let first = rig.writeback.begin_drain();
    let second = rig.writeback.begin_drain();
    let commit = rig.commit();
    rig.writeback.committed(commit, V1);
    assert!(rig.writeback.drained(&first) && rig.writeback.drained(&second));
}

#[test]
fn a_drain_does_not_end_with_older_bytes_replaced_but_nothing_stable() {
    let mut rig = Rig::new();
    rig.put(0, b"old");
    let ticket = rig.writeback.begin_drain();
    rig.put_as('b', 0, b"new", false);
    assert!(!rig.writeback.drained(&ticket));
    let write = rig.write();
    assert_eq!(&write.data[..], b"new");
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.writeback.drained(&ticket));
}

/// Writers and other drains do their worst after every event of the drain.
fn a_drain_ends_although(mut meanwhile: impl FnMut(&mut Rig, u64)) {
    let mut rig = Rig::with(2, 1 << 20);
    rig.retain(0, b"retained");
    rig.put(4, b"flying");
    rig.linger();
    let flying = rig.write();
    rig.put(6, b"queued");
    let ticket = rig.writeback.begin_drain();
    meanwhile(&mut rig, 0);
    rig.ack(&flying, Stable::Unstable, V1);
    for step in 1..20 {
        if rig.writeback.drained(&ticket) {
            return;
        }
        meanwhile(&mut rig, step);
        let mut actions = Vec::new();
        while let Some(action) = rig.next() {
            meanwhile(&mut rig, step);
            actions.push(action);
        }
        for action in actions {
            match action {
                Action::Write { id, data, .. } => {
                    let count = data.concat().len() as u32;
                    rig.writeback.written(id, count, Stable::Unstable, V1);
                }
                Action::Commit { id, .. } => rig.writeback.committed(id, V1),
                Action::WriteFragments { .. } => panic!("nothing here is a fragment"),
                Action::WakeAt(_) => {}
            }
            meanwhile(&mut rig, step);
        }
    }
    panic!("the drain is starved");
}

#[test]
fn a_drain_ends_although_its_range_is_rewritten_all_the_time() {
    a_drain_ends_although(|rig, _| {
        rig.put(0, b"0123456789abcdef");
        rig.put_as('b', 3, b"01234", false);
    });
}

#[test]
fn a_drain_ends_although_the_file_grows_all_the_time() {
    a_drain_ends_although(|rig, step| {
        for i in 0..4 {
            rig.put(12 + step * 40 + i * 10, b"0123456789");
        }
        rig.linger();
    });
}

#[test]
fn a_drain_ends_although_others_begin_all_the_time() {
    a_drain_ends_although(|rig, step| {
        rig.put(0, b"0123456789abcdef");
        rig.put(100 + step, b"x");
        rig.writeback.begin_drain();
    });
}

#[test]
fn data_that_nobody_synced_outlive_any_number_of_restarts() {
    let mut rig = Rig::new();
    rig.retain(0, b"kept");
    for nth in 0..20 {
        rig.writeback.server_restarted();
        let again = rig.write();
        assert_eq!((again.offset, &again.data[..]), (0, &b"kept"[..]), "{nth}");
        rig.ack(&again, Stable::Unstable, [nth; 8]);
    }
    rig.writeback.begin_drain();
    let commit = rig.commit();
    rig.writeback.committed(commit, [19; 8]);
    assert!(rig.writeback.is_idle());
    assert_eq!(rig.error(), None);
}

#[test]
fn what_nobody_syncs_is_committed_after_a_while_and_its_memory_is_free() {
    let mut rig = Rig::new();
    rig.retain(0, b"left");
    assert!(matches!(rig.next(), Some(Action::WakeAt(at)) if at == rig.now + COMMIT_AFTER));
    assert!(rig.next().is_none(), "told of the same wake-up twice");
    rig.now += COMMIT_AFTER;
    let commit = rig.commit();
    assert!(rig.next().is_none());
    rig.writeback.committed(commit, V1);
    assert!(rig.writeback.is_idle());
    assert_eq!((rig.writeback.bytes(), rig.error()), (0, None));
}

#[test]
fn a_writer_that_never_rests_has_its_data_committed_meanwhile_by_one_timer_at_a_time() {
    let mut rig = Rig::new();
    let (mut commits, mut alarms, mut oldest) = (0, Vec::new(), 0);
    for step in 0..2000_u64 {
        rig.put(step * 4, b"data");
        rig.now += COMMIT_AFTER / 100;
        alarms.retain(|at| *at > rig.now);
        while let Some(action) = rig.next() {
            match action {
                Action::Write { id, data, .. } => {
                    let count = data.concat().len() as u32;
                    rig.writeback.written(id, count, Stable::Unstable, V1);
                }
                Action::Commit { id, .. } => {
                    commits += 1;
                    rig.writeback.committed(id, V1);
                }
                Action::WriteFragments { .. } => panic!("nothing here is a fragment"),
                Action::WakeAt(at) => alarms.push(at),
            }
        }
        oldest = oldest.max(rig.writeback.uncommitted_bytes());
        assert!(alarms.len() <= 2, "{} timers", alarms.len());
    }
    assert!((15..=20).contains(&commits), "{commits} in 20 times");
    assert!(oldest < 64 << 10, "{oldest} bytes");
}

#[test]
fn a_server_that_lost_what_nobody_syncs_is_found_out_by_that_commit() {
    let mut rig = Rig::new();
    rig.retain(0, b"lost");
    assert!(rig.writes().is_empty());
    rig.now += COMMIT_AFTER;
    let commit = rig.commit();
    rig.writeback.committed(commit, V2);
    let again = rig.write();
    assert_eq!((again.offset, &again.data[..]), (0, &b"lost"[..]));
    rig.ack(&again, Stable::Unstable, V2);
    assert!(matches!(rig.next(), Some(Action::WakeAt(_))));
    rig.now += COMMIT_AFTER;
    let commit = rig.commit();
    rig.writeback.committed(commit, V2);
    assert!(rig.writeback.is_idle() && rig.error().is_none());
}

#[test]
fn what_is_all_there_is_when_somebody_looks_is_stable_at_once() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    let ticket = rig.writeback.drain_to_look();
    let write = rig.write();
    assert_eq!((write.offset, write.stable), (0, Stable::FileSync));
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.writeback.range_drained(&ticket) && rig.writeback.is_idle());
    // What is written later is not: nobody has looked since.
    rig.put(0, b"abc");
    rig.linger();
    assert_eq!(rig.write().stable, Stable::Unstable);
}

#[test]
fn what_is_not_all_there_is_when_somebody_looks_is_committed_with_the_rest() {
    // Others are retained, ...
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put(100, b"def");
    rig.writeback.drain_to_look();
    assert_eq!(rig.write().stable, Stable::Unstable);
    // ... in flight, ...
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.linger();
    rig.write();
    rig.put(100, b"def");
    rig.writeback.drain_to_look();
    assert_eq!(rig.write().stable, Stable::Unstable);
    // ... or still queued.
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.put(100, b"def");
    rig.writeback.drain_to_look();
    assert_eq!(rig.writes()[0].stable, Stable::Unstable);
}
