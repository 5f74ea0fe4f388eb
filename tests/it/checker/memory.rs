//! Histories in memory: three hosts on the scripted server, on tokio's paused clock. A
//! seed gives the same history again, as a rule: what happens at the same moment after a session was
//! lost may come in another order.
//!
//! Each request comes late by chance, so that what is sent together arrives in every
//! order. Processes are killed in the middle of calls; connections break before and after the
//! server has done what it was asked; sessions are lost, and the server starts anew. A mount is
//! handed over to another process, at a moment in which nobody calls. A third of the hosts is mounted
//! with `nocto`, and keeps pages as the kernel does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use efs_fuse::rpc::caller::{self, Caller};
use efs_fuse::vfs::Timeouts;
use efs_fuse::vfs::types::ROOT_INO;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::history::{Answer, Call, Event, Fd, How, OBSERVER, Path, Time, text};
use super::judge::{Verdict, judge};
use super::kernel::{Host, Kernel, SLOTS, link_token, listed, tokens};
use super::plan::{Chance, Plan, THEMES};
use super::rules::Rules;
use crate::peer::proto::op;
use crate::peer::{Action, Peer, PeerConfig};
use crate::protocol::rig::{Mount, connect, default_timeouts, join_all};

const HOSTS: u8 = 3;

/// The directory of a host with `writeback`.
const PRIVATE: &str = "p";

/// Calls of all processes together: what the judge can take, with the observer's.
const CALLS: u64 = 36;
/// Each of them may append.
const _: () = assert!(CALLS < SLOTS as u64);

/// Longer than any server in a history is away.
const HANGS: Duration = Duration::from_secs(3600);

/// What happened, and what may have been believed.
pub(super) struct Run {
    pub(super) history: Vec<Event>,
    names: Time,
    attributes: Time,
    volatile: bool,
    nocto: Vec<u8>,
}

impl Run {
    fn believed(self, longest: Time) -> Self {
        Self {
            names: longest,
            attributes: longest,
            ..self
        }
    }

    pub(super) fn judge(&self) -> Verdict {
        let mut rules = Rules::new(&self.history, self.names, self.attributes);
        rules.volatile = self.volatile;
        rules.nocto.clone_from(&self.nocto);
        judge(&self.history, &rules)
    }
}

struct World {
    seed: u64,
    peer: Arc<Peer>,
    hosts: Vec<Host>,
    /// The directory at the server that paths begin in.
    top: &'static str,
    began: Instant,
    history: Mutex<Vec<Event>>,
    /// When the server lost sessions.
    lost: Mutex<Vec<Time>>,
    /// Hosts with it.
    nocto: Vec<u8>,
}

impl World {
    fn new(seed: u64, peer: Arc<Peer>, hosts: Vec<Host>, nocto: Vec<u8>) -> Self {
        Self {
            seed,
            peer,
            hosts,
            top: "",
            began: Instant::now(),
            history: Mutex::default(),
            lost: Mutex::default(),
            nocto,
        }
    }

    fn now(&self) -> Time {
        self.began.elapsed().as_micros() as Time
    }

    fn record(&self, event: Event) {
        self.history.lock().push(event);
    }
}

fn peer_config(chance: &mut Chance) -> PeerConfig {
    let mut coin = || chance.one_in(2);
    PeerConfig {
        latency: Duration::from_micros(500),
        atomic_cinfo: coin(),
        preserve_unlinked: coin(),
        keep_removed_dirs: coin(),
        exclusive_in_times: coin(),
        reuse_fileids: coin(),
        misplaces_later_data: coin(),
        ..PeerConfig::default()
    }
}

/// Requests come late, now and then a connection breaks.
fn disturb(peer: &Peer, mut chance: Chance, breaks: bool) {
    peer.on_op(move |event| {
        if event.op == op::SEQUENCE {
            return match chance.below(40) {
                0 if breaks => Action::DropConnectionBefore,
                1 if breaks => Action::DropConnectionAfter,
                2..20 => Action::Delay(Duration::from_micros(chance.below(6000))),
                20 => Action::Delay(Duration::from_millis(chance.below(120))),
                _ => Action::Pass,
            };
        }
        Action::Pass
    });
}

/// Makes the history of a seed.
pub(super) async fn run(seed: u64) -> Run {
    let mut chance = Chance(seed);
    let peer = Peer::new(peer_config(&mut chance));
    let believed = Duration::from_millis([0, 300, 3000][chance.below(3) as usize]);
    let timeouts = Timeouts {
        reg_min: believed,
        reg_max: believed,
        dir_min: believed,
        dir_max: believed,
    };
    // A number of their own: what else a seed gives does not depend on it.
    let mut which = Chance(seed ^ 0x006e_6f63_746f);
    let nocto: Vec<u8> = (0..HOSTS).filter(|_| which.one_in(3)).collect();
    let mut hosts = Vec::new();
    for (number, name) in (0..HOSTS).zip(["one", "two", "three"]) {
        let kernel = match nocto.contains(&number) {
            true => Kernel::nocto(connect(&peer, name).await, &peer, timeouts),
            false => Kernel::new(Mount::of(&peer, name, timeouts).await),
        };
        hosts.push(Arc::new(kernel));
    }
    let world = World::new(seed, peer, hosts, nocto);
    // What is answered at the end of its time was asked before: a request's way is not
    // counted.
    let longest = believed.as_micros() as Time;
    play(world, chance, timeouts).await.believed(longest)
}

/// Makes the history of a seed on one host with `writeback`, in a directory that is its own, or that was
/// there before: what it has done is seen here at once, as without, and at the server when it was waited
/// for.
pub(super) async fn run_ahead(seed: u64) -> Run {
    let mut chance = Chance(seed);
    let peer = Peer::new(peer_config(&mut chance));
    let mount = Mount::ahead(&connect(&peer, "one").await, &peer);
    let mut which = Chance(seed ^ 0x6f74_6865_7273);
    let top = match which.one_in(2) {
        true => mount.mkdir(ROOT_INO, PRIVATE).await.expect("mkdir"),
        false => {
            let made = peer.fs().mkdir(&format!("/{PRIVATE}"));
            made.expect("a directory");
            mount.walk(PRIVATE).await.expect("a directory")
        }
    };
    let host = Arc::new(Kernel::ahead(mount, top));
    let world = World {
        top: PRIVATE,
        ..World::new(seed, peer, vec![host], Vec::new())
    };
    play(world, chance, default_timeouts()).await
}

/// Processes do what is drawn, to the end. Mounts that are handed over go on with these times.
async fn play(world: World, mut chance: Chance, timeouts: Timeouts) -> Run {
    let world = Arc::new(world);
    let peer = &world.peer;
    let theme = THEMES[chance.below(THEMES.len() as u64) as usize];
    let breaks = chance.one_in(3);
    disturb(peer, chance.split(), breaks);
    let processes = [3, 4, 6, 9, 12][chance.below(5) as usize];
    let calls = (CALLS / processes).max(2);
    let work = (0..processes).map(|number| {
        let host = (number % world.hosts.len() as u64) as u8;
        let number = number as u16 + 1;
        let plan = Plan::new(theme, host, number, chance.split(), false);
        let plan = plan.reading(world.nocto.contains(&host));
        let process = Process {
            world: Arc::clone(&world),
            kernel: Arc::clone(&world.hosts[usize::from(host)]),
            host,
            number,
            chance: chance.split(),
            mortal: chance.one_in(4),
        };
        process.run(plan, calls)
    });
    let work: Vec<_> = work.map(tokio::spawn).collect();
    let faults = tokio::spawn(fail(Arc::clone(&world), chance.split(), breaks));
    let hands = tokio::spawn(hand_over(Arc::clone(&world), chance.split(), timeouts));
    for ended in join_all(work.into_iter()).await {
        ended.expect("a process");
    }
    faults.abort();
    hands.await.expect("what is handed over is gone on with");
    peer.clear_script();
    end(&world).await;
    show_server(peer);
    let mut history = std::mem::take(&mut *world.history.lock());
    let lost = world.lost.lock().clone();
    for event in &mut history {
        let within = |at: &Time| (event.began..=event.ended).contains(at);
        event.unsure = lost.iter().any(within);
    }
    Run {
        history,
        names: 0,
        attributes: 0,
        volatile: !lost.is_empty(),
        nocto: world.nocto.clone(),
    }
}

/// What the server has executed, for who wants to see it.
fn show_server(peer: &Peer) {
    if setting("EFS_FUSE_CHECKER_SERVER", 0) == 0 {
        return;
    }
    for done in peer.log() {
        let ops: Vec<_> = done.ops.iter().map(|number| op::name(*number)).collect();
        let (at, statuses) = (done.at.as_micros(), &done.statuses);
        println!("{at} connection {}: {ops:?} = {statuses:?}", done.conn_id);
    }
}

/// Breaks something now and then.
async fn fail(world: Arc<World>, mut chance: Chance, breaks: bool) {
    if !breaks {
        return;
    }
    for _ in 0..chance.below(3) {
        tokio::time::sleep(Duration::from_micros(chance.below(100_000))).await;
        let before = world.now();
        match chance.below(4) {
            1 => world.peer.destroy_sessions(),
            2 => world.peer.crash_and_restart(),
            // The session stays, and with it "exactly once".
            0 => {
                world.peer.cut_all_connections();
                continue;
            }
            _ => {
                world.peer.lose_connections();
                continue;
            }
        }
        // Who has sent something to the session that is gone hears of it later.
        world.lost.lock().extend([before, world.now()]);
    }
}

/// Hands mounts over now and then.
async fn hand_over(world: Arc<World>, mut chance: Chance, timeouts: Timeouts) {
    if !chance.one_in(3) {
        return;
    }
    for _ in 0..=chance.below(4) {
        tokio::time::sleep(Duration::from_micros(chance.below(100_000))).await;
        let host = &world.hosts[chance.below(world.hosts.len() as u64) as usize];
        for _ in 0..100 {
            if host.hand_over(timeouts).await {
                break;
            }
            tokio::time::sleep(Duration::from_micros(chance.below(2000))).await;
        }
    }
}

struct Process {
    world: Arc<World>,
    kernel: Host,
    host: u8,
    number: u16,
    chance: Chance,
    /// It may be killed.
    mortal: bool,
}

impl Process {
    async fn run(mut self, mut plan: Plan, calls: u64) {
        for _ in 0..calls {
            let pause = match self.chance.below(12) {
                0 => self.chance.below(2_000_000),
                1..6 => self.chance.below(20_000),
                _ => 0,
            };
            tokio::time::sleep(Duration::from_micros(pause)).await;
            let call = plan.next();
            let answer = self.call(call).await;
            match answer {
                Some(answer) => plan.hears(&call, &answer),
                None => {
                    self.leave(&plan.open()).await;
                    return;
                }
            }
        }
        for fd in plan.open() {
            self.call_to_end(Call::Close(fd)).await;
        }
    }

    /// `None`: the process was killed.
    async fn call(&mut self, call: Call) -> Option<Answer> {
        // What is cut too late is seldom seen: others cut the file, too, or write it again.
        let cuts = matches!(call, Call::Truncate(_) | Call::Ftruncate(_))
            || matches!(call, Call::Open { how, .. } if how.truncate);
        let rarely = if cuts { 2 } else { 8 };
        if self.mortal && self.chance.one_in(rarely) {
            let after = Duration::from_micros(self.chance.below(8000));
            return self.call_until(call, after).await;
        }
        Some(self.call_to_end(call).await)
    }

    async fn call_to_end(&self, call: Call) -> Answer {
        let began = self.world.now();
        let _call = self.kernel.begins().await;
        self.kernel.mount().vfs.abandoned().ended().await;
        let answer = self.kernel.call(self.number.into(), call);
        let answer = tokio::time::timeout(HANGS, answer).await;
        let answer = answer.unwrap_or_else(|_| {
            self.record(call, began, None);
            show_server(&self.world.peer);
            let (seed, history) = (self.world.seed, text(&self.world.history.lock()));
            panic!("seed {seed}: it hangs:\n{history}")
        });
        self.record(call, began, Some(answer.clone()));
        answer
    }

    fn record(&self, call: Call, began: Time, answer: Option<Answer>) {
        self.world.record(Event {
            host: self.host,
            process: self.number,
            call,
            began,
            ended: self.world.now(),
            answer,
            unsure: false,
        });
    }

    /// The process is killed, unless it has its answer by then.
    async fn call_until(&self, call: Call, after: Duration) -> Option<Answer> {
        let began = self.world.now();
        let kernel = Arc::clone(&self.kernel);
        let under_way = kernel.begins().await;
        let abandoned = Arc::clone(kernel.mount().vfs.abandoned());
        abandoned.ended().await;
        let caller = Caller::new(Some(abandoned), self.number.into());
        let thread = self.number.into();
        let mut task = tokio::spawn({
            let kernel = Arc::clone(&kernel);
            let work = async move { kernel.call(thread, call).await };
            caller::on_behalf_of(Some(Arc::clone(&caller)), work)
        });
        match tokio::time::timeout(after, &mut task).await {
            Ok(ended) => {
                let answer = ended.expect("a call");
                self.record(call, began, Some(answer.clone()));
                Some(answer)
            }
            Err(_) => {
                caller.give_up();
                self.record(call, began, None);
                tokio::spawn(async move {
                    let _under_way = under_way;
                    // What nobody waits for any more is undone.
                    if let (Ok(Answer::Done), Call::Open { fd, .. }) = (task.await, call) {
                        kernel.leave(fd).await;
                    }
                });
                None
            }
        }
    }

    /// The kernel closes what a process that was killed had open.
    async fn leave(&self, open: &[Fd]) {
        for &fd in open {
            let began = self.world.now();
            let _call = self.kernel.begins().await;
            self.kernel.leave(fd).await;
            self.record(Call::Close(fd), began, Some(Answer::Done));
        }
    }
}

/// What is ahead of the server gets there. Nobody else was at it, so nothing of it fails but what
/// has no name, and does not survive the server; or has none that the server knows, because the
/// removal was sent to a session that was lost, and was done twice.
async fn none_failed(world: &World, mount: &Mount) {
    let synced = mount.vfs.fsyncdir(ROOT_INO).await;
    let (_, mut late) = mount.vfs.late_errors();
    let is_lost = !world.lost.lock().is_empty();
    late.retain(|error| error.path != "…" && !(is_lost && error.error.contains("NFS4ERR_STALE")));
    if synced.is_err() || !late.is_empty() {
        let history = text(&world.history.lock());
        show_server(&world.peer);
        panic!("seed {}: {synced:?}, {late:?}:\n{history}", world.seed);
    }
}

/// All is closed and sent; then the observer looks at the server's own files.
async fn end(world: &World) {
    for host in &world.hosts {
        let mount = host.mount();
        mount.vfs.settled().await;
        if host.is_ahead() {
            none_failed(world, &mount).await;
        }
    }
    let fs = world.peer.fs();
    let mut fd = Fd::MAX;
    let look = |call: Call, answer: Answer| {
        let now = world.now();
        world.record(Event {
            host: OBSERVER,
            process: u16::MAX,
            call,
            began: now,
            ended: now,
            answer: Some(answer),
            unsure: false,
        });
    };
    let path = |name: &str| format!("/{}/{name}", world.top);
    let top = listed(&fs.list(&path("")).unwrap());
    look(Call::List(None), Answer::Listed(top.clone()));
    let mut paths: Vec<_> = top.iter().map(|&name| Path { dir: None, name }).collect();
    for &dir in &top {
        let text = path(&char::from(dir).to_string());
        if fs.stat(&text).unwrap().ftype == 2 {
            let names = listed(&fs.list(&text).unwrap());
            look(Call::List(Some(dir)), Answer::Listed(names.clone()));
            paths.extend(names.into_iter().map(|name| Path {
                dir: Some(dir),
                name,
            }));
        }
    }
    for at in paths {
        let text = path(&at.text());
        match fs.stat(&text).unwrap().ftype {
            1 => {
                fd -= 1;
                let how = How::default();
                look(Call::Open { at, how, fd }, Answer::Done);
                let data = fs.read_file(&text).unwrap();
                look(Call::Read(fd), Answer::Data(tokens(&data)));
            }
            5 => {
                let text = fs.readlink(&text).unwrap();
                look(
                    Call::Readlink(at),
                    Answer::Text(link_token(text.as_bytes())),
                );
            }
            _ => {}
        }
    }
}

fn history_of(seed: u64, made: impl Future<Output = Run>) -> Run {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime")
        .block_on(async {
            tokio::time::timeout(Duration::from_secs(36_000), made)
                .await
                .unwrap_or_else(|_| panic!("seed {seed}: it hangs"))
        })
}

fn setting(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}")),
        Err(_) => default,
    }
}

#[test]
fn no_history_of_three_hosts_in_memory_shows_what_the_rules_do_not_allow() {
    judge_all(run);
}

#[test]
fn no_history_of_a_host_with_writeback_shows_here_what_it_would_not_show_without() {
    judge_all(run_ahead);
}

/// `EFS_FUSE_CHECKER_HISTORIES` histories from `EFS_FUSE_SEED` on. With
/// `EFS_FUSE_CHECKER_SERVER=1` what the server has executed is shown as well.
fn judge_all<F: Future<Output = Run>>(run: impl Fn(u64) -> F + Sync) {
    let first = setting("EFS_FUSE_SEED", 1);
    let histories = setting("EFS_FUSE_CHECKER_HISTORIES", 3000);
    let (next, open) = (AtomicU64::new(0), AtomicU32::new(0));
    let wrong = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= histories || wrong.lock().len() >= 5 {
                        return;
                    }
                    let seed = first + number;
                    let run = history_of(seed, run(seed));
                    match run.judge() {
                        Verdict::Allowed => {}
                        Verdict::Open => {
                            open.fetch_add(1, Ordering::Relaxed);
                        }
                        Verdict::Wrong(why) => {
                            let said = format!("seed {seed}, believed for {} us: {why}", run.names);
                            wrong.lock().push(said);
                        }
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner();
    let open = u64::from(open.into_inner());
    println!("{histories} histories from seed {first}: {open} too long to judge");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        open * 200 <= histories,
        "{open} of {histories} were not judged"
    );
}
