//! The task that owns the connections of a channel: it makes them, and makes others
//! in their place.
//!
//! While there is none, it connects, with back-off, for ever, and everything
//! unanswered goes out on what it gets. Beside one that lives, further ones are made
//! as [`Scaling`](super::scaling::Scaling) has it; each is greeted, which tells whether
//! it leads to the same session, before calls go over it. One of several that ends is
//! replaced alone; its calls go on over the others meanwhile.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;

use super::connection::{self, Ended};
use super::placement::ConnectionId;
use super::preface;
use super::scaling;
use super::shared::{ChannelState, ConnectionSignals, End};
use super::transport::{BoxStream, NoFurther};
use crate::background::Pause;

/// Pauses between attempts to connect: at once, then from here, doubling up to
/// [`SilenceLimit::pause`](super::silence::SilenceLimit::pause).
const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// How long a further connection may take to answer its greeting.
const GREETING: Duration = Duration::from_secs(10);
/// This many connections that die in a row are the death of the channel.
const DEATHS: u32 = 6;
/// One that is too many and in use is looked at again after this time.
const BUSY: Duration = Duration::from_secs(1);

/// The connections there are.
struct ConnectionSet {
    shared: Arc<ChannelState>,
    running: JoinSet<Ended>,
    last: ConnectionId,
    deaths: Pause,
    last_death: Instant,
}

impl ConnectionSet {
    fn start(&mut self, stream: BoxStream) {
        self.last += 1;
        let (connection, signals) = (self.last, ConnectionSignals::new());
        let replayed = {
            let mut table = self.shared.table.lock();
            table.signals.push((connection, Arc::clone(&signals)));
            table.pending.join(connection, Instant::now())
        };
        let peer = self.shared.connector.peer();
        tracing::debug!(connection, replayed, "connected to {peer}");
        self.shared.metrics.gauges.connections.inc();
        self.shared.link.send_modify(|link| {
            link.connections += 1;
            link.connected = true;
        });
        let shared = Arc::clone(&self.shared);
        self.running.spawn(async move {
            let tasks = Arc::clone(&shared.metrics.tasks);
            let served = tasks.watched(
                "connection",
                connection::serve(shared, connection, stream, signals),
            );
            served
                .await
                .unwrap_or_else(|died| Ended::dead(connection, died))
        });
    }

    /// The task of one has died. Its calls go out again on the next, and so does what
    /// it may have died of: not for ever.
    fn count_death(&mut self) {
        self.deaths.after(self.last_death.elapsed());
        self.last_death = Instant::now();
        let deaths = self.deaths.in_a_row();
        assert!(deaths < DEATHS, "{deaths} connections in a row have died");
    }

    /// One was silent for too long. Others may be as dead, if nothing was heard of
    /// them meanwhile: its calls must not wait on one after the other of them.
    fn suspect_others(&self, silent: ConnectionId) {
        let mut table = self.shared.table.lock();
        let heard = table
            .signals
            .iter()
            .map(|(id, signals)| (*id, signals.heard()));
        let heard: Vec<_> = heard.collect();
        let of_this = heard.iter().find(|(id, _)| *id == silent);
        let since = of_this
            .map(|(_, heard)| *heard)
            .max(table.pending.busy_since(silent));
        for (connection, heard) in heard {
            if connection != silent && Some(heard) <= since {
                table.end(connection, End::Suspect);
            }
        }
    }

    /// One has ended: its calls go elsewhere. Returns the pause before the next one is
    /// made if it was the last, which was `backoff` before.
    fn after_end(&mut self, ended: Result<Ended, JoinError>, backoff: Duration) -> Duration {
        let ended = match ended {
            Ok(ended) => ended,
            // Not reached: what dies in it is caught there.
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let silent = |why: &io::Error| why.kind() == io::ErrorKind::TimedOut;
        if ended.error.as_ref().is_some_and(silent) {
            self.suspect_others(ended.connection);
        }
        self.clear(ended.connection);
        self.shared.metrics.tasks.point("supervise");
        if ended.died {
            self.count_death();
        }
        let Some(error) = ended.error else {
            return backoff;
        };
        if !self.running.is_empty() {
            one_of_several_lost(&self.shared, &error, ended.useful);
            return backoff;
        }
        if silent(&error) {
            self.shared.silence.lock().given_up();
        }
        // A server that accepts and hangs up at once is not to be
        // hammered: only a connection that carried a reply resets the
        // pause.
        let backoff = match ended.useful {
            true => Duration::ZERO,
            false => longer(&self.shared, backoff),
        };
        lost(&self.shared, error, ended.useful);
        backoff
    }

    /// What is left of an ended connection: its calls go elsewhere.
    fn clear(&self, connection: ConnectionId) {
        self.shared.metrics.gauges.connections.dec();
        let mut table = self.shared.table.lock();
        table.signals.retain(|(id, _)| *id != connection);
        for other in table.pending.leave(connection, Instant::now()) {
            table.wake(other);
        }
    }
}

impl Drop for ConnectionSet {
    fn drop(&mut self) {
        for _ in 0..self.running.len() {
            self.shared.metrics.gauges.connections.dec();
        }
    }
}

/// Keeps connections up until the channel is closed; `first` is the one that is there, if
/// one is.
pub(super) async fn supervise(shared: Arc<ChannelState>, first: Option<BoxStream>) {
    let mut closing = shared.closing.subscribe();
    let mut backoff = Duration::ZERO;
    let mut attempts = JoinSet::new();
    let mut connections = ConnectionSet {
        shared: Arc::clone(&shared),
        running: JoinSet::new(),
        last: 0,
        deaths: Pause::default(),
        last_death: Instant::now(),
    };
    if let Some(first) = first {
        connections.start(first);
    }
    loop {
        if connections.running.is_empty() {
            // What they looked for a companion to is no more.
            attempts = JoinSet::new();
            let connected = tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return,
                stream = another(&shared, backoff) => stream,
            };
            match connected {
                Ok(stream) => connections.start(stream),
                Err(error) => {
                    backoff = longer(&shared, backoff);
                    lost(&shared, error, false);
                }
            }
            continue;
        }
        let (make, look) = recount(&shared, attempts.len());
        for _ in 0..make {
            let shared = Arc::clone(&shared);
            attempts.spawn(async move {
                let tasks = Arc::clone(&shared.metrics.tasks);
                let tried = tasks.watched("further", further(shared)).await;
                tried.unwrap_or_else(|died| Err(NoFurther::now(died)))
            });
        }
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            Some(ended) = connections.running.join_next() => {
                backoff = connections.after_end(ended, backoff);
            }
            Some(attempt) = attempts.join_next() => match attempt {
                Ok(Ok(stream)) => {
                    shared.table.lock().scaling.made();
                    connections.start(stream);
                }
                Ok(Err(failed)) => not_made(&shared, &failed),
                Err(panic) => not_made(&shared, &NoFurther::now(panic)),
            },
            () = shared.recount.notified() => {}
            () = tokio::time::sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {}
        }
    }
}

/// A connection in the place of the last one, after a pause.
async fn another(shared: &ChannelState, pause: Duration) -> io::Result<BoxStream> {
    tokio::time::sleep(pause).await;
    let attempt = shared.connector.connect();
    let tried = shared.metrics.tasks.watched("connect", attempt).await;
    tried.unwrap_or_else(|died| Err(io::Error::other(died)))
}

fn longer(shared: &ChannelState, backoff: Duration) -> Duration {
    let most = shared.silence.lock().pause();
    (backoff * 2).clamp(BACKOFF_MIN, most.max(BACKOFF_MIN))
}

/// The last connection is gone, or the next one could not be made.
fn lost(shared: &ChannelState, ended: io::Error, useful: bool) {
    tracing::debug!(%ended, "connection to {} lost", shared.connector.peer());
    shared.link.send_modify(|link| {
        link.connected = false;
        link.fruitless = if useful { 0 } else { link.fruitless + 1 };
        link.garbled = ended.kind() == io::ErrorKind::InvalidData;
        link.last_error = Some(ended.to_string());
        link.cause = Some(Arc::new(ended));
    });
    shared.metrics.reconnects.inc();
}

fn one_of_several_lost(shared: &ChannelState, ended: &io::Error, useful: bool) {
    tracing::debug!(%ended, "one connection to {} lost", shared.connector.peer());
    let growth = &mut shared.table.lock().scaling;
    match useful {
        true => growth.useful(),
        false => growth.failed(scaling::Pause::Growing, Instant::now()),
    }
    shared
        .link
        .send_modify(|link| link.last_error = Some(ended.to_string()));
    shared.metrics.reconnects.inc();
}

/// Lets go of connections that are too many; says how many to make, and when to ask
/// again.
fn recount(shared: &ChannelState, attempts: usize) -> (usize, Option<Instant>) {
    if shared.greet.get().is_none() {
        return (0, None);
    }
    let now = Instant::now();
    let mut table = shared.table.lock();
    let (living, bulk) = (table.pending.connections().count(), table.pending.bulk());
    let allowed = shared.connector.allowed();
    let mut plan = table.scaling.plan((living, attempts), allowed, bulk, now);
    // The youngest first: the first is the one that has its place for small calls.
    let too_many: Vec<_> = (table.pending.connections().rev().take(plan.drop))
        .map(|connection| connection.id)
        .collect();
    for connection in too_many {
        if table.pending.retire(connection) {
            table.end(connection, End::LetGo);
        } else {
            let soon = now + BUSY;
            plan.look = Some(plan.look.map_or(soon, |look| look.min(soon)));
        }
    }
    (plan.make, plan.look)
}

/// A further connection, greeted.
async fn further(shared: Arc<ChannelState>) -> Result<BoxStream, NoFurther> {
    let greeting = || shared.greet.get().and_then(|greet| greet());
    let no_session = || NoFurther::now("there is no session to join");
    // Before connecting, so that nothing is done in vain; what is said then is of
    // the time after it.
    greeting().ok_or_else(no_session)?;
    let mut stream = shared.connector.further().await?;
    let greeting = greeting().ok_or_else(no_session)?;
    let mut xid = [0; 4];
    getrandom::fill(&mut xid).map_err(NoFurther::now)?;
    let xid = u32::from_ne_bytes(xid);
    let reply = preface::ask(&mut stream, greeting.call, xid, GREETING).await;
    match (greeting.judge)(reply.map_err(NoFurther::now)?) {
        Ok(()) => Ok(stream),
        Err(refused) => Err(NoFurther {
            why: refused.why,
            pause: refused.pause,
        }),
    }
}

fn not_made(shared: &ChannelState, failed: &NoFurther) {
    let peer = shared.connector.peer();
    match failed.pause {
        scaling::Pause::Forever => {
            tracing::warn!("no further connections to {peer}: {failed}");
        }
        scaling::Pause::For(time) => tracing::info!(
            "no further connection to {peer} for {} s: {failed}",
            time.as_secs()
        ),
        scaling::Pause::Growing => tracing::debug!("no further connection to {peer}: {failed}"),
    }
    let growth = &mut shared.table.lock().scaling;
    growth.failed(failed.pause, Instant::now());
}

/// Says when the server stops to respond; when it does again, [`super::connection`]
/// says so.
pub(super) async fn watch_responses(shared: Arc<ChannelState>) {
    let mut closing = shared.closing.subscribe();
    let wait = shared.tolerance.wait;
    loop {
        shared.metrics.tasks.point("watch_responses");
        let idle = shared.table.lock().pending.is_empty();
        let silent_since = *shared.answered.lock();
        let mut rest = wait;
        if !idle {
            rest = wait.saturating_sub(silent_since.elapsed());
            if rest.is_zero() {
                rest = wait;
                let first = shared.link.send_if_modified(|link| {
                    let first = link.silent_since.is_none();
                    link.silent_since.get_or_insert(silent_since);
                    first
                });
                if first {
                    let peer = shared.connector.peer();
                    tracing::warn!("server {peer} not responding, still trying");
                    shared
                        .metrics
                        .set_last_error(format!("server {peer} not responding"));
                }
            }
        }
        tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            () = tokio::time::sleep(rest) => {}
        }
    }
}
