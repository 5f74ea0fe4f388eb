//! The control socket of a mount: how `stats` and `status` ask the daemon.
//!
//! A UNIX socket, mode 0600 in a directory of mode 0700. A client sends one
//! JSON object per line and gets one JSON object per line back:
//!
//! | request | answer |
//! |---|---|
//! | `{"cmd":"stats"}` | [`Metrics::snapshot`] |
//! | `{"cmd":"status"}` | what the status function given to [`serve`] returns |
//! | `{"cmd":"buckets"}` | [`Metrics::snapshot_with_buckets`] |
//! | `{"cmd":"reset"}` | the last snapshot; the counters start again at zero |
//! | `{"cmd":"log","filter":"..."}` | `{"filter":"..."}`: what is logged from now on; without `filter`, what is logged now |
//! | `{"cmd":"sync"}` | what the sync function given to [`serve`] returns, when all that was accepted is stable |
//! | `{"cmd":"upgrade",...}` | what the upgrade function given to [`serve`] returns; nothing, if the process ends |
//! | anything else | `{"error":"..."}` |
//!
//! Sizes, times and the number of clients are bounded: a client can neither
//! make the daemon grow nor keep others out for longer than [`CLIENT_TIME`].

use std::fs::Metadata;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Metrics, log, unixsocket};

/// The longest request line.
const MAX_REQUEST: u64 = 4 << 10;
/// The longest answer a client reads: all histograms, many times over.
pub const MAX_REPLY: u64 = 4 << 20;
/// Clients served at once; the next ones wait in the listen queue.
const MAX_CLIENTS: usize = 8;
/// Of those, so many may wait for a sync, which lasts as long as the server is away; the others are
/// answered from memory.
const MAX_SYNCS: usize = 4;
/// How long a client may take for one request or for reading one answer.
const CLIENT_TIME: Duration = Duration::from_secs(5);

/// Answers `status`. Must not block: it runs in a tokio worker.
pub type StatusFn = Arc<dyn Fn() -> Value + Send + Sync>;

/// Begins an upgrade. The answer comes when that was refused; a process that is followed by
/// another ends without one.
pub type UpgradeFn = Arc<dyn Fn(&Value) -> oneshot::Receiver<Value> + Send + Sync>;

/// Begins a sync. The answer comes when it is over, which may be never; nobody waits for it any more
/// when its receiver is dropped.
pub type SyncFn = Arc<dyn Fn() -> oneshot::Receiver<Value> + Send + Sync>;

/// What a mount answers for itself.
#[derive(Clone)]
pub struct Answers {
    /// `status`.
    pub status: StatusFn,
    /// `upgrade`, if the mount knows it.
    pub upgrade: Option<UpgradeFn>,
    /// `sync`, if the mount knows it.
    pub sync: Option<SyncFn>,
}

/// The running server. Dropping it ends the task and removes the socket.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    socket: Metadata,
    task: JoinHandle<()>,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
        // Gone already if the directory was cleaned; or a successor's.
        let _ = unixsocket::remove(&self.path, &self.socket);
    }
}

/// Binds the socket at `path`, whose directory must exist, and serves it in a
/// task of the current tokio runtime. A stale socket there is replaced.
///
/// # Errors
/// The socket cannot be bound (path too long, directory missing, ...).
pub fn serve(path: &Path, metrics: Arc<Metrics>, answers: Answers) -> io::Result<ControlServer> {
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    // Between bind and chmod the 0700 directory keeps others out.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(ControlServer {
        path: path.to_owned(),
        socket: std::fs::symlink_metadata(path)?,
        task: {
            let listener = Arc::new(listener);
            let tasks = Arc::clone(&metrics.tasks);
            tasks.restarted("control", move || {
                accept(Arc::clone(&listener), Arc::clone(&metrics), answers.clone())
            })
        },
    })
}

async fn accept(listener: Arc<UnixListener>, metrics: Arc<Metrics>, answers: Answers) {
    let room = Arc::new(Semaphore::new(MAX_CLIENTS));
    let syncs = Arc::new(Semaphore::new(MAX_SYNCS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        metrics.tasks.point("control");
        match listener.accept().await {
            Ok((client, _)) => {
                let (metrics, answers) = (Arc::clone(&metrics), answers.clone());
                let syncs = Arc::clone(&syncs);
                let tasks = Arc::clone(&metrics.tasks);
                tasks.harmless("a client of control", async move {
                    if let Err(why) = serve_client(client, &metrics, &answers, &syncs).await {
                        tracing::debug!(%why, "a control client went away");
                    }
                    drop(permit);
                });
            }
            Err(why) => {
                // Out of descriptors, most likely: try again when some are back.
                tracing::debug!(%why, "cannot accept a control client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_client(
    client: UnixStream,
    metrics: &Metrics,
    answers: &Answers,
    syncs: &Semaphore,
) -> io::Result<()> {
    let (reader, mut writer) = client.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = (&mut reader).take(MAX_REQUEST);
        if timeout(CLIENT_TIME, limited.read_until(b'\n', &mut line)).await?? == 0 {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        let answer = if complete || line.len() < MAX_REQUEST as usize {
            tokio::select! {
                biased;
                answer = answer(&line, metrics, answers, syncs) => answer,
                () = has_left(&mut reader) => return Ok(()),
            }
        } else {
            json!({"error": format!("a request is at most {MAX_REQUEST} bytes")})
        };
        let mut bytes = answer.to_string().into_bytes();
        bytes.push(b'\n');
        timeout(CLIENT_TIME, writer.write_all(&bytes)).await??;
        if !complete {
            return Ok(());
        }
    }
}

/// Waits until the client has hung up. What it sends meanwhile is its next request.
async fn has_left(reader: &mut (impl AsyncBufRead + Unpin)) {
    if matches!(reader.fill_buf().await, Ok(more) if !more.is_empty()) {
        std::future::pending().await
    }
}

async fn answer(line: &[u8], metrics: &Metrics, answers: &Answers, syncs: &Semaphore) -> Value {
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(why) => return json!({"error": format!("not a JSON request: {why}")}),
    };
    match request["cmd"].as_str() {
        Some("stats") => metrics.snapshot(),
        Some("buckets") => metrics.snapshot_with_buckets(),
        Some("status") => (answers.status)(),
        Some("upgrade") => match &answers.upgrade {
            Some(upgrade) => upgrade(&request)
                .await
                .unwrap_or_else(|_| json!({"error": "the mount is at its end"})),
            None => json!({"error": "this mount cannot be handed over"}),
        },
        Some("sync") => match (&answers.sync, syncs.try_acquire()) {
            (Some(sync), Ok(_one)) => sync()
                .await
                .unwrap_or_else(|_| json!({"error": "the mount is at its end"})),
            (Some(_), Err(_)) => {
                json!({"error": format!("{MAX_SYNCS} others wait for a sync already")})
            }
            (None, _) => json!({"error": "this mount knows no sync"}),
        },
        Some("log") => {
            let filter = match request["filter"].as_str() {
                Some(filter) => log::set_filter(filter),
                None => log::current_filter(),
            };
            match filter {
                Ok(filter) => json!({"filter": filter}),
                Err(why) => json!({"error": why.to_string()}),
            }
        }
        Some("reset") => {
            let last = metrics.snapshot();
            metrics.reset();
            last
        }
        _ => json!({"error": "unknown command"}),
    }
}

/// Asks the daemon behind the socket `path`. The whole answer is there within `patience`.
/// For the commands, which have no runtime.
///
/// # Errors
/// As [`connect`] and [`exchange`].
pub fn ask(path: &Path, command: &str, patience: Duration) -> io::Result<Value> {
    let deadline = Instant::now() + patience;
    let stream = connect(path, deadline)?;
    exchange(stream, &json!({"cmd": command}), deadline, MAX_REPLY)
}

/// Connects to the socket `path`. Where nobody accepts, that waits like everything else.
///
/// # Errors
/// Nobody listens (`ConnectionRefused`, `NotFound`), or nobody accepts in time (`TimedOut`).
pub fn connect(path: &Path, deadline: Instant) -> io::Result<BlockingStream> {
    use socket2::{Domain, SockAddr, Socket, Type};
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // That of connect(2) on such a socket, too.
    socket.set_write_timeout(Some(left(deadline)?))?;
    socket
        .connect(&SockAddr::unix(path)?)
        .map_err(named_timeout)?;
    Ok(BlockingStream::from(OwnedFd::from(socket)))
}

/// The user whose process listens at the other end.
///
/// # Errors
/// The kernel does not tell.
pub fn peer_user(stream: &BlockingStream) -> io::Result<u32> {
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: a valid descriptor, and a struct of the length that is told.
    let done = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    match done {
        0 => Ok(peer.uid),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a request and reads the answer, of which all is there until `deadline`, however
/// it comes, and which is no longer than `limit` bytes.
///
/// # Errors
/// No answer in time (`TimedOut`), or one that is too long, no JSON, or an `error`.
pub fn exchange(
    mut stream: BlockingStream,
    request: &Value,
    deadline: Instant,
    limit: u64,
) -> io::Result<Value> {
    let request = format!("{request}\n");
    let mut rest = request.as_bytes();
    while !rest.is_empty() {
        stream.set_write_timeout(Some(left(deadline)?))?;
        let sent = stream.write(rest).map_err(named_timeout)?;
        rest = &rest[sent..];
    }
    let mut line = Vec::new();
    let mut buffer = [0; 8 << 10];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        let count = stream.read(&mut buffer).map_err(named_timeout)?;
        let read = &buffer[..count];
        let end = read.iter().position(|&byte| byte == b'\n');
        line.extend_from_slice(&read[..end.unwrap_or(count)]);
        if line.len() as u64 > limit {
            let why = format!("an answer is at most {limit} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        if count == 0 || end.is_some() {
            return parse(&line);
        }
    }
}

/// What an answer says.
///
/// # Errors
/// It is no JSON, or an `error`.
pub fn parse(line: &[u8]) -> io::Result<Value> {
    let answer: Value = serde_json::from_slice(line)?;
    match answer["error"].as_str() {
        Some(why) => Err(io::Error::other(why.to_owned())),
        None => Ok(answer),
    }
}

/// The time until then, which is not none: that would be for ever to the system.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left < Duration::from_millis(1) {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// A timeout of a socket is EAGAIN.
fn named_timeout(why: io::Error) -> io::Error {
    match why.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    struct Fixture {
        _dir: tempfile::TempDir,
        path: PathBuf,
        metrics: Arc<Metrics>,
        _server: ControlServer,
    }

    fn answers(state: &'static str) -> Answers {
        Answers {
            status: Arc::new(move || json!({"session": {"state": state}})),
            upgrade: None,
            sync: None,
        }
    }

    fn fixture() -> io::Result<Fixture> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("s");
        let metrics = Metrics::new();
        let server = serve(&path, Arc::clone(&metrics), answers("up"))?;
        Ok(Fixture {
            _dir: dir,
            path,
            metrics,
            _server: server,
        })
    }

    async fn ask_async(path: &Path, command: &'static str) -> io::Result<Value> {
        let path = path.to_owned();
        tokio::task::spawn_blocking(move || ask(&path, command, PATIENCE)).await?
    }

    #[tokio::test]
    async fn stats_status_and_reset_are_answered() -> io::Result<()> {
        let fixture = fixture()?;
        fixture.metrics.round_trip();
        assert_eq!(ask_async(&fixture.path, "stats").await?["round_trips"], 1);
        assert_eq!(
            ask_async(&fixture.path, "status").await?["session"]["state"],
            "up"
        );
        assert_eq!(ask_async(&fixture.path, "reset").await?["round_trips"], 1);
        assert_eq!(ask_async(&fixture.path, "stats").await?["round_trips"], 0);
        assert!(ask_async(&fixture.path, "format").await.is_err());
        Ok(())
    }

    #[tokio::test]
    async fn the_socket_is_for_its_owner_only_and_goes_with_the_server() -> io::Result<()> {
        let fixture = fixture()?;
        let mode = std::fs::metadata(&fixture.path)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(fixture._server);
        assert!(!fixture.path.exists());
        Ok(())
    }

    #[tokio::test]
    async fn a_successors_socket_at_the_same_place_stays() -> io::Result<()> {
        let fixture = fixture()?;
        let _successor = serve(&fixture.path, Arc::clone(&fixture.metrics), answers("up"))?;
        drop(fixture._server);
        assert!(fixture.path.exists());
        Ok(())
    }

    #[tokio::test]
    async fn an_endless_request_is_refused_and_others_are_still_served() -> io::Result<()> {
        let fixture = fixture()?;
        let mut rude = UnixStream::connect(&fixture.path).await?;
        rude.write_all(&vec![b'x'; MAX_REQUEST as usize]).await?;
        let mut reply = String::new();
        rude.read_to_string(&mut reply).await?;
        assert!(reply.contains("at most"), "{reply}");
        assert_eq!(ask_async(&fixture.path, "stats").await?["round_trips"], 0);
        Ok(())
    }

    #[tokio::test]
    async fn syncs_that_wait_leave_room_for_others_and_end_with_who_waits() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("s");
        let waiting: Arc<std::sync::Mutex<Vec<oneshot::Sender<Value>>>> = Arc::default();
        let begun = Arc::clone(&waiting);
        let sync: SyncFn = Arc::new(move || {
            let (answer, outcome) = oneshot::channel();
            begun.lock().expect("a list").push(answer);
            outcome
        });
        let of_syncs = Answers {
            sync: Some(sync),
            ..answers("up")
        };
        let _server = serve(&path, Metrics::new(), of_syncs)?;
        let mut clients = Vec::new();
        for _ in 0..MAX_SYNCS {
            let mut client = UnixStream::connect(&path).await?;
            client.write_all(b"{\"cmd\":\"sync\"}\n").await?;
            clients.push(client);
        }
        while waiting.lock().expect("a list").len() < MAX_SYNCS {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let refused = ask_async(&path, "sync").await;
        assert!(refused.is_err_and(|why| why.to_string().contains("already")));
        assert!(ask_async(&path, "status").await.is_ok());
        drop(clients);
        let ends = || {
            waiting
                .lock()
                .expect("a list")
                .iter()
                .all(|one| one.is_closed())
        };
        while !ends() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    #[tokio::test]
    async fn garbage_is_answered_with_an_error() -> io::Result<()> {
        let fixture = fixture()?;
        let mut rude = UnixStream::connect(&fixture.path).await?;
        rude.write_all(b"\xff\x00{\n[]\n").await?;
        rude.shutdown().await?;
        let mut reply = String::new();
        rude.read_to_string(&mut reply).await?;
        assert_eq!(
            reply.lines().filter(|line| line.contains("error")).count(),
            2,
            "{reply}"
        );
        Ok(())
    }

    /// Answers as `speak` does, byte by byte, to whoever connects.
    fn speaker(
        speak: impl Fn(BlockingStream) + Send + 'static,
    ) -> io::Result<(tempfile::TempDir, PathBuf)> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path)?;
        std::thread::spawn(move || {
            if let Ok((client, _)) = listener.accept() {
                speak(client);
            }
        });
        Ok((dir, path))
    }

    #[test]
    fn an_answer_that_drips_is_over_when_its_time_is() -> io::Result<()> {
        let (_dir, path) = speaker(|mut client| {
            while client.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(20));
            }
        })?;
        let begun = Instant::now();
        let outcome = ask(&path, "status", Duration::from_millis(300));
        assert!(outcome.is_err_and(|why| why.kind() == io::ErrorKind::TimedOut));
        assert!(begun.elapsed() < Duration::from_secs(2));
        Ok(())
    }

    #[test]
    fn an_answer_without_end_is_refused_at_its_bound() -> io::Result<()> {
        let (_dir, path) = speaker(|mut client| while client.write_all(&[b' '; 4096]).is_ok() {})?;
        let outcome = ask(&path, "status", PATIENCE);
        assert!(outcome.is_err_and(|why| why.kind() == io::ErrorKind::InvalidData));
        Ok(())
    }

    #[test]
    fn where_nobody_accepts_nobody_waits_for_ever() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("s");
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
        listener.bind(&socket2::SockAddr::unix(&path)?)?;
        listener.listen(0)?;
        let deadline = || Instant::now() + Duration::from_millis(100);
        let first = connect(&path, deadline())?;
        let second = connect(&path, deadline());
        assert!(second.is_err_and(|why| why.kind() == io::ErrorKind::TimedOut));
        // SAFETY: geteuid cannot fail and has no memory effects.
        assert_eq!(peer_user(&first)?, unsafe { libc::geteuid() });
        Ok(())
    }
}
