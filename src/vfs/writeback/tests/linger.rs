//! What waits for more to come, and until when.

use std::collections::BTreeSet;

use super::super::*;
use super::{LINGER, V1, WSIZE};

/// A hundred times the least.
const MOST: Duration = Duration::from_millis(100);

struct Rig {
    writeback: Writeback<char>,
    now: Instant,
    alarms: BTreeSet<Instant>,
    sent: Vec<Sent>,
}

/// A request, and when it was sent.
struct Sent {
    at: Instant,
    ids: Vec<RequestId>,
    /// Starts and ends.
    ranges: Vec<(u64, u64)>,
}

impl Rig {
    fn new() -> Rig {
        Rig::with(16, 1 << 20)
    }

    fn with(max_in_flight: usize, file_limit: usize) -> Rig {
        let config = WritebackConfig {
            wsize: WSIZE,
            max_in_flight,
            fragment: 0,
            fragments: 4,
            in_front: 1 << 20,
            linger: LINGER,
            max_linger: MOST,
            commit_after: Duration::from_secs(500),
            file_limit,
        };
        Rig {
            writeback: Writeback::new(Arc::new(config)),
            now: Instant::now(),
            alarms: BTreeSet::new(),
            sent: Vec::new(),
        }
    }

    fn put(&mut self, offset: u64, len: usize) {
        let data = vec![7; len].into();
        self.writeback.accept(self.now, 'a', offset, data, false);
        self.pump();
    }

    /// Lets time pass, with every wake-up that was asked for and no others.
    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.alarms.pop_first() {
            if at > end {
                self.alarms.insert(at);
                break;
            }
            self.now = at;
            self.pump();
        }
        self.now = end;
    }

    /// Sends what is to be sent.
    fn pump(&mut self) {
        let end = |offset: u64, data: &Chunks| offset + data.concat().len() as u64;
        while let Some(action) = self.writeback.next(self.now) {
            let (ids, ranges) = match action {
                Action::Write {
                    id, offset, data, ..
                } => (vec![id], vec![(offset, end(offset, &data))]),
                Action::WriteFragments { fragments, .. } => fragments
                    .iter()
                    .map(|one| (one.id, (one.offset, end(one.offset, &one.data))))
                    .unzip(),
                Action::WakeAt(at) => {
                    self.alarms.insert(at);
                    continue;
                }
                commit @ Action::Commit { .. } => panic!("{commit:?}"),
            };
            let at = self.now;
            self.sent.push(Sent { at, ids, ranges });
        }
    }

    /// The server answers everything that was sent.
    fn answer(&mut self) {
        for sent in std::mem::take(&mut self.sent) {
            for (id, range) in sent.ids.into_iter().zip(sent.ranges) {
                let count = (range.1 - range.0) as u32;
                self.writeback.written(id, count, Stable::FileSync, V1);
            }
        }
        self.pump();
    }

    fn ranges(&self) -> Vec<(u64, u64)> {
        let ranges = self.sent.iter().flat_map(|sent| sent.ranges.clone());
        ranges.collect()
    }

    /// When the byte at `offset` was sent for the first time.
    fn sent_at(&self, offset: u64) -> Option<Instant> {
        let has = |sent: &&Sent| {
            let mut ranges = sent.ranges.iter();
            ranges.any(|(start, end)| (start..end).contains(&&offset))
        };
        Some(self.sent.iter().find(has)?.at)
    }
}

#[test]
fn a_stream_of_small_writes_goes_in_full_requests_whatever_their_pace() {
    for pause in [LINGER / 50, LINGER / 2, LINGER * 9 / 10] {
        let mut rig = Rig::with(100, 1 << 20);
        for piece in 0..400 {
            rig.put(piece * 4, 4);
            rig.wait(pause);
        }
        let full: Vec<_> = (0..100).map(|at| (at * 16, at * 16 + 16)).collect();
        assert_eq!(rig.ranges(), full, "{pause:?}");
        // Each as soon as it is full.
        let last = rig.sent_at(399 * 4).unwrap();
        assert!(rig.now - last <= pause, "{pause:?}");
    }
}

#[test]
fn what_arrives_while_nothing_can_be_sent_grows_to_full_requests() {
    let mut rig = Rig::with(1, 1 << 20);
    rig.put(1000, 16);
    for piece in 0..16 {
        rig.put(piece * 4, 4);
        rig.wait(LINGER * 2);
    }
    assert_eq!(rig.ranges(), [(1000, 1016)]);
    for at in 0..4 {
        rig.answer();
        assert_eq!(rig.ranges(), [(at * 16, at * 16 + 16)]);
    }
}

#[test]
fn a_single_write_and_a_burst_linger_for_as_little_as_anything() {
    let mut rig = Rig::new();
    rig.put(0, 4);
    rig.wait(MOST);
    let start = rig.now - MOST;
    assert_eq!(rig.sent_at(0), Some(start + LINGER));
    let mut rig = Rig::new();
    for piece in 0..3 {
        rig.put(piece * 4, 4);
        rig.wait(LINGER / 4);
    }
    let last = rig.now - LINGER / 4;
    rig.wait(MOST);
    assert_eq!(rig.ranges(), [(0, 12)]);
    assert_eq!(rig.sent_at(0), Some(last + LINGER));
}

#[test]
fn what_a_writer_who_stops_has_left_is_late_by_no_more_than_he_was_at_it() {
    for pieces in [3, 10, 50] {
        let mut rig = Rig::new();
        let start = rig.now;
        for piece in 0..pieces {
            rig.wait(LINGER / 2);
            rig.put(piece * 100, 4);
        }
        let last = rig.now;
        rig.wait(MOST * 2);
        let sent = rig.sent_at((pieces - 1) * 100).unwrap();
        assert!(sent - last <= (last - start).max(LINGER), "{pieces}");
    }
}

#[test]
fn whoever_goes_on_writing_has_each_byte_sent_within_the_bound() {
    // As fast as a stream, as slow as a log, and both at all places of a file.
    for (pause, step) in [(1, 1), (5, 1), (30, 1), (90, 1), (1, 99), (30, 99)] {
        let pause = Duration::from_millis(pause);
        let mut rig = Rig::with(1000, 1 << 20);
        let mut written = Vec::new();
        for piece in 0..400 {
            rig.put(piece * step, 1);
            written.push((piece * step, rig.now));
            rig.wait(pause);
        }
        for (offset, at) in written {
            let lingered = rig.sent_at(offset).unwrap_or(rig.now) - at;
            assert!(lingered <= MOST, "{lingered:?}: {pause:?} {step}");
        }
    }
}

#[test]
fn a_slow_stream_of_lines_shares_requests() {
    // A line every 20 times the least linger.
    let mut rig = Rig::new();
    for line in 0..60 {
        rig.put(line, 1);
        rig.wait(MOST / 5);
    }
    // One a bound, but for the first lines; a request has room for sixteen.
    let most = 60 / 5 + 3;
    assert!(rig.sent.len() <= most, "{:?}", rig.ranges());
}

/// What ends a stream.
type End = fn(&mut Rig);

#[test]
fn whoever_waits_for_his_data_or_pauses_is_no_stream_any_more() {
    let stream = || {
        let mut rig = Rig::with(1000, 1 << 20);
        for piece in 0..100 {
            rig.put(piece * 100, 1);
            rig.wait(LINGER / 2);
        }
        rig
    };
    let ends: [(&str, End); 3] = [
        ("a sync", |rig| {
            rig.writeback.begin_drain();
        }),
        ("let go", |rig| rig.writeback.end_linger()),
        ("a pause", |rig| rig.wait(MOST + LINGER)),
    ];
    for (what, end) in ends {
        let mut rig = stream();
        end(&mut rig);
        rig.pump();
        while !rig.sent.is_empty() {
            rig.answer();
        }
        rig.put(50, 1);
        let put = rig.now;
        rig.wait(MOST);
        assert_eq!(rig.sent_at(50), Some(put + LINGER), "{what}");
    }
    // The stream itself lingers longer.
    let mut rig = stream();
    rig.put(50, 1);
    let put = rig.now;
    rig.wait(MOST);
    assert!(rig.sent_at(50).unwrap() > put + LINGER);
}

#[test]
fn what_is_let_go_is_sent_at_once() {
    let mut rig = Rig::new();
    rig.put(0, 4);
    rig.put(100, 4);
    assert!(rig.sent.is_empty());
    rig.writeback.end_linger();
    rig.pump();
    assert_eq!(rig.ranges(), [(0, 4), (100, 104)]);
}

#[test]
fn no_more_than_an_eighth_of_the_window_lingers() {
    let mut rig = Rig::with(16, 64 << 10);
    // What pieces cost is their overhead.
    for piece in 0..15 {
        rig.put(piece * 100, 8);
    }
    assert!(rig.sent.is_empty(), "{:?}", rig.ranges());
    rig.put(1500, 8);
    let all: Vec<_> = (0..16)
        .map(|piece| (piece * 100, piece * 100 + 8))
        .collect();
    assert_eq!(rig.ranges(), all);
}

#[test]
fn what_lingers_goes_when_its_memory_is_wanted() {
    let mut rig = Rig::new();
    rig.put(0, 8);
    rig.writeback.make_room();
    rig.pump();
    assert_eq!(rig.ranges(), [(0, 8)]);
    // It is little beside what is on its way: that is waited for, and the stream goes on.
    let mut rig = Rig::with(16, 1 << 20);
    for piece in 0..10 {
        rig.put(piece * 4, 4);
    }
    assert_eq!(rig.ranges(), [(0, 16), (16, 32)]);
    rig.writeback.make_room();
    rig.pump();
    assert_eq!(rig.ranges(), [(0, 16), (16, 32)]);
}
