//! The Prometheus endpoint, of a mount (`-o metrics=`) or of a machine (`efs-fuse
//! metrics`): HTTP on a TCP address or a UNIX socket, `GET /metrics` and nothing else.
//!
//! Whoever connects is a stranger: requests, times and the number of clients
//! are bounded, and what is served holds no secret. Nobody keeps others out by
//! connecting and sending nothing: where there is no room, the one goes that has
//! sent no request for the longest time. What is HTTP and what is not is hyper's to say.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::Metadata;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::{prometheus, unixsocket};
use crate::background::Tasks;
use crate::quoting;

/// The longest request head: hyper takes no smaller limit.
const MAX_REQUEST: usize = 8 << 10;
/// Clients served at once.
const MAX_CLIENTS: usize = 32;
/// How long a client may take from its connection to the end of its request's head.
const HEAD_TIME: Duration = Duration::from_secs(2);
/// How long it may take for all, the making of the page included.
pub const CLIENT_TIME: Duration = Duration::from_secs(5);
/// How long it is left in peace, however many others come: a request that is sent with the
/// connection is answered in less.
const PEACE: Duration = Duration::from_millis(50);

/// Makes the page: at once, or within less than [`CLIENT_TIME`].
pub type PageFn = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

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
            Self::Unix(path) => quoting::path(path).fmt(out),
        }
    }
}

/// A socket that is bound and not served yet.
#[derive(Debug)]
pub struct Bound {
    listener: Listener,
    address: Address,
    /// What was made in the file system.
    socket: Option<Metadata>,
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
    socket: Option<Metadata>,
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
        if let (Address::Unix(path), Some(socket)) = (&self.address, &self.socket) {
            // Gone already is as good.
            let _ = unixsocket::remove(path, socket);
        }
    }
}

/// Binds the address. Needs a tokio runtime. A daemon that was killed leaves its socket;
/// `is_ours` says whether what is found at a path is that, and only that is replaced.
///
/// # Errors
/// It is taken, not ours to take, or does not exist here.
pub fn bind(address: &Address, is_ours: impl Fn(&Path, &Metadata) -> bool) -> io::Result<Bound> {
    match address {
        Address::Tcp(address) => {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = Address::Tcp(listener.local_addr()?);
            let listener = Listener::Tcp(tokio::net::TcpListener::from_std(listener)?);
            Ok(Bound {
                listener,
                address,
                socket: None,
            })
        }
        Address::Unix(path) => {
            let (listener, socket) = unixsocket::bind(path, is_ours)?;
            listener.set_nonblocking(true)?;
            Ok(Bound {
                listener: Listener::Unix(tokio::net::UnixListener::from_std(listener)?),
                address: address.clone(),
                socket: Some(socket),
            })
        }
    }
}

impl Bound {
    /// The socket in the file system, if it is one.
    pub fn socket(&self) -> Option<(&Path, &Metadata)> {
        match (&self.address, &self.socket) {
            (Address::Unix(path), Some(socket)) => Some((path, socket)),
            _ => None,
        }
    }

    /// Serves the page in a task of the current runtime.
    pub fn serve(self, tasks: &Arc<Tasks>, page: PageFn) -> Endpoint {
        let listener = Arc::new(self.listener);
        let of_clients = Arc::clone(tasks);
        let task = tasks.restarted("metrics", move || {
            accept(
                Arc::clone(&listener),
                Arc::clone(&of_clients),
                Arc::clone(&page),
            )
        });
        Endpoint {
            address: self.address,
            socket: self.socket,
            task,
        }
    }
}

/// A client that is being served. Dropping it ends that.
struct Client {
    begun: Instant,
    /// It has not sent a whole request.
    idle: Arc<AtomicBool>,
    end: oneshot::Sender<()>,
}

/// Those that are being served, the oldest first.
#[derive(Default)]
struct Clients {
    served: VecDeque<Client>,
    /// One has ended.
    ended: Arc<Notify>,
}

impl Clients {
    /// Waits until there is room for one more, and makes it: who has not sent a request
    /// goes first, and nobody who has just come.
    async fn room(&mut self) {
        loop {
            self.served.retain(|client| !client.end.is_closed());
            if self.served.len() < MAX_CLIENTS {
                return;
            }
            let idle = self
                .served
                .iter()
                .position(|client| client.idle.load(Relaxed));
            let oldest = idle.unwrap_or(0);
            let age = self.served[oldest].begun.elapsed();
            if age >= PEACE {
                self.served.remove(oldest);
                return;
            }
            // Either is news.
            let _ = timeout(PEACE - age, self.ended.notified()).await;
        }
    }

    /// Serves one more.
    fn serve<C>(&mut self, client: C, tasks: &Arc<Tasks>, page: &PageFn)
    where
        C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (end, mut told) = oneshot::channel();
        let idle = Arc::new(AtomicBool::new(true));
        self.served.push_back(Client {
            begun: Instant::now(),
            idle: Arc::clone(&idle),
            end,
        });
        let (page, ended) = (Arc::clone(page), Arc::clone(&self.ended));
        tasks.harmless("a client of metrics", async move {
            tokio::select! {
                () = answer(client, &page, &idle) => {}
                _ = &mut told => {}
            }
            drop(told);
            ended.notify_one();
        });
    }
}

async fn accept(listener: Arc<Listener>, tasks: Arc<Tasks>, page: PageFn) {
    let mut clients = Clients::default();
    loop {
        clients.room().await;
        tasks.point("metrics");
        let accepted =
            match &*listener {
                Listener::Tcp(listener) => (listener.accept().await)
                    .map(|(client, _)| clients.serve(client, &tasks, &page)),
                Listener::Unix(listener) => (listener.accept().await)
                    .map(|(client, _)| clients.serve(client, &tasks, &page)),
            };
        if let Err(why) = accepted {
            // Out of descriptors, most likely: try again when some are back.
            tracing::debug!(%why, "cannot accept a metrics client");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Reads one request and answers it.
async fn answer(client: impl AsyncRead + AsyncWrite + Unpin, page: &PageFn, idle: &AtomicBool) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        idle.store(false, Relaxed);
        async move {
            let (method, path) = (request.method(), request.uri().path());
            Ok::<_, Infallible>(respond(method, path, page).await)
        }
    });
    let exchange = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_REQUEST)
        // Each scrape connects anew: who stays would only take somebody's room.
        .keep_alive(false)
        .serve_connection(TokioIo::new(client), service);
    match timeout(CLIENT_TIME, exchange).await {
        Ok(Ok(())) => {}
        // It went away or dawdled: its own business.
        other => tracing::debug!(?other, "a metrics client was not served"),
    }
}

async fn respond(method: &Method, path: &str, page: &PageFn) -> Response<Full<Bytes>> {
    let is_there = path == "/metrics";
    let is_read = [Method::GET, Method::HEAD].contains(method);
    let (status, header, body) = match (is_there, is_read) {
        (true, true) => {
            let header = (CONTENT_TYPE, prometheus::CONTENT_TYPE);
            (StatusCode::OK, header, page().await)
        }
        (true, false) => {
            let header = (ALLOW, "GET, HEAD");
            (StatusCode::METHOD_NOT_ALLOWED, header, HINT.to_owned())
        }
        (false, _) => {
            let header = (CONTENT_TYPE, "text/plain");
            (StatusCode::NOT_FOUND, header, HINT.to_owned())
        }
    };
    response(status, header, body)
}

/// What is there to be asked for.
const HINT: &str = "GET /metrics\n";

fn response(
    status: StatusCode,
    (name, value): (HeaderName, &'static str),
    body: String,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let value = http::HeaderValue::from_static(value);
    response.headers_mut().insert(name, value);
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpStream, UnixStream};

    use super::*;

    fn serve(address: &Address) -> io::Result<Endpoint> {
        let page: PageFn = Arc::new(|| Box::pin(async { "efs_fuse_up 1\n".to_owned() }));
        Ok(bind(address, |_, _| true)?.serve(&Tasks::telling(Arc::default()), page))
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
                "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n",
                "\r\n\r\nefs_fuse_up 1\n",
            ),
            ("HEAD /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 200"),
            ("GET / HTTP/1.1\r\n\r\n", "HTTP/1.1 404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405"),
            ("GET /metrics\r\n\r\n", "HTTP/1.1 400"),
        ] {
            let reply = exchange(TcpStream::connect(address).await?, request.as_bytes()).await?;
            assert!(reply.contains(expected), "{reply}");
            assert_eq!(
                reply.starts_with("HTTP/1.1 405"),
                reply.contains("GET, HEAD")
            );
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_socket_is_served_and_goes_with_the_endpoint() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("m");
        let address = Address::Unix(path.clone());
        let endpoint = serve(&address)?;
        assert!(serve(&address).is_err_and(|why| why.kind() == io::ErrorKind::AddrInUse));
        let reply = exchange(
            UnixStream::connect(&path).await?,
            b"GET /metrics HTTP/1.0\r\n\r\n",
        )
        .await?;
        assert!(reply.starts_with("HTTP/1.0 200"), "{reply}");
        drop(endpoint);
        assert!(!path.exists());
        // Nor is another that was put there removed with it.
        let endpoint = serve(&address)?;
        std::fs::remove_file(&path)?;
        std::fs::write(&path, "not ours")?;
        drop(endpoint);
        assert_eq!(std::fs::read(&path)?, b"not ours");
        Ok(())
    }

    #[tokio::test]
    async fn who_sends_half_a_request_keeps_nobody_waiting() -> io::Result<()> {
        let endpoint = serve(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))?;
        let Address::Tcp(address) = *endpoint.address() else {
            unreachable!("bound to TCP");
        };
        let mut half = Vec::new();
        for _ in 0..3 * MAX_CLIENTS {
            let mut client = TcpStream::connect(address).await?;
            client.write_all(b"GET /metrics HTTP/1.1\r\nHost:").await?;
            half.push(client);
        }
        let begun = Instant::now();
        for _ in 0..5 {
            let whole = TcpStream::connect(address).await?;
            let reply = exchange(whole, b"GET /metrics HTTP/1.1\r\n\r\n").await?;
            assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
        }
        assert!(begun.elapsed() < HEAD_TIME, "{:?}", begun.elapsed());
        // Their time is up without anybody else, too.
        let mut last = half.pop().ok_or(io::ErrorKind::NotFound)?;
        let mut reply = Vec::new();
        let _ = timeout(2 * HEAD_TIME, last.read_to_end(&mut reply)).await?;
        assert!(reply.is_empty());
        Ok(())
    }

    #[tokio::test]
    async fn an_endless_request_is_refused() -> io::Result<()> {
        let endpoint = serve(&Address::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))))?;
        let Address::Tcp(address) = *endpoint.address() else {
            unreachable!("bound to TCP");
        };
        let endless = vec![b'x'; MAX_REQUEST];
        let reply = exchange(TcpStream::connect(address).await?, &endless).await?;
        assert!(reply.starts_with("HTTP/1.1 431"), "{reply}");
        Ok(())
    }
}
