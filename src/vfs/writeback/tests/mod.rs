//! One test per rule: here, what is sent when; [`commits`], how it becomes stable;
//! [`fragments`], what shares a request; [`linger`], what waits for more to come.

mod commits;
mod fragments;
mod linger;

use super::*;

const V1: Verifier = *b"server 1";
const V2: Verifier = *b"server 2";
const EIO: Errno = Errno(libc::EIO);
const ENOSPC: Errno = Errno(libc::ENOSPC);
const WSIZE: usize = 16;
const LINGER: Duration = Duration::from_millis(1);
const COMMIT_AFTER: Duration = Duration::from_secs(5);

/// A write-back with its clock.
struct Rig {
    writeback: Writeback<char>,
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
            writeback: Writeback::new(Arc::new(WritebackConfig {
                wsize: WSIZE,
                max_in_flight,
                fragment: 0,
                fragments: 1,
                in_front: 1 << 20,
                linger: LINGER,
                max_linger: LINGER,
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
        self.writeback.accept(self.now, origin, offset, data, sync);
    }

    fn linger(&mut self) {
        self.now += LINGER;
    }

    fn next(&mut self) -> Option<Action<char>> {
        self.writeback.next(self.now)
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
        self.writeback.written(write.id, count, stable, verifier);
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
        self.writeback
            .errors()
            .check(&mut ErrSeq::default().sample())
            .map(Errno::from)
    }
}

#[test]
fn an_idle_pipeline_costs_a_few_words() {
    assert!(size_of::<Writeback<u64>>() <= 72);
    let mut rig = Rig::new();
    assert!(rig.writeback.is_idle() && rig.next().is_none());
    rig.put(0, b"x");
    assert!(!rig.writeback.is_idle());
    rig.linger();
    let write = rig.write();
    rig.ack(&write, Stable::FileSync, V1);
    assert!(rig.writeback.is_idle());
    assert_eq!((rig.writeback.bytes(), rig.error()), (0, None));
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
fn the_rest_of_a_short_write_is_sent_again() {
    let mut rig = Rig::new();
    rig.put(10, b"abcdef");
    rig.linger();
    let write = rig.write();
    rig.writeback.written(write.id, 2, Stable::FileSync, V1);
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
    rig.writeback.written(write.id, 2, Stable::FileSync, V1);
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
        rig.writeback.written(write.id, 0, Stable::Unstable, V1);
    }
    assert_eq!((rounds, rig.error()), (5, Some(EIO)));
    assert!(rig.writeback.is_idle());
}

#[test]
fn more_written_than_sent_is_an_error() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.linger();
    let write = rig.write();
    rig.writeback.written(write.id, 4, Stable::FileSync, V1);
    assert_eq!(rig.error(), Some(EIO));
    assert!(rig.writeback.is_idle());
}

#[test]
fn a_failed_write_is_one_error_and_later_writes_go_on() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    let mut seen = rig.writeback.errors().sample();
    let ticket = rig.writeback.begin_drain();
    let write = rig.write();
    rig.writeback.failed(write.id, ENOSPC.into());
    assert!(rig.writeback.drained(&ticket));
    assert_eq!(rig.writeback.errors().check(&mut seen), Some(ENOSPC.into()));
    rig.put(0, b"def");
    rig.linger();
    let write = rig.write();
    rig.ack(&write, Stable::FileSync, V1);
    assert_eq!(rig.writeback.errors().check(&mut seen), None);
}

#[test]
fn a_reply_to_an_unknown_request_changes_nothing() {
    let mut rig = Rig::new();
    rig.retain(0, b"abc");
    rig.writeback
        .written(RequestId(999), 3, Stable::FileSync, V1);
    rig.writeback.failed(RequestId(999), EIO.into());
    rig.writeback.committed(RequestId(999), V1);
    rig.writeback.commit_failed(RequestId(999), EIO.into());
    assert!(rig.writeback.uncommitted_bytes() > 0 && rig.error().is_none());
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
    rig.writeback.begin_drain();
    let commit = rig.commit();
    rig.writeback.committed(commit, V2);
    assert_eq!(rig.write().data, b"x");
}

#[test]
fn queued_data_do_not_linger_when_they_are_read() {
    let mut rig = Rig::new();
    rig.put(0, b"abc");
    rig.put(100, b"def");
    assert!(rig.writeback.overlaps_pending(2..4));
    assert!(!rig.writeback.overlaps_pending(3..100));
    assert!(!rig.writeback.overlaps_pending(1..1));
    let ticket = rig.writeback.drain_range(2, 50);
    let write = rig.write();
    assert_eq!((write.offset, write.stable), (0, Stable::Unstable));
    assert!(!rig.writeback.range_drained(&ticket));
    rig.put(1, b"later");
    rig.ack(&write, Stable::Unstable, V1);
    assert!(rig.writeback.range_drained(&ticket));
    assert!(rig.writeback.overlaps_pending(2..4));
}

#[test]
fn the_file_is_as_long_as_what_is_pending() {
    let mut rig = Rig::new();
    assert_eq!(rig.writeback.end_offset(), None);
    rig.put(10, b"abc");
    rig.linger();
    let write = rig.write();
    rig.put(0, b"x");
    assert_eq!(rig.writeback.end_offset(), Some(13));
    rig.ack(&write, Stable::Unstable, V1);
    assert_eq!(rig.writeback.end_offset(), Some(1));
}

#[test]
fn scattered_bytes_are_charged_what_they_cost() {
    let mut rig = Rig::new();
    for i in 0..100 {
        rig.put(i * 2, b"x");
    }
    assert!(rig.writeback.bytes() >= 100 * 200);
}

#[test]
fn a_range_past_the_end_of_offsets_is_refused() {
    let mut rig = Rig::new();
    rig.put(u64::MAX - 1, b"abc");
    assert_eq!(rig.error(), Some(Errno(libc::EFBIG)));
    assert!(rig.writeback.is_idle());
}
