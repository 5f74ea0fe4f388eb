//! Small pieces that share a request.

use super::super::*;
use super::{LINGER, V1, V2};

const WSIZE: usize = 64;

struct Rig {
    writeback: Writeback<char>,
    now: Instant,
}

/// Ids and offsets of what goes in one request, and its COMMIT.
type Sent = (Vec<(RequestId, u64)>, Option<(u64, u32)>);

impl Rig {
    fn new() -> Self {
        let config = WritebackConfig {
            wsize: WSIZE,
            max_in_flight: 6,
            fragment: 16,
            fragments: 4,
            in_front: 1 << 20,
            linger: LINGER,
            max_linger: LINGER,
            commit_after: Duration::from_secs(5),
            file_limit: 1 << 20,
        };
        Self {
            writeback: Writeback::new(Arc::new(config)),
            now: Instant::now(),
        }
    }

    fn put(&mut self, origin: char, offset: u64, len: usize) {
        let data = vec![7; len].into();
        self.writeback.accept(self.now, origin, offset, data, false);
    }

    /// What is to be sent now, each request with its pieces.
    fn sent(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        while let Some(action) = self.writeback.next(self.now) {
            let range = |range: CommitRange| (range.offset, range.count);
            match action {
                Action::Write {
                    id, offset, commit, ..
                } => sent.push((vec![(id, offset)], commit.map(range))),
                Action::WriteFragments {
                    fragments, commit, ..
                } => {
                    let pieces = fragments.iter().map(|one| (one.id, one.offset));
                    sent.push((pieces.collect(), commit.map(range)));
                }
                Action::Commit { .. } => sent.push((Vec::new(), Some((0, 0)))),
                Action::WakeAt(_) => {}
            }
        }
        sent
    }

    fn offsets(&mut self) -> Vec<Vec<u64>> {
        let sent = self.sent();
        let offsets = |(pieces, _): &Sent| pieces.iter().map(|piece| piece.1).collect();
        sent.iter().map(offsets).collect()
    }
}

#[test]
fn pieces_of_one_file_and_name_share_a_request_up_to_its_bounds() {
    let mut rig = Rig::new();
    for offset in [0, 20, 40] {
        rig.put('a', offset, 4);
    }
    rig.put('b', 100, 4);
    rig.writeback.begin_drain();
    assert_eq!(rig.offsets(), [vec![0, 20, 40], vec![100]]);
    // No more than four, ...
    let mut rig = Rig::new();
    for piece in 0..5 {
        rig.put('a', 20 * piece, 4);
    }
    rig.writeback.begin_drain();
    assert_eq!(rig.offsets(), [vec![0, 20, 40, 60], vec![80]]);
    // ... and no more bytes than one WRITE has.
    let mut rig = Rig::new();
    for piece in 0..8 {
        rig.put('a', 50 * piece, 15);
    }
    rig.writeback.begin_drain();
    let offsets = [vec![0, 50, 100, 150], vec![200, 250, 300, 350]];
    assert_eq!(rig.offsets(), offsets);
    // What is as large as a page goes beside the others, not with them.
    let mut rig = Rig::new();
    rig.put('a', 0, 16);
    rig.put('a', 50, 4);
    rig.put('a', 70, 4);
    rig.writeback.begin_drain();
    assert_eq!(rig.offsets(), [vec![0], vec![50, 70]]);
}

#[test]
fn the_commit_goes_behind_the_last_pieces_and_proves_all_of_them() {
    let mut rig = Rig::new();
    for offset in [0, 20, 40] {
        rig.put('a', offset, 4);
    }
    let drain = rig.writeback.begin_drain();
    let [(pieces, commit)] = &rig.sent()[..] else {
        panic!("one request");
    };
    assert_eq!(*commit, Some((0, 44)));
    for (id, _) in pieces {
        assert!(!rig.writeback.drained(&drain));
        rig.writeback
            .written_and_committed(*id, 4, Stable::Unstable, V1, V1);
    }
    assert!(rig.writeback.drained(&drain) && rig.writeback.is_idle());
}

#[test]
fn pieces_whose_commit_was_not_executed_are_committed_alone() {
    let mut rig = Rig::new();
    rig.put('a', 0, 4);
    rig.put('a', 20, 4);
    let drain = rig.writeback.begin_drain();
    let (pieces, _) = rig.sent().remove(0);
    for (id, _) in pieces {
        rig.writeback.written(id, 4, Stable::Unstable, V1);
    }
    assert!(!rig.writeback.drained(&drain));
    let Some(Action::Commit { id, range, .. }) = rig.writeback.next(rig.now) else {
        panic!("a COMMIT");
    };
    assert_eq!((range.offset, range.count), (0, 24));
    rig.writeback.committed(id, V1);
    assert!(rig.writeback.drained(&drain) && rig.writeback.is_idle());
}

#[test]
fn pieces_that_the_server_lost_before_the_commit_are_written_again() {
    let mut rig = Rig::new();
    rig.put('a', 0, 4);
    rig.put('a', 20, 4);
    let drain = rig.writeback.begin_drain();
    let (pieces, _) = rig.sent().remove(0);
    // It restarted between the two.
    let verifiers = [V1, V2];
    for ((id, _), verifier) in pieces.into_iter().zip(verifiers) {
        rig.writeback
            .written_and_committed(id, 4, Stable::Unstable, verifier, V2);
    }
    assert!(!rig.writeback.drained(&drain));
    let mut again = Vec::new();
    for _ in 0..3 {
        match rig.writeback.next(rig.now) {
            Some(Action::Write { id, offset, .. }) => {
                again.push(offset);
                rig.writeback.written(id, 4, Stable::FileSync, V2);
            }
            Some(Action::Commit { id, .. }) => rig.writeback.committed(id, V2),
            _ => break,
        }
    }
    assert_eq!(again, [0]);
    assert!(rig.writeback.drained(&drain) && rig.writeback.is_idle());
}

#[test]
fn a_piece_that_overlaps_one_in_flight_waits_and_the_others_do_not() {
    let mut rig = Rig::new();
    rig.put('a', 0, 4);
    rig.now += LINGER;
    let (first, _) = rig.sent().remove(0);
    rig.put('a', 2, 4);
    rig.put('a', 20, 4);
    rig.put('a', 40, 4);
    rig.now += LINGER;
    assert_eq!(rig.offsets(), [vec![20, 40]]);
    rig.writeback.written(first[0].0, 4, Stable::Unstable, V1);
    assert_eq!(rig.offsets(), [vec![2]]);
}

#[test]
fn what_somebody_waits_for_goes_at_the_same_time_and_shares_when_there_are_more_than_places() {
    let mut rig = Rig::new();
    for piece in 0..6 {
        rig.put('a', 50 * piece, 16);
    }
    rig.writeback.begin_drain();
    assert_eq!(
        rig.offsets(),
        [0, 50, 100, 150, 200, 250].map(|at| vec![at])
    );
    // Eleven for six places: they are filled evenly, and nothing waits for a reply.
    let mut rig = Rig::new();
    for piece in 0..11 {
        rig.put('a', 50 * piece, 16);
    }
    rig.writeback.begin_drain();
    let lens: Vec<_> = rig.offsets().iter().map(Vec::len).collect();
    assert_eq!(lens, [2, 2, 2, 2, 2, 1]);
    // No more than there may be in a request; the rest waits.
    let mut rig = Rig::new();
    for piece in 0..40 {
        rig.put('a', 50 * piece, 16);
    }
    rig.writeback.begin_drain();
    let lens: Vec<_> = rig.offsets().iter().map(Vec::len).collect();
    assert_eq!(lens, [4; 6]);
}

#[test]
fn what_nobody_waits_for_shares_requests_as_far_as_they_go() {
    let mut rig = Rig::new();
    for piece in 0..5 {
        rig.put('a', 50 * piece, 16);
    }
    rig.put('b', 600, 16);
    rig.put('b', 650, 40);
    rig.put('b', 700, 40);
    rig.now += LINGER;
    let offsets = [vec![0, 50, 100, 150], vec![200], vec![600, 650], vec![700]];
    assert_eq!(rig.offsets(), offsets);
}

#[test]
fn a_request_takes_one_place_whatever_it_holds_until_all_of_it_is_answered() {
    let mut rig = Rig::new();
    for piece in 0..24 {
        rig.put('a', 20 * piece, 4);
    }
    rig.writeback.begin_drain();
    let sent = rig.sent();
    assert_eq!(sent.len(), 6);
    rig.put('a', 1000, 4);
    rig.put('a', 2000, 4);
    rig.writeback.begin_drain();
    let (pieces, _) = &sent[2];
    for (id, _) in &pieces[1..] {
        rig.writeback.written(*id, 4, Stable::Unstable, V1);
        assert!(rig.offsets().is_empty());
    }
    rig.writeback.written(pieces[0].0, 4, Stable::Unstable, V1);
    assert_eq!(rig.offsets(), [vec![1000, 2000]]);
}
