//! File locks of two hosts with four processes each, in interleavings made up by chance:
//! locked, waited for, asked about, unlocked, given up, closed, and processes killed with
//! a request on its way, over connections that break. Judged against a table of bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use efs_fuse::vfs::types::{Errno, LockCall, LockRange, VfsResult, Waiting};
use parking_lot::Mutex;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::peer::{Peer, PeerConfig};
use crate::protocol::rig::{Mount, Open, default_timeouts, within};

const HOSTS: usize = 2;
const PROCESSES: usize = 4;
const FILES: usize = 2;
const BYTES: usize = 6;
const STEPS: u64 = 40;

/// Longer than anything is in the way of a lock for.
const PATIENCE: Duration = Duration::from_secs(30);

/// In which a lock is got that nothing is in the way of, over connections that break.
const SOON: Duration = Duration::from_secs(5);

/// How often it is looked whether something is.
const LOOK: Duration = Duration::from_millis(20);

/// Nothing, shared, exclusive; by byte.
type Bytes = [u8; BYTES];

fn conflict(a: &Bytes, b: &Bytes) -> bool {
    a.iter().zip(b).any(|(a, b)| *a > 0 && *b > 0 && a + b > 2)
}

#[derive(Clone, Copy, Debug)]
struct Wanted {
    file: usize,
    start: usize,
    end: usize,
    /// As in [`Bytes`].
    kind: u8,
}

impl Wanted {
    fn range(self) -> LockRange {
        LockRange {
            start: self.start as u64,
            end: self.end as u64,
            typ: [libc::F_UNLCK, libc::F_RDLCK, libc::F_WRLCK][usize::from(self.kind)],
            pid: 1,
        }
    }

    fn bytes(self) -> Bytes {
        let mut bytes = [0; BYTES];
        bytes[self.start..=self.end].fill(self.kind);
        bytes
    }
}

/// What is known of the locks of one process: it has at least these, and at most those,
/// what it asks for among them.
#[derive(Clone, Copy, Default)]
struct Known {
    least: [Bytes; FILES],
    most: [Bytes; FILES],
}

#[derive(Default)]
struct Table(Mutex<[Known; HOSTS * PROCESSES]>, AtomicU64);

impl Table {
    fn change(&self, process: usize, wanted: Wanted, change: impl Fn(&mut u8, &mut u8)) {
        self.1.fetch_add(1, Ordering::Relaxed);
        let known = &mut self.0.lock()[process];
        let least = known.least[wanted.file].iter_mut();
        for (at, (least, most)) in least.zip(&mut known.most[wanted.file]).enumerate() {
            if (wanted.start..=wanted.end).contains(&at) {
                change(least, most);
            }
        }
    }

    /// A request is about to be made.
    fn asks(&self, process: usize, wanted: Wanted) {
        self.change(process, wanted, |least, most| {
            *least = wanted.kind.min(*least);
            *most = wanted.kind.max(*most);
        });
    }

    /// It was granted, which must not be while another process has what excludes it.
    fn got(&self, process: usize, wanted: Wanted) {
        self.change(process, wanted, |least, most| {
            (*least, *most) = (wanted.kind, wanted.kind);
        });
        let known = self.0.lock();
        for (other, theirs) in known.iter().enumerate().filter(|(one, _)| *one != process) {
            let theirs = &theirs.least[wanted.file];
            assert!(
                !conflict(&wanted.bytes(), theirs),
                "{process} got {wanted:?} while {other} had {theirs:?}"
            );
        }
    }

    /// Another process has what excludes this, for certain; or may have, or asks for it.
    fn excluded(&self, process: usize, wanted: Wanted, certain: bool) -> bool {
        let known = self.0.lock();
        let mut others = known.iter().enumerate().filter(|(one, _)| *one != process);
        others.any(|(_, theirs)| {
            let theirs = match certain {
                true => &theirs.least,
                false => &theirs.most,
            };
            conflict(&wanted.bytes(), &theirs[wanted.file])
        })
    }

    fn changes(&self) -> u64 {
        self.1.load(Ordering::Relaxed)
    }

    fn has_nothing(&self, process: usize) {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock()[process].least = Default::default();
    }

    fn is_gone(&self, process: usize) {
        self.0.lock()[process] = Known::default();
    }
}

/// Numbers by chance (splitmix64), the same for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % limit
    }

    fn wanted(&mut self) -> Wanted {
        let (a, b) = (self.below(BYTES as u64), self.below(BYTES as u64));
        Wanted {
            file: self.below(FILES as u64) as usize,
            start: a.min(b) as usize,
            end: a.max(b) as usize,
            kind: 1 + u8::from(self.below(3) > 0),
        }
    }

    fn pause(&mut self) -> Duration {
        match self.below(3) {
            0 => Duration::ZERO,
            1 => Duration::from_micros(self.below(3000)),
            _ => Duration::from_millis(self.below(300)),
        }
    }
}

struct Process {
    number: usize,
    mount: Arc<Mount>,
    inos: [u64; FILES],
    open: Vec<Open>,
    table: Arc<Table>,
    chance: Chance,
    /// Requests that go on without their callers.
    left_behind: Vec<JoinHandle<VfsResult<()>>>,
    deadlocks: usize,
}

impl Process {
    /// The kernel gives the number of a dead process to the next.
    fn owner(&self) -> u64 {
        100 + (self.number % PROCESSES) as u64
    }

    async fn start(&mut self) {
        for ino in self.inos {
            let opened = self.mount.open(ino, libc::O_RDWR).await;
            self.open.push(opened.expect("open"));
        }
    }

    /// What is closed is unlocked. As by the kernel: FLUSH, which is waited for, and
    /// RELEASE, which is not.
    async fn exit(&mut self) {
        self.table.has_nothing(self.number);
        let owner = self.owner();
        for open in std::mem::take(&mut self.open) {
            let flushed = self.mount.vfs.flush(open.fh, owner).await;
            flushed.expect("flush");
            let mount = Arc::clone(&self.mount);
            self.left_behind.push(tokio::spawn(
                async move { mount.vfs.release(open.fh).await },
            ));
        }
    }

    fn request(&self, wanted: Wanted, sleeps: bool) -> (Arc<Waiting>, JoinHandle<VfsResult<()>>) {
        let caller = Arc::new(Waiting::by(Arc::new(|| Some(LockCall::Process))));
        let (mount, waiting) = (Arc::clone(&self.mount), Arc::clone(&caller));
        let (open, owner) = (self.open[wanted.file], self.owner());
        let request = tokio::spawn(async move {
            let vfs = &mount.vfs;
            vfs.setlk(open.fh, owner, wanted.range(), sleeps, &waiting)
                .await
        });
        (caller, request)
    }

    async fn lock(&mut self, wanted: Wanted, sleeps: bool, patience: Duration) {
        self.table.asks(self.number, wanted);
        let (caller, mut request) = self.request(wanted, sleeps);
        let mut answer = timeout(patience, &mut request).await;
        let excluded = || self.table.excluded(self.number, wanted, false);
        let mut free = Duration::ZERO;
        while answer.is_err() && patience == PATIENCE && !excluded() {
            assert!(free < SOON, "{} waits for nothing: {wanted:?}", self.number);
            free += LOOK;
            answer = timeout(LOOK, &mut request).await;
        }
        let answer = match answer {
            Ok(answer) => answer.expect("no panic"),
            Err(_) if caller.give_up() => {
                self.left_behind.push(request);
                Err(Errno(libc::EINTR).into())
            }
            Err(_) => request.await.expect("no panic"),
        };
        match answer.map_err(|error| error.errno().raw()) {
            Ok(()) => self.table.got(self.number, wanted),
            Err(libc::EAGAIN) => {}
            Err(errno @ (libc::EINTR | libc::EDEADLK)) => {
                self.deadlocks += usize::from(errno == libc::EDEADLK);
                self.unlock_all().await;
            }
            Err(errno) => panic!("{}: {errno}", self.number),
        }
    }

    async fn unlock(&self, wanted: Wanted) {
        let wanted = Wanted { kind: 0, ..wanted };
        self.table
            .change(self.number, wanted, |least, _| *least = 0);
        let (_, request) = self.request(wanted, false);
        request.await.expect("no panic").expect("unlock");
        self.table.change(self.number, wanted, |_, most| *most = 0);
    }

    async fn unlock_all(&self) {
        for file in 0..FILES {
            let (start, end, kind) = (0, BYTES - 1, 0);
            self.unlock(Wanted {
                file,
                start,
                end,
                kind,
            })
            .await;
        }
    }

    async fn ask(&self, wanted: Wanted) {
        let before = self.table.changes();
        let (open, mount) = (self.open[wanted.file], &self.mount);
        let got = mount
            .vfs
            .getlk(&mount.cred, open.fh, self.owner(), wanted.range())
            .await
            .expect("getlk");
        if self.table.changes() != before {
            return;
        }
        let free = got.typ == libc::F_UNLCK;
        let excluded = |certain| self.table.excluded(self.number, wanted, certain);
        assert!(!(free && excluded(true)), "not told of: {wanted:?}");
        assert!(free || excluded(false), "told of nothing: {wanted:?}");
    }

    /// Killed with a request on its way.
    async fn die(&mut self, wanted: Wanted, sleeps: bool) {
        self.table.asks(self.number, wanted);
        let (caller, request) = self.request(wanted, sleeps);
        sleep(self.chance.pause()).await;
        caller.give_up();
        self.left_behind.push(request);
        self.exit().await;
        self.start().await;
    }

    async fn run(mut self) -> Self {
        self.start().await;
        for _ in 0..STEPS {
            let wanted = self.chance.wanted();
            match self.chance.below(16) {
                0..6 => {
                    let patience = match self.chance.below(2) {
                        0 => PATIENCE,
                        _ => self.chance.pause(),
                    };
                    self.lock(wanted, true, patience).await;
                }
                6..9 => self.lock(wanted, false, PATIENCE).await,
                9..12 => self.unlock(wanted).await,
                12 => self.ask(wanted).await,
                13 => {
                    let sleeps = self.chance.below(2) == 0;
                    self.die(wanted, sleeps).await;
                }
                14 => {
                    self.exit().await;
                    self.start().await;
                }
                _ => {}
            }
            sleep(self.chance.pause()).await;
        }
        self.exit().await;
        for left in std::mem::take(&mut self.left_behind) {
            let _ = left.await.expect("no panic");
        }
        self.table.is_gone(self.number);
        self
    }
}

/// The number of deadlocks that were told.
async fn run(seed: u64) -> usize {
    let mut chance = Chance(seed);
    let peer = Peer::new(PeerConfig::default());
    peer.set_latency(Duration::from_micros(chance.below(4000)));
    for file in 0..FILES {
        peer.fs().write_file(&format!("/f{file}"), b"data").unwrap();
    }
    let table = Arc::<Table>::default();
    let mut processes = Vec::new();
    for host in 0..HOSTS {
        let name = format!("host {host}");
        let mount = Arc::new(Mount::of(&peer, &name, default_timeouts()).await);
        let inos = [
            mount.walk("/f0").await.unwrap(),
            mount.walk("/f1").await.unwrap(),
        ];
        for number in host * PROCESSES..(host + 1) * PROCESSES {
            let process = Process {
                number,
                mount: Arc::clone(&mount),
                inos,
                open: Vec::new(),
                table: Arc::clone(&table),
                chance: Chance(chance.below(u64::MAX)),
                left_behind: Vec::new(),
                deadlocks: 0,
            };
            processes.push(tokio::spawn(process.run()));
        }
    }
    let breaks = chance.below(3) == 0;
    let (line, mut at) = (Arc::clone(&peer), Chance(chance.below(u64::MAX)));
    let breaker = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(at.below(3000))).await;
            if breaks {
                line.cut_all_connections();
            }
        }
    });
    let (mut deadlocks, mut mounts) = (0, Vec::new());
    for process in processes {
        let process = within(7200, process).await.expect("no panic");
        deadlocks += process.deadlocks;
        mounts.push(process.mount);
    }
    breaker.abort();
    end(&peer, mounts).await;
    deadlocks
}

/// Nothing is left: at the server, or in the way of the next one.
async fn end(peer: &Arc<Peer>, mounts: Vec<Arc<Mount>>) {
    for mount in &mounts {
        within(60, mount.vfs.settled()).await;
    }
    assert_eq!(
        (peer.lock_count(), peer.open_count()),
        (0, 0),
        "left at the server"
    );
    for (mount, owner) in mounts.iter().zip(500..) {
        let ino = mount.walk("/f0").await.unwrap();
        let file = mount.open(ino, libc::O_RDWR).await.unwrap();
        let all = Wanted {
            file: 0,
            start: 0,
            end: BYTES - 1,
            kind: 2,
        };
        let (caller, begun) = (Waiting::default(), Instant::now());
        let vfs = &mount.vfs;
        let locked = vfs.setlk(file.fh, owner, all.range(), true, &caller);
        within(2, locked).await.expect("the lock");
        assert!(
            begun.elapsed() < Duration::from_millis(500),
            "in nobody's way"
        );
        vfs.flush(file.fh, owner).await.unwrap();
        mount.release(file).await;
    }
}

fn runs(seed: u64) -> usize {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("runtime");
    runtime.block_on(run(seed))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        max_shrink_iters: 0,
        failure_persistence: None,
        // The suite says the same of the same code; PROPTEST_RNG_SEED looks elsewhere.
        rng_seed: match std::env::var("PROPTEST_RNG_SEED") {
            Ok(_) => ProptestConfig::default().rng_seed,
            Err(_) => RngSeed::Fixed(20_261_127),
        },
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_two_have_what_excludes_the_other_nobody_hangs_and_nothing_is_left(seed: u64) {
        runs(seed);
    }
}

#[test]
fn circles_within_a_host_come_up_and_are_told() {
    // Two that once were thought to hang, among them.
    let seeds = (0..8).chain([4_472_779_475_558_954_153, 14_697_350_639_429_651_364]);
    let told: usize = seeds.map(runs).sum();
    assert!(told > 0, "no EDEADLK in any of the runs");
}
