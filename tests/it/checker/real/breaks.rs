//! What goes wrong in a run on real mounts: lines and the server, by our hand; and the server
//! by itself.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use parking_lot::Mutex;

use super::super::history::Time;
use super::super::plan::Chance;
use super::super::worker::clock;
use super::Run;
use crate::fixtures::ganesha::Server;
use crate::fixtures::mount::served_by;
use crate::fixtures::proxy::Proxy;
use crate::fixtures::trouble;

/// There is grace after a restart, in which nobody gets far.
const GRACE: Duration = Duration::from_secs(10);

/// How often it is looked whether the server is there.
const LOOKS: Duration = Duration::from_millis(20);

impl Run {
    /// Kills the daemon of one of the keepers, every `pause` milliseconds on average, until the
    /// run is over: no program notices (`-o takeover=crash`).
    pub(super) fn kills(&self, keepers: &[i32], pause: u64, mut chance: Chance) {
        while !self.is_over() {
            sleep(Duration::from_millis(chance.below(2 * pause)));
            let keeper = keepers[chance.below(keepers.len() as u64) as usize];
            let daemon = served_by(keeper).expect("a keeper that has not given up");
            // SAFETY: it is the child of a keeper of this run, which waits for its end.
            unsafe { libc::kill(daemon, libc::SIGKILL) };
            self.daemons.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The server of a run and the lines to it. Whoever has the lines may take the server as
/// well, and not the other way round.
pub(super) struct Place<'a> {
    run: &'a Run,
    lines: Mutex<Vec<Proxy>>,
    server: Mutex<Server>,
}

impl<'a> Place<'a> {
    pub(super) fn new(run: &'a Run, server: Server, lines: Vec<Proxy>) -> Self {
        Self {
            run,
            lines: Mutex::new(lines),
            server: Mutex::new(server),
        }
    }

    /// Breaks lines and the server until the run is over.
    ///
    /// A host that is cut off while the server has its grace period loses its locks, and is told
    /// so (EIO): that is another promise. So the server is killed when every mount of `places`
    /// has just been answered, and no line is touched until the grace is over.
    pub(super) fn breaks(&self, places: &[PathBuf], mut chance: Chance) {
        while !self.run.is_over() {
            sleep(Duration::from_millis(200 + chance.below(2500)));
            let hold = Duration::from_millis(100 + chance.below(3000));
            self.run.faults.fetch_add(1, Ordering::Relaxed);
            match chance.below(trouble::KINDS * 2) {
                kind @ 0..trouble::KINDS => {
                    let mut lines = self.lines.lock();
                    let line = chance.below(lines.len() as u64) as usize;
                    trouble::strike(&mut lines[line], kind, hold, |limit| chance.below(limit));
                }
                kind if kind < trouble::KINDS * 2 - 2 => {
                    let server = self.server.lock();
                    // Who has ended cannot be stopped.
                    if !server.has_ended() {
                        let stopped = server.stopped();
                        sleep(hold / 2);
                        drop(stopped);
                    }
                }
                _ => {
                    for place in places {
                        std::fs::read_dir(place).expect("a mount").for_each(drop);
                    }
                    let _lines = self.lines.lock();
                    let mut server = self.server.lock();
                    if !server.has_ended() {
                        self.restarts(&mut server, clock(), hold / 4);
                    }
                }
            }
        }
    }

    /// Starts the server again where it has ended by itself, until the run is over: nfs-ganesha
    /// 4.3 does so every few minutes (FREE_STATEID of a lock, an OPEN beside the REMOVE of
    /// its file). For the hosts that is what our SIGKILL is, and the same is promised. What is
    /// wrong with the lines is over first, as it is then.
    pub(super) fn heals(&self) {
        let mut was_there = clock();
        while !self.run.is_over() {
            sleep(LOOKS);
            let now = clock();
            if !self.server.lock().has_ended() {
                was_there = now;
                continue;
            }
            let lines = self.lines.lock();
            // Of a line that is half open its host does not know for seconds.
            lines.iter().for_each(Proxy::cut);
            let mut server = self.server.lock();
            self.run.crashes.fetch_add(1, Ordering::Relaxed);
            println!(
                "the server has ended by itself: {:?}",
                server.how_it_ended()
            );
            self.restarts(&mut server, was_there, Duration::ZERO);
        }
    }

    /// Kills the server, if it is there, and starts it again. It was there at `since`.
    fn restarts(&self, server: &mut Server, since: Time, away: Duration) {
        self.run.lost.lock().push((since, Time::MAX));
        server.kill();
        sleep(away);
        server.restart();
        self.run.lost.lock().last_mut().expect("it was pushed").1 = clock();
        sleep(GRACE);
    }
}
