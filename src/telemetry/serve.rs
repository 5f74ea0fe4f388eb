//! The Prometheus endpoint (`-o metrics=`): HTTP on a TCP address or a UNIX
//! socket, `GET /metrics` and nothing else.
//!
//! Whoever connects is a stranger: requests, times and the number of clients
//! are bounded, and what is served holds no secret.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::control::StatusFn;
use super::{Metrics, prometheus};

/// The longest request head.
const MAX_REQUEST: usize = 8 << 10;
/// Clients served at once.
const MAX_CLIENTS: usize = 4;
/// How long a client may take.
const CLIENT_TIME: Duration = Duration::from_secs(5);

/// Where the endpoint listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP port of this machine.
    Tcp(SocketAddr),
    /// A UNIX socket, mode 0660.
    Unix(PathBuf),
}

impl std::str::FromStr for Address {
    type Err = String;

    /// `PORT` (of the loopback address), `ADDRESS:PORT` or `/path`.
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Unix(text.into()));
        }
        let port = text.strip_prefix(':').unwrap_or(text);
        if let Ok(port) = port.parse::<u16>() {
            return Ok(Self::Tcp(SocketAddr::from(([127, 0, 0, 1], port))));
        }
        text.parse()
            .map(Self::Tcp)
            .map_err(|_| "expected PORT, ADDRESS:PORT or the path of a socket".to_owned())
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(address) => write!(out, "http://{address}/metrics"),
            Self::Unix(path) => write!(out, "{}", path.display()),
        }
    }
}

/// A socket that is bound and not served yet.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    address: Address,
}

#[derive(Debug)]
enum Listener {
    Tcp(tokio::net::TcpListener),
    Unix(tokio::net::UnixListener),
}

/// The running endpoint. Dropping it ends it and removes its socket.
#[derive(Debug)]
pub struct Endpoint {
    address: Address,
    task: JoinHandle<()>,
}

impl Endpoint {
    /// Where it listens; the port is the real one where 0 was asked for.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.task.abort();
        if let Address::Unix(path) = &self.address {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Binds the address. Needs a tokio runtime.
///
/// # Errors
/// It is taken, not ours to take, or does not exist here.
pub fn bind(address: &Address) -> io::Result<Bound> {
    match address {
        Address::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = Address::Tcp(listener.local_addr()?);
            let listener = Listener::Tcp(tokio::net::TcpListener::from_std(listener)?);
            Ok(Bound { listener, address })
        }
        Address::Unix(path) => {
            // A daemon that was killed leaves its socket; anything else is not ours.
            if std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    return Err(io::ErrorKind::AddrInUse.into());
                }
                std::fs::remove_file(path)?;
            }
            let listener = Listener::Unix(tokio::net::UnixListener::bind(path)?);
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
            let address = address.clone();
            Ok(Bound { listener, address })
        }
    }
}

impl Bound {
    /// Serves in a task of the current runtime.
    pub fn serve(self, metrics: Arc<Metrics>, status: StatusFn) -> Endpoint {
        let listener = Arc::new(self.listener);
        let tasks = Arc::clone(&metrics.tasks);
        let task = tasks.restarted("metrics", move || {
            accept(
                Arc::clone(&listener),
                Arc::clone(&metrics),
                Arc::clone(&status),
            )
        });
        Endpoint {
            address: self.address,
            task,
        }
    }
}

async fn accept(listener: Arc<Listener>, metrics: Arc<Metrics>, status: StatusFn) {
    let room = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let (metrics, status) = (Arc::clone(&metrics), Arc::clone(&status));
        let tasks = Arc::clone(&metrics.tasks);
        tasks.point("metrics");
        let accepted = match &*listener {
            Listener::Tcp(listener) => listener.accept().await.map(|(client, _)| {
                tasks.harmless("a client of metrics", async move {
                    answer(client, &metrics, &status).await;
                    drop(permit);
                });
            }),
            Listener::Unix(listener) => listener.accept().await.map(|(client, _)| {
                tasks.harmless("a client of metrics", async move {
                    answer(client, &metrics, &status).await;
                    drop(permit);
                });
            }),
        };
        if let Err(why) = accepted {
            // Out of descriptors, most likely: try again when some are back.
            tracing::debug!(%why, "cannot accept a metrics client");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn answer(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    metrics: &Metrics,
    status: &StatusFn,
) {
    let exchange = async {
        let head = read_head(&mut client).await?;
        let page;
        let (line, kind, body) = match requested(&head) {
            Asked::Metrics => {
                page = prometheus::render(metrics, &status());
                ("200 OK", prometheus::CONTENT_TYPE, page.as_str())
            }
            Asked::Nothing => ("404 Not Found", "text/plain", "GET /metrics\n"),
            Asked::Garbage => ("400 Bad Request", "text/plain", "GET /metrics\n"),
        };
        let head = format!(
            "HTTP/1.1 {line}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        client.write_all(head.as_bytes()).await?;
        client.write_all(body.as_bytes()).await?;
        client.shutdown().await
    };
    match timeout(CLIENT_TIME, exchange).await {
        Ok(Ok(())) => {}
        // It went away or dawdled: its own business.
        other => tracing::debug!(?other, "a metrics client was not served"),
    }
}

/// Everything up to the empty line, or up to the limit.
async fn read_head(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::with_capacity(512);
    while head.len() < MAX_REQUEST && !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if client.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    Ok(head)
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Metrics,
    Nothing,
    Garbage,
}

fn requested(head: &[u8]) -> Asked {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    match (words.next(), words.next(), words.next()) {
        (Some(b"GET"), Some(path), Some(version)) if version.starts_with(b"HTTP/1.") => {
            let path = path.split(|&byte| byte == b'?').next();
            if path == Some(b"/metrics") {
                Asked::Metrics
            } else {
                Asked::Nothing
            }
        }
        _ => Asked::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    fn serve(address: &Address) -> io::Result<Endpoint> {
        let status: StatusFn = Arc::new(|| json!({"session": {"state": "up"}}));
        Ok(bind(address)?.serve(Metrics::new(), status))
    }

    async fn exchange(
        mut client: impl AsyncRead + AsyncWrite + Unpin,
        request: &[u8],
    ) -> io::Result<String> {
        client.write_all(request).await?;
        let mut reply = String::new();
        client.read_to_string(&mut reply).await?;
        Ok(reply)
    }

    #[test]
    fn addresses_are_ports_sockets_and_paths() {
        for (text, shown) in [
            ("9400", "http://127.0.0.1:9400/metrics"),
            (":9400", "http://127.0.0.1:9400/metrics"),
            ("0.0.0.0:1", "http://0.0.0.0:1/metrics"),
            ("[::1]:9400", "http://[::1]:9400/metrics"),
            ("/run/m", "/run/m"),
        ] {
            assert_eq!(
                text.parse().map(|a: Address| a.to_string()),
                Ok(shown.to_owned())
            );
        }
        for text in ["", "x", "host:1", "1.2.3.4", "70000", "run/m"] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn metrics_are_served_over_tcp_and_nothing_else_is() -> io::Result<()> {
        let endpoint = serve(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))?;
        let Address::Tcp(address) = *endpoint.address() else {
            unreachable!("bound to TCP");
        };
        for (request, expected) in [
            (
                "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                "efs_fuse_session_up 1",
            ),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 400"),
        ] {
            let reply = exchange(TcpStream::connect(address).await?, request.as_bytes()).await?;
            assert!(reply.contains(expected), "{reply}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_socket_of_a_dead_daemon_is_replaced_and_a_living_one_is_not() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("m");
        let address = Address::Unix(path.clone());
        drop(std::os::unix::net::UnixListener::bind(&path)?);
        let endpoint = serve(&address)?;
        assert_eq!(
            std::fs::metadata(&path)?.permissions().mode() & 0o777,
            0o660
        );
        assert!(serve(&address).is_err_and(|why| why.kind() == io::ErrorKind::AddrInUse));
        let reply = exchange(
            UnixStream::connect(&path).await?,
            b"GET /metrics HTTP/1.0\r\n\r\n",
        )
        .await?;
        assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        drop(endpoint);
        assert!(!path.exists());
        std::fs::write(&path, "not ours")?;
        assert!(serve(&address).is_err());
        assert_eq!(std::fs::read(&path)?, b"not ours");
        Ok(())
    }

    #[tokio::test]
    async fn an_endless_request_is_refused() -> io::Result<()> {
        let endpoint = serve(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))?;
        let Address::Tcp(address) = *endpoint.address() else {
            unreachable!("bound to TCP");
        };
        let reply = exchange(TcpStream::connect(address).await?, &vec![b'x'; MAX_REQUEST]).await?;
        assert!(reply.starts_with("HTTP/1.1 400"), "{reply}");
        Ok(())
    }
}
