//! One test per rule.

use super::*;

const V1: Verifier = *b"server 1";
const V2: Verifier = *b"server 2";
const EIO: Errno = Errno(libc::EIO);
const ENOSPC: Errno = Errno(libc::ENOSPC);
const WSIZE: usize = 16;
const LINGER: Duration = Duration::from_millis(1);
const COMMIT_AFTER: Duration = Duration::from_secs(5);

/// A pipeline with its clock.
struct Rig {
    pipeline: Pipeline<char>,
    now: Instant,
}

/// A WRITE as the server sees it.
#[derive(Debug, Clone)]
struct Sent {
    id: RequestId,
    origin: char,
    offset: u64,
    data: Vec<u8>,
    stable: Stable,
    commit: Option<(u64, u32)>,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(16, 1 << 20)
    }

    fn with(max_in_flight: usize, file_limit: usize) -> Rig {
        Rig {
            pipeline: Pipeline::new(Arc::new(PipelineConfig {
                wsize: WSIZE,
                max_in_flight,
                fragment: 0,
                fragments: 1,
                linger: LINGER,
                commit_after: COMMIT_AFTER,
                file_limit,
            })),
            now: Instant::now(),
        }
    }

    fn put(&mut self, offset: u64, data: &[u8]) {
        self.put_as('a', offset, data, false);
    }

    fn put_as(&mut self, origin: char, offset: u64, data: &[u8], sync: bool) {
        let data = Bytes::copy_from_slice(data);
        self.pipeline.accept(self.now, origin, offset, data, sync);
    }

    fn linger(&mut self) {
        self.now += LINGER;
    }

    fn next(&mut self) -> Option<Action<char>> {
        self.pipeline.next(self.now)
    }

    /// The WRITEs to be sent now; nothing else may be asked for but wake-ups.
    fn writes(&mut self) -> Vec<Sent> {
        let mut writes = Vec::new();
        while let Some(action) = self.next() {
            match action {
                Action::Write {
                    id,
                    origin,
                    offset,
                    data,
                    stable,
                    commit,
                } => writes.push(Sent {
                    id,
                    origin,
                    offset,
                    data: data.concat(),
                    stable,
                    commit: commit.map(|range| (range.offset, range.count)),
                }),
                other @ (Action::WriteFragments { .. } | Action::Commit { .. }) => {
                    panic!("{other:?} instead of a WRITE")
                }
                Action::WakeAt(at) => assert!(at > self.now),
            }
        }
        writes
    }

    fn write(&mut self) -> Sent {
        let writes = self.writes();
        assert_eq!(writes.len(), 1, "{writes:?}");
        writes[0].clone()
    }

    fn commit(&mut self) -> RequestId {
        match self.next() {
            Some(Action::Commit { id, .. }) => id,
            other => panic!("{other:?} instead of a COMMIT"),
        }
    }

    fn ack(&mut self, write: &Sent, stable: Stable, verifier: Verifier) {
        let count = write.data.len() as u32;
        self.pipeline.written(write.id, count, stable, verifier);
    }

    /// Sends what is queued and has it acknowledged UNSTABLE by `V1`.
    fn retain(&mut self, offset: u64, data: &[u8]) {
        self.put(offset, data);
        self.linger();
        let write = self.write();
        assert_eq!((write.offset, &write.data[..]), (offset, data));
        self.ack(&write, Stable::Unstable, V1);
    }

    fn error(&self) -> Option<Errno> {
        self.pipeline
            .errors()
            .check(&mut ErrSeq::default().sample())
    }
}

#[test]
fn an_idle_pipeline_costs_a_few_words() {
    assert!(size_of::<Pipeline<u64>>() <= 40);
    let mut rig = Rig::new();
    assert!(rig.pipeline.is_idle() && rig.next().is_none());
    rig.put(0, b"x");
    assert!(!rig.pipeline.is_idle());
    rig.linger();
    let write = rig.write();
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.pipeline.is_idle());
    assert_eq!((rig.pipeline.bytes(), rig.error()), (0, None));
}

#[test]
fn adjoining_writes_share_a_request_until_the_linger_is_over() {
    let mut rig = Rig::new();
    rig.put(100, b"abc");
    assert!(matches!(rig.next(), Some(Action::WakeAt(at)) if at == rig.now + LINGER));
    assert!(rig.next().is_none(), "told of the same wake-up twice");
    rig.put(103, b"def");
    rig.put(97, b"xyz");
    rig.linger();
    let write = rig.write();
    assert_eq!((write.offset, &write.data[..]), (97, &b"xyzabcdef"[..]));
    assert_eq!(write.stable, Stable::Unstable);
}

#[test]
fn a_full_segment_does_not_linger() {
    let mut rig = Rig::new();
    rig.put(0, &[1; WSIZE - 1]);
    assert!(rig.writes().is_empty());
    rig.put(WSIZE as u64 - 1, &[2; 3]);
    let write = rig.write();
    assert_eq!((write.offset, write.data.len()), (0, WSIZE));
    rig.linger();
    assert_eq!(rig.write().data, [2; 2]);
}

#[test]
fn a_large_write_is_cut_to_wsize() {
    let mut rig = Rig::new();
    rig.put(5, &[1; 2 * WSIZE + 1]);
    rig.linger();
    let lens: Vec<_> = rig
        .writes()
        .iter()
        .map(|w| (w.offset, w.data.len()))
        .collect();
    assert_eq!(lens, [(5, WSIZE), (21, WSIZE), (37, 1)]);
}

#[test]
fn a_gap_is_never_filled() {
    let mut rig = Rig::new();
    rig.put(0, b"ab");
    rig.put(3, b"cd");
    rig.linger();
    let sent: Vec<_> = rig
        .writes()
        .into_iter()
        .map(|w| (w.offset, w.data))
        .collect();
    assert_eq!(sent, [(0, b"ab".to_vec()), (3, b"cd".to_vec())]);
}

#[test]
fn newer_bytes_win_in_the_queue() {
    let mut rig = Rig::new();
    rig.put(0, b"abcdef");
    rig.put(2, b"XY");
    rig.put(5, b"ZZ");
    rig.linger();
    assert_eq!(rig.write().data, b"abXYeZZ");
}

#[test]
fn bytes_of_different_origins_never_share_a_write() {
    let mut rig = Rig::new();
    rig.put_as('a', 0, b"aaaaaa", false);
    rig.put_as('b', 2, b"bb", false);
    rig.put_as('b', 6, b"b", false);
    rig.linger();
    let mut sent: Vec<_> = rig
        .writes()
        .into_iter()
        .map(|w| (w.offset, w.origin, w.data.len()))
        .collect();
    sent.sort_unstable();
    assert_eq!(sent, [(0, 'a', 2), (2, 'b', 2), (4, 'a', 2), (6, 'b', 1)]);
}

#[test]
fn no_more_than_max_in_flight_are_sent_and_the_rest_keeps_growing() {
    let mut rig = Rig::with(2, 1 << 20);
    for i in 0..3 {
        rig.put(i * 100, b"x");
    }
    rig.linger();
    let first = rig.writes();
    assert_eq!(first.len(), 2);
    rig.put(201, b"yz");
    rig.ack(&first[0], Stable::FileSync, V1);
    assert_eq!(rig.write().data, b"xyz");
}

#[test]
fn a_write_that_overlaps_one_in_flight_waits_for_its_reply() {
    let mut rig = Rig::new();
    rig.put(0, b"aaaa");
    rig.linger();
    let old = rig.write();
    rig.put(3, b"bb");
    rig.put(10, b"cc");
    rig.linger();
    assert_eq!(rig.write().offset, 10);
    rig.ack(&old, Stable::Unstable, V1);
    assert_eq!(rig.write().data, b"bb");
}

#[test]
fn sync_data_go_at_once_and_file_sync() {
    let mut rig = Rig::new();
    rig.put_as('a', 0, b"now", true);
    assert_eq!(rig.write().stable, Stable::FileSync);
}

#[test]
fn the_last_data_of_a_drain_need_no_commit() {
    let mut rig = Rig::new();
    rig.put(0, b"small file");
    let ticket = rig.pipeline.begin_drain();
    let write = rig.write();
    assert_eq!(write.stable, Stable::FileSync);
    assert!(!rig.pipeline.drained(&ticket));
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.pipeline.drained(&ticket) && rig.pipeline.is_idle());
}

#[test]
fn a_drain_of_several_writes_is_sent_at_once_and_committed_once() {
    let mut rig = Rig::new();
    rig.put(0, b"a");
    rig.put(100, b"b");
    let ticket = rig.pipeline.begin_drain();
    let writes = rig.writes();
    assert_eq!(writes.len(), 2);
    for write in &writes {
        rig.ack(write, Stable::Unstable, V1);
    }
    let Some(Action::Commit { id, range, .. }) = rig.next() else {
        panic!("no COMMIT");
    };
    assert_eq!((range.offset, range.count), (0, 101));
    assert!(rig.next().is_none() && !rig.pipeline.drained(&ticket));
    rig.pipeline.committed(id, V1);
    assert!(rig.pipeline.drained(&ticket) && rig.pipeline.is_idle());
}

#[test]
fn a_server_that_answers_file_sync_is_never_sent_a_commit() {
    let mut rig = Rig::new();
    rig.put(0, b"a");
    rig.put(100, b"b");
    let ticket = rig.pipeline.begin_drain();
    for write in rig.writes() {
        rig.ack(&write, Stable::FileSync, V1);
    }
    assert!(rig.next().is_none() && rig.pipeline.drained(&ticket));
}

#[test]
fn the_rest_of_a_short_write_is_sent_again() {
    let mut rig = Rig::new();
    rig.put(10, b"abcdef");
    rig.linger();
    let write = rig.write();
    rig.pipeline.written(write.id, 2, Stable::FileSync, V1);
    let rest = rig.write();
    assert_eq!((rest.offset, &rest.data[..]), (12, &b"cdef"[..]));
}

#[test]
fn the_rest_of_a_short_write_gives_way_to_newer_bytes() {
    let mut rig = Rig::new();
    rig.put(0, b"abcdef");
    rig.linger();
    let write = rig.write();
    rig.put(3, b"X");
    rig.pipeline.written(write.id, 2, Stable::FileSync, V1);
    let mut sent: Vec<_> = rig
        .writes()
        .into_iter()
        .map(|w| (w.offset, w.data))
        .collect();
    sent.sort_unstable();
    let expected = [(2, &b"c"[..]), (3, b"X"), (4, b"ef")];
    assert_eq!(sent, expected.map(|(at, data)| (at, data.to_vec())));
}

#[test]
fn nothing_written_is_tried_again_a_few_times_and_then_an_error() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.linger();
    let mut rounds = 0;
    while let [write] = &rig.writes()[..] {
        rounds += 1;
        assert!(rounds < 10);
        rig.pipeline.written(write.id, 0, Stable::Unstable, V1);
    }
    assert_eq!((rounds, rig.error()), (5, Some(EIO)));
    assert!(rig.pipeline.is_idle());
}

#[test]
fn more_written_than_sent_is_an_error() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.linger();
    let write = rig.write();
    rig.pipeline.written(write.id, 4, Stable::FileSync, V1);
    assert_eq!(rig.error(), Some(EIO));
    assert!(rig.pipeline.is_idle());
}

#[test]
fn a_failed_write_is_one_error_and_later_writes_go_on() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    let mut seen = rig.pipeline.errors().sample();
    let ticket = rig.pipeline.begin_drain();
    let write = rig.write();
    rig.pipeline.failed(write.id, ENOSPC);
    assert!(rig.pipeline.drained(&ticket));
    assert_eq!(rig.pipeline.errors().check(&mut seen), Some(ENOSPC));
    rig.put(0, b"def");
    rig.linger();
    let write = rig.write();
    rig.ack(&write, Stable::FileSync, V1);
    assert_eq!(rig.pipeline.errors().check(&mut seen), None);
}

#[test]
fn a_reply_to_an_unknown_request_changes_nothing() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.pipeline
        .written(RequestId(999), 3, Stable::FileSync, V1);
    rig.pipeline.failed(RequestId(999), EIO);
    rig.pipeline.committed(RequestId(999), V1);
    rig.pipeline.commit_failed(RequestId(999), EIO);
    assert!(rig.pipeline.uncommitted_bytes() > 0 && rig.error().is_none());
}

#[test]
fn a_commit_by_another_instance_brings_the_data_again() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    let ticket = rig.pipeline.begin_drain();
    let commit = rig.commit();
    rig.pipeline.committed(commit, V2);
    assert!(!rig.pipeline.drained(&ticket));
    let again = rig.write();
    assert_eq!(
        (&again.data[..], again.stable),
        (&b"abc"[..], Stable::FileSync)
    );
    rig.ack(&again, Stable::FileSync, V2);
    assert!(rig.pipeline.drained(&ticket) && rig.error().is_none());
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
fn a_reply_that_was_overtaken_does_not_bring_data_again() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.put(50, b"x");
    rig.linger();
    let writes = rig.writes();
    // The server restarted between the two; which was first is not known.
    rig.ack(&writes[0], Stable::Unstable, V2);
    rig.ack(&writes[1], Stable::Unstable, V1);
    assert!(rig.writes().is_empty());
    rig.pipeline.begin_drain();
    let commit = rig.commit();
    rig.pipeline.committed(commit, V2);
    assert_eq!(rig.write().data, b"x");
}

#[test]
fn a_server_that_changes_its_verifier_for_ever_is_an_error() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    let ticket = rig.pipeline.begin_drain();
    let mut rounds = 0;
    while !rig.pipeline.drained(&ticket) {
        match rig.next() {
            Some(Action::Write { id, .. }) => {
                rig.pipeline.written(id, 3, Stable::Unstable, V1);
            }
            Some(Action::Commit { id, .. }) => {
                rounds += 1;
                assert!(rounds < 10);
                rig.pipeline.committed(id, V2);
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((rounds, rig.error()), (6, Some(EIO)));
    assert!(rig.pipeline.is_idle());
}

#[test]
fn lost_data_are_not_written_over_newer_ones() {
    let mut rig = Rig::new();
    rig.retain(0, b"abcdef");
    rig.put(1, b"X");
    rig.linger();
    let flying = rig.write();
    rig.put(3, b"Y");
    rig.pipeline.begin_drain();
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
    rig.pipeline.failed(flying.id, ENOSPC);
    assert_eq!(rig.error(), Some(ENOSPC));
}

#[test]
fn a_commit_covers_only_what_was_acknowledged_before_it_was_sent() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put(50, b"x");
    rig.linger();
    let late = rig.write();
    rig.pipeline.make_room();
    let commit = rig.commit();
    rig.ack(&late, Stable::Unstable, V1);
    let before = rig.pipeline.uncommitted_bytes();
    rig.pipeline.committed(commit, V1);
    let after = rig.pipeline.uncommitted_bytes();
    assert!(0 < after && after < before);
    let ticket = rig.pipeline.begin_drain();
    let commit = rig.commit();
    rig.pipeline.committed(commit, V1);
    assert!(rig.pipeline.drained(&ticket));
}

#[test]
fn a_failed_commit_is_one_error() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.retain(50, b"abc");
    let ticket = rig.pipeline.begin_drain();
    let commit = rig.commit();
    let mut seen = rig.pipeline.errors().sample();
    rig.pipeline.commit_failed(commit, ENOSPC);
    assert_eq!(rig.pipeline.errors().check(&mut seen), Some(ENOSPC));
    assert_eq!(rig.pipeline.errors().check(&mut seen), None);
    assert!(rig.pipeline.drained(&ticket) && rig.pipeline.is_idle());
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
    rig.pipeline.committed(commit, V1);
    assert!(rig.pipeline.is_idle());
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
    rig.pipeline
        .written_and_committed(write.id, WSIZE as u32, Stable::Unstable, V1, V1);
    assert!(rig.pipeline.is_idle() && rig.error().is_none());
}

#[test]
fn a_commit_behind_a_write_shows_what_the_server_has_lost() {
    let (mut rig, write) = about_to_commit();
    let count = WSIZE as u32;
    rig.pipeline
        .written_and_committed(write.id, count, Stable::Unstable, V2, V2);
    let mut again = Vec::new();
    while !rig.pipeline.is_idle() {
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
    rig.pipeline
        .written_and_committed(write.id, count, Stable::Unstable, V1, V2);
    assert!(rig.pipeline.uncommitted_bytes() > 0, "taken for stable");
}

#[test]
fn a_commit_behind_a_write_that_was_not_executed_goes_alone() {
    for failed in [false, true] {
        let (mut rig, write) = about_to_commit();
        match failed {
            true => rig.pipeline.failed(write.id, ENOSPC),
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
        rig.pipeline.committed(commit, V1);
        let count = WSIZE as u32;
        rig.pipeline.written(beside, count, Stable::FileSync, V1);
        assert!(rig.pipeline.is_idle());
    }
}

#[test]
fn the_last_write_that_a_drain_waits_for_takes_the_commit_of_the_rest_along() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put(50, b"x");
    let ticket = rig.pipeline.begin_drain();
    let write = rig.write();
    assert_eq!(write.commit, Some((0, 51)));
    rig.pipeline
        .written_and_committed(write.id, 1, Stable::Unstable, V1, V1);
    assert!(rig.pipeline.drained(&ticket) && rig.pipeline.is_idle());
}

#[test]
fn who_waited_for_room_while_a_commit_was_under_way_does_not_make_it_two() {
    let mut rig = Rig::with(16, 2700);
    rig.retain(0, b"abc");
    rig.pipeline.make_room();
    let commit = rig.commit();
    rig.retain(100, b"abc");
    rig.pipeline.make_room();
    rig.pipeline.committed(commit, V1);
    assert!(rig.writes().is_empty() && rig.pipeline.uncommitted_bytes() > 0);
    rig.pipeline.make_room();
    rig.commit();
}

#[test]
fn a_commit_does_not_go_behind_a_write_in_another_name() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.put_as('b', 50, b"x", false);
    rig.pipeline.begin_drain();
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
    let first = rig.pipeline.begin_drain();
    let second = rig.pipeline.begin_drain();
    let commit = rig.commit();
    rig.pipeline.committed(commit, V1);
    assert!(rig.pipeline.drained(&first) && rig.pipeline.drained(&second));
}

#[test]
fn a_drain_does_not_end_with_older_bytes_replaced_but_nothing_stable() {
    let mut rig = Rig::new();
    rig.put(0, b"old");
    let ticket = rig.pipeline.begin_drain();
    rig.put_as('b', 0, b"new", false);
    assert!(!rig.pipeline.drained(&ticket));
    let write = rig.write();
    assert_eq!(&write.data[..], b"new");
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.pipeline.drained(&ticket));
}

/// Writers and other drains do their worst after every event of the drain.
fn a_drain_ends_although(mut meanwhile: impl FnMut(&mut Rig, u64)) {
    let mut rig = Rig::with(2, 1 << 20);
    rig.retain(0, b"retained");
    rig.put(4, b"flying");
    rig.linger();
    let flying = rig.write();
    rig.put(6, b"queued");
    let ticket = rig.pipeline.begin_drain();
    meanwhile(&mut rig, 0);
    rig.ack(&flying, Stable::Unstable, V1);
    for step in 1..20 {
        if rig.pipeline.drained(&ticket) {
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
                    rig.pipeline.written(id, count, Stable::Unstable, V1);
                }
                Action::Commit { id, .. } => rig.pipeline.committed(id, V1),
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
        rig.pipeline.begin_drain();
    });
}

#[test]
fn queued_data_do_not_linger_when_they_are_read() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.put(100, b"def");
    assert!(rig.pipeline.overlaps_pending(2..4));
    assert!(!rig.pipeline.overlaps_pending(3..100));
    assert!(!rig.pipeline.overlaps_pending(1..1));
    let ticket = rig.pipeline.drain_range(2, 50);
    let write = rig.write();
    assert_eq!((write.offset, write.stable), (0, Stable::Unstable));
    assert!(!rig.pipeline.range_drained(&ticket));
    rig.put(1, b"later");
    rig.ack(&write, Stable::Unstable, V1);
    assert!(rig.pipeline.range_drained(&ticket));
    assert!(rig.pipeline.overlaps_pending(2..4));
}

#[test]
fn the_file_is_as_long_as_what_is_pending() {
    let mut rig = Rig::new();
    assert_eq!(rig.pipeline.end_offset(), None);
    rig.put(10, b"abc");
    rig.linger();
    let write = rig.write();
    rig.put(0, b"x");
    assert_eq!(rig.pipeline.end_offset(), Some(13));
    rig.ack(&write, Stable::Unstable, V1);
    assert_eq!(rig.pipeline.end_offset(), Some(1));
}

#[test]
fn data_that_nobody_synced_outlive_any_number_of_restarts() {
    let mut rig = Rig::new();
    rig.retain(0, b"kept");
    for nth in 0..20 {
        rig.pipeline.server_restarted();
        let again = rig.write();
        assert_eq!((again.offset, &again.data[..]), (0, &b"kept"[..]), "{nth}");
        rig.ack(&again, Stable::Unstable, [nth; 8]);
    }
    rig.pipeline.begin_drain();
    let commit = rig.commit();
    rig.pipeline.committed(commit, [19; 8]);
    assert!(rig.pipeline.is_idle());
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
    rig.pipeline.committed(commit, V1);
    assert!(rig.pipeline.is_idle());
    assert_eq!((rig.pipeline.bytes(), rig.error()), (0, None));
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
                    rig.pipeline.written(id, count, Stable::Unstable, V1);
                }
                Action::Commit { id, .. } => {
                    commits += 1;
                    rig.pipeline.committed(id, V1);
                }
                Action::WriteFragments { .. } => panic!("nothing here is a fragment"),
                Action::WakeAt(at) => alarms.push(at),
            }
        }
        oldest = oldest.max(rig.pipeline.uncommitted_bytes());
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
    rig.pipeline.committed(commit, V2);
    let again = rig.write();
    assert_eq!((again.offset, &again.data[..]), (0, &b"lost"[..]));
    rig.ack(&again, Stable::Unstable, V2);
    assert!(matches!(rig.next(), Some(Action::WakeAt(_))));
    rig.now += COMMIT_AFTER;
    let commit = rig.commit();
    rig.pipeline.committed(commit, V2);
    assert!(rig.pipeline.is_idle() && rig.error().is_none());
}

#[test]
fn forgotten_requests_keep_their_range_closed_until_they_are_answered() {
    let mut rig = Rig::new();
    rig.retain(50, b"retained");
    rig.put(0, b"flying");
    rig.linger();
    let flying = rig.write();
    rig.put(100, b"queued");
    rig.pipeline.forget_all(EIO);
    let mut seen = rig.pipeline.errors().sample();
    assert_eq!(rig.error(), Some(EIO));
    assert_eq!(rig.pipeline.end_offset(), None);
    rig.put(3, b"new");
    rig.linger();
    assert!(rig.writes().is_empty());
    rig.pipeline.failed(flying.id, ENOSPC);
    assert_eq!(rig.pipeline.errors().check(&mut seen), None);
    let write = rig.write();
    assert_eq!((write.offset, &write.data[..]), (3, &b"new"[..]));
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.pipeline.is_idle());
}

#[test]
fn forgetting_one_origin_leaves_the_others() {
    let mut rig = Rig::new();
    rig.put_as('a', 0, b"aaa", false);
    rig.put_as('b', 3, b"bbb", false);
    rig.pipeline.forget(EIO, |origin| *origin == 'a');
    assert_eq!(rig.error(), Some(EIO));
    rig.linger();
    assert_eq!(rig.write().origin, 'b');
}

#[test]
fn scattered_bytes_are_charged_what_they_cost() {
    let mut rig = Rig::new();
    for i in 0..100 {
        rig.put(i * 2, b"x");
    }
    assert!(rig.pipeline.bytes() >= 100 * 200);
    rig.pipeline.forget_all(EIO);
    assert_eq!(rig.pipeline.bytes(), 0);
}

#[test]
fn a_range_past_the_end_of_offsets_is_refused() {
    let mut rig = Rig::new();
    rig.put(u64::MAX - 1, b"abc");
    assert_eq!(rig.error(), Some(Errno(libc::EFBIG)));
    assert!(rig.pipeline.is_idle());
}
