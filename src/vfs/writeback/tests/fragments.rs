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
            linger: LINGER,
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
    // ... no more bytes than one WRITE has, and no more than may be in flight.
    let mut rig = Rig::new();
    for piece in 0..8 {
        rig.put('a', 50 * piece, 15);
    }
    rig.writeback.begin_drain();
    assert_eq!(rig.offsets(), [vec![0, 50, 100, 150], vec![200, 250]]);
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
