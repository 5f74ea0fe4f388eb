//! The write-back against a model server that is slow, reorders, answers short,
//! crashes and fails. Every byte value tells which acceptance it is from (and,
//! coarsely, where it belongs), so that the server notices when older bytes
//! arrive after newer ones.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const SIZE: usize = 96;
const ERROR: Errno = Errno(libc::ENOSPC);
/// Stays below the rounds and tries after which the write-back itself gives up,
/// so that every error is one that the test injected.
const MAX_CRASHES: usize = 4;
const MAX_ZEROES: usize = 4;

fn value(version: u8, position: usize) -> u8 {
    version * 3 + (position % 3) as u8
}

fn version(value: u8) -> u8 {
    value / 3
}

#[derive(Clone, Debug)]
enum Op {
    Accept {
        origin: u8,
        offset: usize,
        len: usize,
        sync: bool,
    },
    Advance(u64),
    /// The server executes one of the requests.
    Execute {
        pick: usize,
        /// How much of it, in eighths.
        count: usize,
        stable: Option<Stable>,
    },
    /// One of the executed requests is answered.
    Reply(usize),
    Fail {
        pick: usize,
        applied: bool,
    },
    /// The server restarts; what it had in memory survives where the bit is set.
    Crash(u64),
    Drain,
    DrainRange(usize, usize),
    Look,
    CommitSoon,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let stable = prop_oneof![
        5 => Just(Some(Stable::Unstable)),
        1 => Just(Some(Stable::DataSync)),
        1 => Just(Some(Stable::FileSync)),
        1 => Just(None),
    ];
    let count = prop_oneof![4 => Just(8usize), 1 => 0..8usize];
    let op = prop_oneof![
        60 => (0..2u8, 0..SIZE, 1..24usize, prop::bool::weighted(0.1))
            .prop_map(|(origin, offset, len, sync)| Op::Accept { origin, offset, len, sync }),
        15 => (0..1500u64).prop_map(Op::Advance),
        50 => (any::<usize>(), count, stable)
            .prop_map(|(pick, count, stable)| Op::Execute { pick, count, stable }),
        50 => any::<usize>().prop_map(Op::Reply),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(pick, applied)| Op::Fail { pick, applied }),
        6 => any::<u64>().prop_map(Op::Crash),
        10 => Just(Op::Drain),
        6 => (0..SIZE, 1..24usize).prop_map(|(at, len)| Op::DrainRange(at, len)),
        3 => Just(Op::Look),
        3 => Just(Op::CommitSoon),
    ];
    prop::collection::vec(op, 1..150)
}

/// What travels to the server.
#[derive(Debug)]
enum Body {
    Write {
        data: Vec<u8>,
        stable: Stable,
        /// The range of the COMMIT behind it.
        commit: Option<Range<usize>>,
    },
    Commit {
        len: usize,
    },
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    /// Fragments of one request have the same: they are executed and answered together.
    group: usize,
    offset: usize,
    body: Body,
    /// Executed: count, stability and verifier of the reply to come.
    reply: Option<(u32, Stable, Verifier)>,
    /// So was the COMMIT behind it.
    committed: bool,
}

impl Request {
    fn range(&self) -> Range<usize> {
        match &self.body {
            Body::Write { data, .. } => self.offset..self.offset + data.len(),
            Body::Commit { len } => self.offset..self.offset + len,
        }
    }

    fn is_write(&self) -> bool {
        matches!(self.body, Body::Write { .. })
    }
}

struct World {
    writeback: Writeback<u8>,
    config: Arc<WritebackConfig>,
    now: Instant,
    alarms: Vec<Instant>,
    requests: Vec<Request>,
    /// What readers of the server see, and what survives a crash.
    cache: [u8; SIZE],
    stable: [u8; SIZE],
    instance: u64,
    /// What was accepted last at each position.
    latest: [u8; SIZE],
    /// Origin and range of each acceptance; the version is the index plus one.
    accepted: Vec<(u8, Range<usize>, bool)>,
    /// When.
    accepted_at: Vec<Instant>,
    /// Synchronous writes that wait for their fate, with their versions.
    waiting: Vec<(WriteTicket, u8, Range<usize>)>,
    groups: usize,
    /// An injected failure may have hit the latest bytes here.
    tainted: [bool; SIZE],
    /// An injected failure hit something here once.
    failed: [bool; SIZE],
    drains: Vec<(DrainTicket, [u8; SIZE])>,
    ranges: Vec<(RangeTicket, Range<usize>, [u8; SIZE])>,
    crashes: usize,
    zeroes: usize,
    injected: bool,
}

impl World {
    fn new(config: WritebackConfig) -> World {
        let config = Arc::new(config);
        World {
            writeback: Writeback::new(config.clone()),
            config,
            now: Instant::now(),
            alarms: Vec::new(),
            requests: Vec::new(),
            cache: [0; SIZE],
            stable: [0; SIZE],
            instance: 1,
            latest: [0; SIZE],
            accepted: Vec::new(),
            accepted_at: Vec::new(),
            waiting: Vec::new(),
            groups: 0,
            tainted: [false; SIZE],
            failed: [false; SIZE],
            drains: Vec::new(),
            ranges: Vec::new(),
            crashes: 0,
            zeroes: 0,
            injected: false,
        }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Accept {
                origin,
                offset,
                len,
                sync,
            } => self.accept(origin, offset..(offset + len).min(SIZE), sync),
            Op::Advance(us) => self.now += Duration::from_micros(us),
            Op::Execute {
                pick,
                count,
                stable,
            } => self.execute(pick, count, stable),
            Op::Reply(pick) => self.reply(pick),
            Op::Fail { pick, applied } => self.fail(pick, applied),
            Op::Crash(survives) => self.crash(survives),
            Op::Drain => {
                let ticket = self.writeback.begin_drain();
                self.drains.push((ticket, self.latest));
            }
            Op::DrainRange(at, len) => {
                let ticket = self.writeback.drain_range(at as u64, len as u64);
                let range = at..(at + len).min(SIZE);
                self.ranges.push((ticket, range, self.latest));
            }
            Op::Look => {
                let ticket = self.writeback.drain_to_look();
                self.ranges.push((ticket, 0..SIZE, self.latest));
            }
            Op::CommitSoon => self.writeback.make_room(),
        }
        self.pump();
        self.check();
    }

    fn accept(&mut self, origin: u8, range: Range<usize>, sync: bool) {
        if self.accepted.len() >= 80 || range.is_empty() {
            return;
        }
        self.accepted.push((origin, range.clone(), sync));
        self.accepted_at.push(self.now);
        let version = self.accepted.len() as u8;
        for p in range.clone() {
            self.latest[p] = value(version, p);
            self.tainted[p] = false;
        }
        let data = Bytes::copy_from_slice(&self.latest[range.clone()]);
        let at = range.start as u64;
        let ticket = self.writeback.accept(self.now, origin, at, data, sync);
        if sync {
            self.waiting.push((ticket, version, range));
        }
    }

    /// Performs all actions, as the owner of the write-back has to.
    fn pump(&mut self) {
        let now = self.now;
        self.alarms.retain(|at| *at > now);
        while let Some(action) = self.writeback.next(self.now) {
            self.groups += 1;
            match action {
                Action::Write {
                    id,
                    origin,
                    offset,
                    data,
                    stable,
                    commit,
                } => {
                    let commit = commit.map(|range| self.commit_behind(range));
                    let body = Body::Write {
                        data: data.concat(),
                        stable,
                        commit,
                    };
                    self.send_write(id, origin, offset as usize, body);
                    assert_eq!(self.writes(), self.writeback.in_flight());
                }
                Action::WriteFragments {
                    origin,
                    fragments,
                    commit,
                } => {
                    let mut commit = commit.map(|range| self.commit_behind(range));
                    let lens = fragments.iter().map(|f| f.data.concat().len());
                    assert!((2..=self.config.fragments).contains(&fragments.len()));
                    assert!(lens.sum::<usize>() <= self.config.wsize);
                    let last = fragments.len() - 1;
                    let in_front = fragments[..last].iter();
                    let in_front = in_front.map(|front| front.data.concat().len() + 40);
                    assert!(in_front.sum::<usize>() <= self.config.in_front);
                    for (index, fragment) in fragments.into_iter().enumerate() {
                        let body = Body::Write {
                            data: fragment.data.concat(),
                            stable: Stable::Unstable,
                            commit: commit.take_if(|_| index == last),
                        };
                        self.send_write(fragment.id, origin, fragment.offset as usize, body);
                    }
                    assert_eq!(self.writes(), self.writeback.in_flight());
                }
                Action::Commit { id, range, .. } => {
                    self.check_no_commit();
                    self.requests.push(Request {
                        id,
                        group: self.groups,
                        offset: range.offset as usize,
                        body: Body::Commit {
                            len: range.count as usize,
                        },
                        reply: None,
                        committed: false,
                    });
                }
                Action::WakeAt(at) => {
                    assert!(at > self.now, "woken for what could be sent at once");
                    self.alarms.push(at);
                    assert!(self.alarms.len() < 50, "a timer is told again and again");
                }
            }
        }
        self.check_linger();
    }

    fn writes(&self) -> usize {
        self.requests.iter().filter(|r| r.is_write()).count()
    }

    /// Requests that have WRITEs in them.
    fn places_taken(&self) -> usize {
        let writes = self.requests.iter().filter(|r| r.is_write());
        let groups: BTreeSet<usize> = writes.map(|r| r.group).collect();
        groups.len()
    }

    /// With nothing in flight, what has been accepted so long ago was sent.
    fn check_linger(&self) {
        if self.writes() > 0 {
            return;
        }
        for (at, (_, range, _)) in self.accepted_at.iter().zip(&self.accepted) {
            let (start, end) = (range.start as u64, range.end as u64);
            assert!(
                self.now < *at + self.config.max_linger
                    || self.newer_than(*at, range)
                    || !self.writeback.overlaps_pending(start..end),
                "what was accepted lingers past the bound"
            );
        }
    }

    /// Something was accepted for the range since.
    fn newer_than(&self, time: Instant, range: &Range<usize>) -> bool {
        let since = self.accepted_at.iter().zip(&self.accepted);
        let mut since = since.filter(|(at, _)| **at > time);
        since.any(|(_, (_, newer, _))| newer.start < range.end && range.start < newer.end)
    }

    fn commit_behind(&self, range: CommitRange) -> Range<usize> {
        self.check_no_commit();
        let start = range.offset as usize;
        start..start + range.count as usize
    }

    /// The requests of the group that this one belongs to, in their order.
    fn group_of(&self, index: usize) -> Vec<RequestId> {
        let group = self.requests[index].group;
        let members = self.requests.iter().filter(|r| r.group == group);
        let mut ids: Vec<_> = members.map(|r| r.id).collect();
        ids.sort_unstable();
        ids
    }

    fn index_of(&self, id: RequestId) -> usize {
        let found = self.requests.iter().position(|r| r.id == id);
        found.expect("a request that was not answered yet")
    }

    fn check_no_commit(&self) {
        let no_commit =
            |request: &Request| matches!(request.body, Body::Write { commit: None, .. });
        assert!(self.requests.iter().all(no_commit), "two COMMITs at once");
    }

    fn send_write(&mut self, id: RequestId, origin: u8, offset: usize, body: Body) {
        let request = Request {
            id,
            group: self.groups,
            offset,
            body,
            reply: None,
            committed: false,
        };
        let range = request.range();
        for other in self.requests.iter().filter(|r| r.is_write()) {
            let other = other.range();
            assert!(
                other.end <= range.start || range.end <= other.start,
                "overlapping writes in flight"
            );
        }
        if let Body::Write {
            data,
            stable,
            commit,
        } = &request.body
        {
            assert!(!data.is_empty() && data.len() <= self.config.wsize);
            if let Some(commit) = commit {
                assert!(commit.start <= range.start && range.end <= commit.end);
            }
            for (p, &byte) in range.zip(data) {
                let (from, accepted, sync) = &self.accepted[version(byte) as usize - 1];
                assert_eq!(byte, value(version(byte), p), "a byte moved");
                assert_eq!(*from, origin, "sent with a foreign credential");
                assert!(accepted.contains(&p), "a write was widened");
                assert!(!sync || *stable == Stable::FileSync);
            }
        }
        self.requests.push(request);
        assert!(self.places_taken() <= self.config.max_in_flight);
    }

    fn pick(&self, pick: usize, executed: bool) -> Option<usize> {
        let matching: Vec<usize> = (0..self.requests.len())
            .filter(|&i| self.requests[i].reply.is_some() == executed)
            .collect();
        (!matching.is_empty()).then(|| matching[pick % matching.len()])
    }

    fn execute(&mut self, pick: usize, eighths: usize, answer: Option<Stable>) {
        let Some(index) = self.pick(pick, false) else {
            return;
        };
        let mut commit = None;
        let group = self.group_of(index);
        for id in &group {
            let behind = self.execute_one(self.index_of(*id), eighths, answer);
            commit = commit.or(behind);
        }
        // Now and then it is not executed.
        if let Some(range) = commit
            && eighths.is_multiple_of(2)
        {
            self.stable[range.clone()].copy_from_slice(&self.cache[range]);
            for id in group {
                let index = self.index_of(id);
                self.requests[index].committed = true;
            }
        }
    }

    /// Returns the range of the COMMIT behind it.
    fn execute_one(
        &mut self,
        index: usize,
        eighths: usize,
        answer: Option<Stable>,
    ) -> Option<Range<usize>> {
        let request = &mut self.requests[index];
        let (start, end) = (request.range().start, request.range().end);
        let verifier = self.instance.to_be_bytes();
        let (data, stable, commit) = match &request.body {
            Body::Commit { .. } => {
                self.stable[start..end].copy_from_slice(&self.cache[start..end]);
                request.reply = Some((0, Stable::FileSync, verifier));
                return None;
            }
            Body::Write {
                data,
                stable,
                commit,
            } => (data, *stable, commit.clone()),
        };
        let mut count = (data.len() * eighths).div_ceil(8);
        if count == 0 {
            self.zeroes += 1;
            if self.zeroes > MAX_ZEROES {
                count = data.len();
            }
        }
        let stable = match (stable, answer) {
            (Stable::FileSync, _) => Stable::FileSync,
            (_, answer) => answer.unwrap_or(Stable::Unstable),
        };
        for (p, &byte) in (start..start + count).zip(data) {
            assert!(
                self.failed[p] || version(self.cache[p]) <= version(byte),
                "older bytes arrived after newer ones at {p}"
            );
            self.cache[p] = byte;
            if stable != Stable::Unstable {
                self.stable[p] = byte;
            }
        }
        request.reply = Some((count as u32, stable, verifier));
        commit
    }

    fn reply(&mut self, pick: usize) {
        let Some(index) = self.pick(pick, true) else {
            return;
        };
        for id in self.group_of(index) {
            let index = self.index_of(id);
            self.reply_to(index);
        }
    }

    fn reply_to(&mut self, index: usize) {
        let request = self.requests.swap_remove(index);
        let Some((count, stable, verifier)) = request.reply else {
            return;
        };
        match request.body {
            Body::Write { .. } if request.committed => self
                .writeback
                .written_and_committed(request.id, count, stable, verifier, verifier),
            Body::Write { .. } => self.writeback.written(request.id, count, stable, verifier),
            Body::Commit { .. } => self.writeback.committed(request.id, verifier),
        }
    }

    /// Those before it in its group were executed; those behind it are sent again.
    fn fail(&mut self, pick: usize, applied: bool) {
        let Some(index) = self.pick(pick, false) else {
            return;
        };
        let id = self.requests[index].id;
        self.groups += 1;
        let rest = self.groups;
        for member in self.group_of(index) {
            let index = self.index_of(member);
            if member < id {
                self.execute_one(index, 8, None);
                self.reply_to(index);
            } else if member > id {
                self.requests[index].group = rest;
                if let Body::Write { commit, .. } = &mut self.requests[index].body {
                    *commit = None;
                }
            }
        }
        let index = self.index_of(id);
        if applied {
            self.execute_at(index);
        }
        let request = self.requests.swap_remove(index);
        self.injected = true;
        match &request.body {
            Body::Write { data, .. } => {
                for (p, &byte) in request.range().zip(data) {
                    self.failed[p] = true;
                    self.tainted[p] |= byte == self.latest[p];
                }
                self.writeback.failed(request.id, ERROR.into());
            }
            Body::Commit { .. } => {
                // Whatever was retained may be gone.
                self.failed = [true; SIZE];
                self.tainted = [true; SIZE];
                self.writeback.commit_failed(request.id, ERROR.into());
            }
        }
    }

    fn execute_at(&mut self, index: usize) {
        let request = &self.requests[index];
        if let Body::Write { data, .. } = &request.body {
            self.cache[request.range()].copy_from_slice(data);
        }
    }

    fn crash(&mut self, survives: u64) {
        if self.crashes >= MAX_CRASHES {
            return;
        }
        self.crashes += 1;
        self.instance += 1;
        for p in 0..SIZE {
            match survives >> (p % 64) & 1 {
                1 => self.stable[p] = self.cache[p],
                _ => self.cache[p] = self.stable[p],
            }
        }
    }

    fn check(&mut self) {
        let writeback = &self.writeback;
        let fresh = |content: &[u8; SIZE], snapshot: &[u8; SIZE], p: usize| {
            self.failed[p] || version(content[p]) >= version(snapshot[p])
        };
        self.drains.retain(|(ticket, snapshot)| {
            let done = writeback.drained(ticket);
            assert!(
                !done || (0..SIZE).all(|p| fresh(&self.stable, snapshot, p)),
                "a drain ended before its data were stable"
            );
            !done
        });
        self.ranges.retain(|(ticket, range, snapshot)| {
            let done = writeback.range_drained(ticket);
            assert!(
                !done || self.crashes > 0 || range.clone().all(|p| fresh(&self.cache, snapshot, p)),
                "a range was called written before the server had it"
            );
            !done
        });
        for p in 0..SIZE {
            let pending = writeback.overlaps_pending(p as u64..p as u64 + 1);
            assert!(
                pending || self.crashes > 0 || fresh(&self.cache, &self.latest, p),
                "a byte is neither pending nor on the server"
            );
        }
        assert_eq!(
            writeback.is_idle(),
            writeback.bytes() == 0 && self.requests.is_empty()
        );
    }

    /// The server answers everything in full, in any order, and time passes
    /// only when nothing else happens.
    fn settle(&mut self, mut pick: usize) {
        for _ in 0..2000 {
            if self.requests.is_empty() {
                match self.alarms.iter().min() {
                    Some(at) => self.now = *at,
                    None => return,
                }
            }
            self.execute(pick, 8, None);
            self.reply(pick / 2);
            self.pump();
            self.check();
            pick = pick
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407)
                >> 1;
        }
        panic!("does not come to rest");
    }

    fn finish(mut self, pick: usize, quiet: bool) {
        if quiet {
            self.settle(pick);
            assert!(!self.writeback.overlaps_pending(0..SIZE as u64));
            assert_eq!(self.writeback.end_offset(), None);
            assert!(
                self.writeback.is_idle(),
                "committed although nobody asked for it"
            );
        }
        self.apply(&Op::Drain);
        self.settle(pick);
        assert!(self.drains.is_empty() && self.ranges.is_empty());
        assert!(self.writeback.is_idle());
        assert_eq!(self.writeback.bytes(), 0);
        for p in 0..SIZE {
            assert!(
                self.tainted[p] || self.stable[p] == self.latest[p],
                "wrong byte at {p}"
            );
        }
        let mut seen = ErrSeq::default().sample();
        let error = self.writeback.errors().check(&mut seen);
        assert!(error.is_none() || self.injected);
        for (ticket, version, range) in std::mem::take(&mut self.waiting) {
            let fate = self.writeback.fate(ticket);
            assert!(fate.is_none() || self.injected);
            let mut own = range.filter(|p| self.latest[*p] == value(version, *p));
            assert!(
                fate.is_some() || own.all(|p| self.stable[p] == self.latest[p]),
                "a synchronous write is told as done and its bytes are not there"
            );
        }
        assert_eq!(self.writeback.bytes(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn what_was_accepted_is_stable_after_a_drain_or_an_error_is_known(
        ops in ops(),
        wsize in 4..40usize,
        max_in_flight in 1..6usize,
        fragment in 0..20usize,
        fragments in 1..5usize,
        in_front in 0..200usize,
        linger in 0..1200u64,
        more in 0..3000u64,
        commit_after in 0..9000u64,
        file_limit in 500..40_000usize,
        pick in any::<usize>(),
        quiet in any::<bool>(),
        faulty in prop::bool::weighted(0.3),
    ) {
        let mut world = World::new(WritebackConfig {
            wsize,
            max_in_flight,
            fragment,
            fragments,
            in_front,
            linger: Duration::from_micros(linger),
            max_linger: Duration::from_micros(linger + more),
            commit_after: Duration::from_micros(commit_after),
            file_limit,
        });
        for op in &ops {
            if faulty || !matches!(op, Op::Fail { .. }) {
                world.apply(op);
            }
        }
        world.finish(pick, quiet);
    }
}
