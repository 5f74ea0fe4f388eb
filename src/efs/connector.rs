//! TCP connections to one server.
//!
//! Every connection resolves the name anew and tries its addresses in the
//! resolver's order. An address that does not answer quickly does not hold up
//! the next one (RFC 8305): a dual-stack name whose IPv6 is not routed would
//! otherwise cost ten seconds at every reconnect.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::resolve::resolve;
use crate::rpc::transport::{BoxStream, Connecting, Connector};

/// How long one address may take.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long an address has the line to itself before the next one is tried too.
const HEAD_START: Duration = Duration::from_millis(300);
/// A peer that vanished without a word is noticed on an idle connection after
/// `IDLE + PROBES * INTERVAL` = 25 s, well within the shortest usual lease (90 s).
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// The same on a busy one: data unacknowledged for this long end the connection.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

const _: () = assert!(
    KEEPALIVE_IDLE.as_secs() + KEEPALIVE_PROBES as u64 * KEEPALIVE_INTERVAL.as_secs()
        <= USER_TIMEOUT.as_secs(),
    "TCP_USER_TIMEOUT overrides the keepalive probes if it is shorter"
);

/// Connects to one host and port over plain TCP.
#[derive(Debug, Clone)]
pub struct TcpConnector {
    host: String,
    port: u16,
}

impl TcpConnector {
    /// `host` is a name or an address, IPv6 without brackets. Nothing is
    /// resolved or connected yet.
    pub fn new(host: impl Into<String>, port: u16) -> Self {
        Self {
            host: host.into(),
            port,
        }
    }

    /// Opens one connection, with its options set. The error keeps the kind of
    /// the last attempt and names the address.
    ///
    /// # Errors
    /// The name does not resolve, or no address accepts.
    pub async fn open(&self) -> io::Result<TcpStream> {
        let addresses = resolve(&self.host, self.port).await?;
        let stream = race(addresses).await?;
        tune(&stream)?;
        Ok(stream)
    }
}

impl Connector for TcpConnector {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async move {
            self.open()
                .await
                .map(|stream| Box::new(stream) as BoxStream)
        })
    }

    fn peer(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The first of `addresses` that accepts. Attempts begin in order, each when
/// the one before has failed or had its head start; the losers are dropped.
async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let mut waiting = addresses.into_iter();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the server has no address");
    loop {
        let more = waiting
            .next()
            .map(|address| attempts.spawn(attempt(address)))
            .is_some();
        let finished = if more {
            match timeout(HEAD_START, attempts.join_next()).await {
                Ok(finished) => finished,
                Err(_) => continue,
            }
        } else {
            attempts.join_next().await
        };
        match finished {
            Some(Ok(Ok(stream))) => return Ok(stream),
            Some(Ok(Err(why))) => last = why,
            Some(Err(why)) => last = io::Error::other(why),
            None => return Err(last),
        }
    }
}

async fn attempt(address: SocketAddr) -> io::Result<TcpStream> {
    let failed = |kind, why: &str| io::Error::new(kind, format!("{address}: {why}"));
    match timeout(CONNECT_TIME, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(why)) => Err(failed(why.kind(), &describe(&why))),
        Err(_) => {
            let why = format!("no answer within {} s", CONNECT_TIME.as_secs());
            Err(failed(io::ErrorKind::TimedOut, &why))
        }
    }
}

/// The error's words without the number that std appends.
fn describe(why: &io::Error) -> String {
    let text = why.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    words.to_lowercase()
}

fn tune(stream: &TcpStream) -> io::Result<()> {
    // Compounds are written whole: waiting for more to send only adds delay.
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )?;
    // Buffer sizes stay with the kernel: setting them switches its autotuning off.
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_has_its_options_set() -> io::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let connector = TcpConnector::new("127.0.0.1", listener.local_addr()?.port());
        let stream = connector.open().await?;
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay()?);
        assert!(socket.keepalive()?);
        assert_eq!(socket.tcp_user_timeout()?, Some(USER_TIMEOUT));
        Ok(())
    }

    #[tokio::test]
    async fn a_refused_connection_names_the_address_and_keeps_its_kind() -> io::Result<()> {
        let address = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let connector = TcpConnector::new("127.0.0.1", address.port());
        let Err(why) = connector.connect().await else {
            panic!("a closed port accepted");
        };
        assert_eq!(why.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(why.to_string(), format!("{address}: connection refused"));
        Ok(())
    }

    #[tokio::test]
    async fn the_next_address_is_tried_when_one_refuses() -> io::Result<()> {
        let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let open = listener.local_addr()?;
        assert_eq!(race(vec![closed, open]).await?.peer_addr()?, open);
        assert_eq!(
            race(vec![]).await.map_err(|why| why.kind()).err(),
            Some(io::ErrorKind::NotFound)
        );
        Ok(())
    }

    #[tokio::test]
    async fn a_silent_address_does_not_hold_up_the_next_one() -> io::Result<()> {
        // A listener whose backlog is full drops every further SYN.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        full.bind(&any.into())?;
        full.listen(0)?;
        let silent = full.local_addr()?.as_socket().unwrap_or(any);
        let _filler = TcpStream::connect(silent).await?;

        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let begun = std::time::Instant::now();
        assert_eq!(
            race(vec![silent, listener.local_addr()?])
                .await?
                .peer_addr()?,
            listener.local_addr()?
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
        Ok(())
    }

    #[test]
    fn the_peer_is_shown_with_brackets_where_needed() {
        assert_eq!(TcpConnector::new("::1", 2049).peer(), "[::1]:2049");
        assert_eq!(TcpConnector::new("h", 1).peer(), "h:1");
    }
}
