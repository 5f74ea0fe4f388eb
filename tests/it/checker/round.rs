//! One round on real mounts: processes of several hosts in a plot of their own, some of them
//! killed, and what the server has in the end.
//!
//! A thread that has a [`Table`] makes its rounds one after the other. The processes of a
//! table live from round to round; one that was killed is started anew for the next.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path as FilePath, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use super::history::{Answer, Call, Event, Fd, How, OBSERVER, Path, Time, text};
use super::kernel::{link_token, listed, tokens};
use super::plan::{Chance, Theme};
use super::worker::{Line, Order, WORKER, clock, names};

/// Calls of all processes together: what the judge can take, with the observer's.
const CALLS: u64 = 36;

/// No call waits so long for a server that is away for seconds.
const HANGS: Duration = Duration::from_secs(120);

/// The processes of one round at a time, and where they work.
pub(super) struct Table {
    /// The same directory as each host sees it.
    hosts: Vec<PathBuf>,
    /// The same as the server has it.
    behind: PathBuf,
    workers: Vec<Option<Worker>>,
    heard: Receiver<(usize, Said)>,
    says: Sender<(usize, Said)>,
}

/// What a process has said.
enum Said {
    Line(Line),
    /// What it says when it panics.
    Other(String),
    /// Nothing any more: it has ended, or is about to.
    Gone,
}

struct Worker {
    process: Child,
    orders: ChildStdin,
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It has ended already, or is to.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Worker {
    fn start(number: usize, says: Sender<(usize, Said)>) -> Self {
        let program = std::env::current_exe().expect("the test program");
        let mut process = Command::new(program)
            .args(["--exact", WORKER, "--ignored", "--nocapture"])
            .args(["--test-threads", "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a process of the checker");
        let orders = process.stdin.take().expect("its stdin");
        let said = BufReader::new(process.stderr.take().expect("its stderr"));
        // It ends with the process, which the table ends.
        std::thread::spawn(move || {
            for line in said.lines().map_while(Result::ok) {
                let said = match serde_json::from_str(&line) {
                    Ok(line) => Said::Line(line),
                    Err(_) => Said::Other(line),
                };
                let _ = says.send((number, said));
            }
            let _ = says.send((number, Said::Gone));
        });
        Self { process, orders }
    }
}

/// What a round came to.
pub(super) struct Round {
    pub(super) history: Vec<Event>,
    pub(super) began: Time,
    pub(super) ended: Time,
}

/// What the table knows of a process in a round.
struct Seat {
    host: u8,
    number: u16,
    /// When it is killed, if it has not finished by then.
    dies: Option<Instant>,
    killed: Option<Time>,
    calling: Option<(Call, Time)>,
    open: Vec<Fd>,
    done: bool,
}

impl Table {
    pub(super) fn new(hosts: Vec<PathBuf>, behind: PathBuf) -> Self {
        let (says, heard) = channel();
        Self {
            hosts,
            behind,
            workers: Vec::new(),
            heard,
            says,
        }
    }

    /// Makes a round in a new directory. What went wrong is told with what was done.
    pub(super) fn round(
        &mut self,
        name: &str,
        theme: Theme,
        pause: Duration,
        chance: &mut Chance,
    ) -> Result<Round, String> {
        let began = clock();
        let maker = &self.hosts[chance.below(self.hosts.len() as u64) as usize];
        match fs::create_dir(maker.join(name)) {
            // Nobody else makes it: it was sent once more, to a server that had lost its reply.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(|error| format!("mkdir of the plot: {error}"))?,
        }
        let processes = [3, 4, 6, 9, 12][chance.below(5) as usize];
        let mut seats = Vec::new();
        for index in 0..processes {
            let host = index % self.hosts.len();
            let order = Order {
                plot: self.hosts[host].join(name),
                theme,
                host: host as u8,
                number: index as u16 + 1,
                seed: chance.below(u64::MAX),
                calls: (CALLS / processes as u64).max(2),
                pause: pause.as_micros() as u64,
            };
            self.order(index, &order);
            let lives = Duration::from_micros(chance.below(100_000));
            seats.push(Seat {
                host: host as u8,
                number: order.number,
                dies: chance.one_in(5).then(|| Instant::now() + lives),
                killed: None,
                calling: None,
                open: Vec::new(),
                done: false,
            });
        }
        let mut history = Vec::new();
        let heard = self.hear(&mut seats, &mut history);
        heard.map_err(|what| format!("{what}\n{}", text(&since(began, history.clone()))))?;
        self.settle(name)?;
        look(&self.behind.join(name), clock(), &mut history)
            .map_err(|error| format!("the observer: {error}"))?;
        Ok(Round {
            history: since(began, history),
            began,
            ended: clock(),
        })
    }

    /// Gives a process its order; starts it if there is none.
    fn order(&mut self, index: usize, order: &Order) {
        if self.workers.len() <= index {
            self.workers.resize_with(index + 1, || None);
        }
        let says = &self.says;
        let worker = self.workers[index].get_or_insert_with(|| Worker::start(index, says.clone()));
        let text = serde_json::to_string(order).expect("an order");
        let written = worker.orders.write_all(format!("{text}\n").as_bytes());
        written.expect("the process reads its orders");
    }

    /// Writes down what the processes do until all have finished, and kills those
    /// whose time has come.
    fn hear(&mut self, seats: &mut [Seat], history: &mut Vec<Event>) -> Result<(), String> {
        let mut last = Instant::now();
        while seats.iter().any(|seat| !seat.done) {
            let now = Instant::now();
            for (index, seat) in seats.iter_mut().enumerate() {
                if seat.dies.is_some_and(|at| at <= now) && !seat.done && seat.killed.is_none() {
                    seat.killed = Some(clock());
                    let worker = self.workers[index].as_mut().expect("a process");
                    worker.process.kill().expect("it has not been waited for");
                }
            }
            match self.heard.recv_timeout(Duration::from_millis(2)) {
                Ok((index, said)) => {
                    last = Instant::now();
                    self.on_said(index, &mut seats[index], said, history)?;
                }
                Err(RecvTimeoutError::Timeout) if last.elapsed() < HANGS => {}
                Err(_) => {
                    for seat in seats.iter().filter(|seat| seat.calling.is_some()) {
                        history.push(seat.unanswered());
                    }
                    return Err("it hangs: the calls without an answer are the last".to_owned());
                }
            }
        }
        Ok(())
    }

    fn on_said(
        &mut self,
        index: usize,
        seat: &mut Seat,
        said: Said,
        history: &mut Vec<Event>,
    ) -> Result<(), String> {
        match said {
            Said::Line(Line::Begins { call, at }) => seat.calling = Some((call, at)),
            Said::Line(Line::Ended { answer, at }) => {
                let (call, began) = seat.calling.take().expect("a call");
                match (&call, &answer) {
                    (&Call::Open { fd, .. }, Answer::Done) => seat.open.push(fd),
                    (Call::Close(fd), _) => seat.open.retain(|open| open != fd),
                    _ => {}
                }
                history.push(seat.event(call, began, at, Some(answer)));
            }
            // It may have finished just before it was killed.
            Said::Line(Line::Idle) if seat.killed.is_none() => seat.done = true,
            Said::Line(Line::Idle) => {}
            Said::Other(line) if line.contains("panicked") => return Err(line),
            Said::Other(_) => {}
            Said::Gone => {
                let mut worker = self.workers[index].take().expect("a process");
                let status = worker.process.wait();
                let Some(killed) = seat.killed else {
                    return Err(format!("process {} has ended: {status:?}", seat.number));
                };
                let now = clock();
                if let Some((call, began)) = seat.calling.take() {
                    history.push(seat.event(call, began, now, None));
                }
                // The kernel closes what it had open.
                for fd in std::mem::take(&mut seat.open) {
                    history.push(seat.event(Call::Close(fd), killed, now, Some(Answer::Done)));
                }
                seat.done = true;
            }
        }
        Ok(())
    }

    /// What hosts have accepted is at the server, and what they do for who was killed is
    /// over.
    fn settle(&self, name: &str) -> Result<(), String> {
        for host in &self.hosts {
            let plot = host.join(name);
            File::open(&plot)
                .and_then(|plot| plot.sync_all())
                .map_err(|error| format!("fsync of {}: {error}", plot.display()))?;
        }
        // A change of attributes that waits does so for less. ("An unpublished file")
        std::thread::sleep(Duration::from_millis(25));
        Ok(())
    }
}

impl Seat {
    fn event(&self, call: Call, began: Time, ended: Time, answer: Option<Answer>) -> Event {
        Event {
            host: self.host,
            process: self.number,
            call,
            began,
            ended,
            answer,
            unsure: false,
        }
    }

    fn unanswered(&self) -> Event {
        let (call, began) = self.calling.expect("a call");
        self.event(call, began, clock(), None)
    }
}

/// Times from the beginning of the round on.
fn since(began: Time, mut history: Vec<Event>) -> Vec<Event> {
    for event in &mut history {
        event.began -= began;
        event.ended -= began;
    }
    history.sort_by_key(|event| event.began);
    history
}

/// The observer looks at the server's own files.
fn look(plot: &FilePath, now: Time, history: &mut Vec<Event>) -> io::Result<()> {
    let mut saw = |call: Call, answer: Answer| {
        history.push(Event {
            host: OBSERVER,
            process: u16::MAX,
            call,
            began: now,
            ended: now,
            answer: Some(answer),
            unsure: false,
        });
    };
    let top = listed(&names(plot)?);
    saw(Call::List(None), Answer::Listed(top.clone()));
    let mut paths: Vec<_> = top.iter().map(|&name| Path { dir: None, name }).collect();
    for &dir in &top {
        let at = plot.join(char::from(dir).to_string());
        if fs::symlink_metadata(&at)?.is_dir() {
            let names = listed(&names(&at)?);
            saw(Call::List(Some(dir)), Answer::Listed(names.clone()));
            paths.extend(names.into_iter().map(|name| Path {
                dir: Some(dir),
                name,
            }));
        }
    }
    let mut fd = Fd::MAX;
    for at in paths {
        let path = plot.join(at.text());
        let kind = fs::symlink_metadata(&path)?.file_type();
        if kind.is_symlink() {
            let text = fs::read_link(&path)?;
            let token = link_token(text.as_os_str().as_bytes());
            saw(Call::Readlink(at), Answer::Text(token));
        } else if kind.is_file() {
            fd -= 1;
            let how = How::default();
            saw(Call::Open { at, how, fd }, Answer::Done);
            saw(Call::Read(fd), Answer::Data(tokens(&fs::read(&path)?)));
        }
    }
    Ok(())
}
