//! Histories of processes on real mounts: three hosts on nfs-ganesha, with each set of
//! times that a user may choose, under faults; or the mounts of another client, to see
//! what that shows.
//!
//! Every set of mounts has tables ([`round`](super::round)), each with a thread of its own that
//! makes rounds until the time is over; one thread more breaks lines and the server, and one
//! starts a server again that has ended by itself ([`breaks`]). What is wrong is printed with
//! its whole history, as soon as it is seen.
//!
//! - `EFS_FUSE_CHECKER_SECONDS`: how long (`scripts/checker --real`)
//! - `EFS_FUSE_CHECKER_SETS`: so many sets of times, of three
//! - `EFS_FUSE_SEED`: repeats what is drawn, not when it happens
//! - `EFS_FUSE_CHECKER_LOG`: a directory for what the daemons have to say
//! - `EFS_FUSE_CHECKER_KILLS`: the mounts are of `takeover=crash`, and the daemon of one is killed
//!   each so many milliseconds, on average; the rules are the same
//! - `EFS_FUSE_CHECKER_CACHE`: the mounts keep data on a disk ([`disk`]) that is full for so many
//!   milliseconds, on average, and free again; the last line says how much was read from it

mod breaks;
mod disk;
mod kernel_client;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::breaks::Place;
use self::disk::CacheDisk;
pub(super) use self::kernel_client::kernels;
use self::kernel_client::{is_unclear, with_hidden_targets, without_zeros};
use super::history::{Answer, Call, Event, Time};
use super::judge::{Verdict, judge};
use super::plan::{Chance, THEMES};
use super::round::{Round, Table};
use super::rules::Rules;
use crate::fixtures::ganesha::{Server, ServerOptions};
use crate::fixtures::mount::{Mount, MountRequest};
use crate::fixtures::proxy::Proxy;
use crate::fixtures::setting;

const HOSTS: usize = 3;

/// A kernel believes what it was told from when it has heard it, and counts in ticks;
/// the time on the way is not ours to count.
const LATE: Duration = Duration::from_millis(150);

/// After a restart the server has not everything back that was not committed.
const UNTIL_SENT_AGAIN: Time = 30_000_000;

/// A set of times, and what hosts that have it may believe for how long.
#[derive(Clone, Copy)]
struct Belief {
    options: &'static str,
    longest: Duration,
    /// Between calls at most: so long that belief ends in a round.
    pause: Duration,
}

const BELIEFS: [Belief; 3] = [
    Belief {
        options: "actimeo=0",
        longest: Duration::ZERO,
        pause: Duration::from_millis(50),
    },
    Belief {
        options: "actimeo=1",
        longest: Duration::from_secs(1),
        pause: Duration::from_millis(2500),
    },
    Belief {
        options: "acdirmax=60",
        longest: Duration::from_secs(60),
        pause: Duration::from_millis(200),
    },
];

impl Belief {
    fn time(&self) -> Time {
        let late = if self.longest.is_zero() {
            Duration::ZERO
        } else {
            LATE
        };
        (self.longest + late).as_micros() as Time
    }
}

/// What all tables of a run share.
#[derive(Default)]
struct Run {
    over: AtomicBool,
    rounds: AtomicU64,
    calls: AtomicU64,
    killed: AtomicU64,
    open: AtomicU64,
    faults: AtomicU64,
    /// Daemons that were killed.
    daemons: AtomicU64,
    /// How often the server has ended by itself.
    crashes: AtomicU64,
    wrong: Mutex<Vec<String>>,
    /// When the server lost sessions: from when to when.
    lost: Mutex<Vec<(Time, Time)>>,
}

/// More findings of one run are not looked for.
const ENOUGH: usize = 5;

impl Run {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed) || self.wrong.lock().len() >= ENOUGH
    }

    fn finds(&self, what: String) {
        println!("{what}");
        self.wrong.lock().push(what);
    }

    /// One table's rounds.
    fn play(&self, mut table: Table, belief: Belief, name: &str, mut chance: Chance, plot: &Path) {
        for number in 0.. {
            if self.is_over() {
                return;
            }
            let theme = THEMES[chance.below(THEMES.len() as u64) as usize];
            let name = format!("{name}-{number}");
            let round = match table.round(&name, theme, belief.pause, &mut chance) {
                Ok(round) => round,
                Err(what) => return self.finds(format!("{}, {name}: {what}", belief.options)),
            };
            self.rounds.fetch_add(1, Ordering::Relaxed);
            let killed = round.history.iter().filter(|call| call.answer.is_none());
            self.killed
                .fetch_add(killed.count() as u64, Ordering::Relaxed);
            self.calls
                .fetch_add(round.history.len() as u64, Ordering::Relaxed);
            let began = round.began;
            match self.judge(round, belief) {
                Verdict::Allowed => {
                    let gone = std::fs::remove_dir_all(plot.join(&name));
                    gone.expect("the server's directory");
                }
                Verdict::Open => {
                    self.open.fetch_add(1, Ordering::Relaxed);
                }
                Verdict::Wrong(why) => {
                    self.finds(format!(
                        "{}, {name}, {theme:?}, from {began} us on the monotonic clock: {why}",
                        belief.options
                    ));
                }
            }
        }
    }

    fn judge(&self, mut round: Round, belief: Belief) -> Verdict {
        let lost = self.lost.lock().clone();
        let kernels = kernels();
        with_hidden_targets(&mut round.history, &kernels);
        let (began, ended) = (round.began, round.ended);
        let believed: Vec<_> = (round.history.iter())
            .map(|event| is_believed_of_renamed(&round.history, event))
            .collect();
        for (event, believed) in round.history.iter_mut().zip(believed) {
            let unclear = [is_ganeshas, is_walked_twice, is_onto_its_directory];
            let unclear = unclear.iter().any(|is_so| is_so(event));
            if believed || unclear || is_unclear(event, &kernels) {
                event.answer = None;
            }
            let (from, to) = (began + event.began, began + event.ended);
            event.unsure = lost.iter().any(|lost| from <= lost.1 && lost.0 <= to);
        }
        let volatile = (lost.iter())
            .any(|lost| began <= lost.1.saturating_add(UNTIL_SENT_AGAIN) && lost.0 <= ended);
        let judge = |history: Vec<Event>| {
            judge_renames(history, &|history| {
                let mut rules = Rules::new(history, belief.time(), belief.time());
                rules.volatile = volatile;
                rules.torn = true;
                // A mount that asks for the plot of one table asks for those beside it as well,
                // and for all when its root is listed.
                rules.is_asked_for = true;
                rules.kernels.clone_from(&kernels);
                judge(history, &rules)
            })
        };
        let shortened = without_zeros(&round.history, &kernels);
        match judge(round.history) {
            Verdict::Wrong(why) => match shortened.map(judge) {
                Some(Verdict::Wrong(_)) | None => Verdict::Wrong(why),
                Some(said) => said,
            },
            said => said,
        }
    }

    fn summary(&self, seed: u64) -> String {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        format!(
            "seed {seed}: {} rounds, {} calls, {} of them killed, {} faults, {} daemons killed, \
             {} crashes of the server, {} too long to judge, {} wrong",
            of(&self.rounds),
            of(&self.calls),
            of(&self.killed),
            of(&self.faults),
            of(&self.daemons),
            of(&self.crashes),
            of(&self.open),
            self.wrong.lock().len()
        )
    }
}

/// nfs-ganesha makes a file, looks for its handle by the name, and says NOENT if somebody
/// has renamed it meanwhile: then it is there, under the other name. It also looks for what
/// has the name of a directory or a link that is to be made, and says NOENT if that was removed
/// meanwhile (the directory of the name is there: it is the plot).
fn is_ganeshas(event: &Event) -> bool {
    let is_made = match event.call {
        Call::Open { how, .. } => how.create,
        Call::Mkdir(at) | Call::Symlink(at, _) => at.dir.is_none(),
        _ => false,
    };
    is_made && event.answer == Some(Answer::Refused(libc::ENOENT))
}

/// rename(2) of a name to itself: the kernel walks to both, and compares a file that it knows
/// with the directory that is there by now.
fn is_walked_twice(event: &Event) -> bool {
    matches!(event.call, Call::Rename { from, to, .. } if from == to)
        && matches!(
            event.answer,
            Some(Answer::Refused(libc::EISDIR | libc::ENOTDIR))
        )
}

/// rename(2) of a name onto the directory that it is in: if the kernel has just dropped what it knew by
/// that name, it finds the directory again while renames are locked, and says ESTALE (d_splice_alias).
fn is_onto_its_directory(event: &Event) -> bool {
    matches!(event.call, Call::Rename { from, to, .. } if to.dir.is_none() && from.dir == Some(to.name))
        && event.answer == Some(Answer::Refused(libc::ESTALE))
}

/// What a host has renamed was something else than it believed. The kernel hears of that behind the
/// answer, and takes the new name for what it believed for as long.
fn is_believed_of_renamed(history: &[Event], event: &Event) -> bool {
    const HEARS: Time = 20_000;
    let refused = matches!(
        event.answer,
        Some(Answer::Refused(libc::ENOTDIR | libc::EISDIR | libc::ESTALE))
    );
    refused
        && history.iter().any(|other| match other.call {
            Call::Rename { to, .. } if to.dir.is_none() => {
                other.host == event.host
                    && other.answer == Some(Answer::Done)
                    && (other.ended..other.ended + HEARS).contains(&event.began)
                    && (event.call.paths().iter())
                        .any(|path| path.dir == Some(to.name) || *path == to)
            }
            _ => false,
        })
}

/// Whether rename(2) has found two names of one file and done nothing, it does not say: where
/// no order is found, both are tried. Another host's rename is enough for two such names, one
/// of which is believed.
fn judge_renames(mut history: Vec<Event>, judge: &dyn Fn(&[Event]) -> Verdict) -> Verdict {
    let verdict = judge(&history);
    if !matches!(verdict, Verdict::Wrong(_)) {
        return verdict;
    }
    let renames: Vec<usize> = (0..history.len())
        .filter(|&event| {
            matches!(history[event].call, Call::Rename { .. })
                && history[event].answer == Some(Answer::Done)
        })
        .take(6)
        .collect();
    for chosen in 1..1_u32 << renames.len() {
        for (bit, &event) in renames.iter().enumerate() {
            history[event].answer = Some(match chosen & 1 << bit {
                0 => Answer::Done,
                _ => Answer::Same,
            });
        }
        match judge(&history) {
            Verdict::Wrong(_) => {}
            said => return said,
        }
    }
    verdict
}

#[test]
#[ignore = "for as long as somebody likes: scripts/checker --real"]
fn no_round_of_three_hosts_on_real_mounts_shows_what_the_rules_do_not_allow() {
    let seconds = setting("EFS_FUSE_CHECKER_SECONDS", 25);
    let seed = setting("EFS_FUSE_SEED", u64::from(std::process::id()));
    let tables = setting("EFS_FUSE_CHECKER_TABLES", 1);
    let kills = setting("EFS_FUSE_CHECKER_KILLS", 0);
    let mut chance = Chance(seed);
    let limit = Duration::from_secs(seconds + 400);
    let server = Server::start(ServerOptions::default());
    let lines: Vec<_> = (0..HOSTS).map(|_| Proxy::to(server.address())).collect();
    let disk = CacheDisk::of_setting();
    let mount = |belief: &Belief, (host, line): (usize, &Proxy)| {
        let mut request = MountRequest::new(server.device("/"), line.port())
            .option(belief.options)
            .time_limit(limit);
        if kills > 0 {
            request = (request.option("takeover=crash")).env("EFS_FUSE_TEST_CRASHES", "1");
        }
        if let Some(disk) = &disk {
            request = disk.under(request);
        }
        if let Ok(dir) = std::env::var("EFS_FUSE_CHECKER_LOG") {
            let log = format!("log={dir}/{}-{host}", belief.options);
            request = request.option("debug").option(&log);
        }
        request.mount()
    };
    let sets = setting("EFS_FUSE_CHECKER_SETS", 2) as usize;
    let mounts: Vec<(Belief, Vec<Mount>)> = BELIEFS[..sets]
        .iter()
        .map(|belief| {
            (
                *belief,
                (lines.iter().enumerate())
                    .map(|line| mount(belief, line))
                    .collect(),
            )
        })
        .collect();
    let export = server.export();
    let run = Arc::new(Run::default());
    let all = || mounts.iter().flat_map(|(_, mounts)| mounts);
    let places: Vec<_> = all().map(|mount| mount.path().to_owned()).collect();
    let keepers: Vec<_> = match kills {
        0 => Vec::new(),
        _ => all().map(Mount::keeper).collect(),
    };
    let place = Place::new(&run, server, lines);
    std::thread::scope(|scope| {
        for (set, (belief, mounts)) in mounts.iter().enumerate() {
            for table in 0..tables {
                let hosts = mounts.iter().map(|mount| mount.path().to_owned());
                let seat = Table::new(hosts.collect(), export.clone());
                let (run, export) = (Arc::clone(&run), export.clone());
                let chance = chance.split();
                scope.spawn(move || {
                    run.play(seat, *belief, &format!("{set}-{table}"), chance, &export);
                });
            }
        }
        let (faults, deaths, full) = (chance.split(), chance.split(), chance.split());
        scope.spawn(|| place.breaks(&places, faults));
        if kills > 0 {
            scope.spawn(|| run.kills(&keepers, kills, deaths));
        }
        scope.spawn(|| place.heals());
        if let Some(disk) = &disk {
            let run = &run;
            scope.spawn(move || disk.fills(run, full));
        }
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until && !run.is_over() {
            sleep(Duration::from_millis(100));
        }
        run.over.store(true, Ordering::Relaxed);
    });
    println!("{}", run.summary(seed));
    if let Some(disk) = &disk {
        println!("{}", disk.summary(all()));
    }
    assert!(run.wrong.lock().is_empty(), "the findings are above");
    let rounds = run.rounds.load(Ordering::Relaxed);
    assert!(run.open.load(Ordering::Relaxed) * 20 <= rounds, "judged");
    assert!(rounds > 0, "no round was made");
}

/// `EFS_FUSE_CHECKER_HOSTS=DIR:DIR:…`: mounts of one export, of whatever clients, and
/// `EFS_FUSE_CHECKER_EXPORT=DIR`: the same as the server has it. For
/// `EFS_FUSE_CHECKER_BELIEVED` milliseconds what they know may be believed.
#[test]
#[ignore = "needs mounts that somebody has made: scripts/checker --mounts"]
fn no_round_of_given_mounts_shows_what_the_rules_do_not_allow() {
    let text = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let hosts: Vec<PathBuf> = std::env::split_paths(&text("EFS_FUSE_CHECKER_HOSTS")).collect();
    let export = PathBuf::from(text("EFS_FUSE_CHECKER_EXPORT"));
    let seed = setting("EFS_FUSE_SEED", u64::from(std::process::id()));
    let longest = Duration::from_millis(setting("EFS_FUSE_CHECKER_BELIEVED", 1000));
    let belief = Belief {
        options: "given mounts",
        longest,
        pause: longest * 5 / 2 + Duration::from_millis(50),
    };
    let (run, mut chance) = (Arc::new(Run::default()), Chance(seed));
    std::thread::scope(|scope| {
        for table in 0..setting("EFS_FUSE_CHECKER_TABLES", 2) {
            let seat = Table::new(hosts.clone(), export.clone());
            let (run, chance, export) = (Arc::clone(&run), chance.split(), &export);
            let name = format!("{seed}-{table}");
            scope.spawn(move || run.play(seat, belief, &name, chance, export));
        }
        let until = Instant::now() + Duration::from_secs(setting("EFS_FUSE_CHECKER_SECONDS", 60));
        while Instant::now() < until && !run.is_over() {
            sleep(Duration::from_millis(100));
        }
        run.over.store(true, Ordering::Relaxed);
    });
    println!("{}", run.summary(seed));
    assert!(run.wrong.lock().is_empty(), "the findings are above");
}
