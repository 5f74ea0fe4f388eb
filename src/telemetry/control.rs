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
//! | anything else | `{"error":"..."}` |
//!
//! Sizes, times and the number of clients are bounded: a client can neither
//! make the daemon grow nor keep others out for longer than [`CLIENT_TIME`].

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::{Metrics, log};

/// The longest request line.
const MAX_REQUEST: u64 = 4 << 10;
/// The longest answer a client reads.
const MAX_REPLY: u64 = 16 << 20;
/// Clients served at once; the next ones wait in the listen queue.
const MAX_CLIENTS: usize = 8;
/// How long a client may take for one request or for reading one answer.
const CLIENT_TIME: Duration = Duration::from_secs(5);

/// Answers `status`. Must not block: it runs in a tokio worker.
pub type StatusFn = Arc<dyn Fn() -> Value + Send + Sync>;

/// The running server. Dropping it ends the task and removes the socket.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.task.abort();
        // Gone already if the directory was cleaned; either way it is not ours any more.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Binds the socket at `path`, whose directory must exist, and serves it in a
/// task of the current tokio runtime. A stale socket there is replaced.
///
/// # Errors
/// The socket cannot be bound (path too long, directory missing, ...).
pub fn serve(path: &Path, metrics: Arc<Metrics>, status: StatusFn) -> io::Result<ControlServer> {
    match std::fs::remove_file(path) {
        Err(why) if why.kind() != io::ErrorKind::NotFound => return Err(why),
        _ => {}
    }
    // Between bind and chmod the 0700 directory keeps others out.
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(ControlServer {
        path: path.to_owned(),
        task: {
            let listener = Arc::new(listener);
            let tasks = Arc::clone(&metrics.tasks);
            tasks.restarted("control", move || {
                accept(
                    Arc::clone(&listener),
                    Arc::clone(&metrics),
                    Arc::clone(&status),
                )
            })
        },
    })
}

async fn accept(listener: Arc<UnixListener>, metrics: Arc<Metrics>, status: StatusFn) {
    let room = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        metrics.tasks.point("control");
        match listener.accept().await {
            Ok((client, _)) => {
                let (metrics, status) = (Arc::clone(&metrics), Arc::clone(&status));
                let tasks = Arc::clone(&metrics.tasks);
                tasks.harmless("a client of control", async move {
                    if let Err(why) = serve_client(client, &metrics, &status).await {
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

async fn serve_client(client: UnixStream, metrics: &Metrics, status: &StatusFn) -> io::Result<()> {
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
            answer(&line, metrics, status)
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

fn answer(line: &[u8], metrics: &Metrics, status: &StatusFn) -> Value {
    let request: Value = match serde_json::from_slice(line) {
        Ok(request) => request,
        Err(why) => return json!({"error": format!("not a JSON request: {why}")}),
    };
    match request["cmd"].as_str() {
        Some("stats") => metrics.snapshot(),
        Some("buckets") => metrics.snapshot_with_buckets(),
        Some("status") => status(),
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

/// Asks the daemon behind the socket `path` and waits at most `patience` for
/// each step. For the commands, which have no runtime.
///
/// # Errors
/// Nobody listens (`ConnectionRefused`, `NotFound`), no answer in time
/// (`WouldBlock` or `TimedOut`), or an answer that is no JSON or an `error`.
pub fn ask(path: &Path, command: &str, patience: Duration) -> io::Result<Value> {
    request(path, &json!({"cmd": command}), patience)
}

/// The same for a request with more to it than its name.
///
/// # Errors
/// As [`ask`].
pub fn request(path: &Path, request: &Value, patience: Duration) -> io::Result<Value> {
    let mut stream = BlockingStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))?;
    writeln!(stream, "{request}")?;
    let mut line = Vec::new();
    BufReader::new(stream.take(MAX_REPLY)).read_until(b'\n', &mut line)?;
    let answer: Value = serde_json::from_slice(&line)?;
    match answer["error"].as_str() {
        Some(why) => Err(io::Error::other(why.to_owned())),
        None => Ok(answer),
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

    fn fixture() -> io::Result<Fixture> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("s");
        let metrics = Metrics::new();
        let status: StatusFn = Arc::new(|| json!({"session": {"state": "up"}}));
        let server = serve(&path, Arc::clone(&metrics), status)?;
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
}
