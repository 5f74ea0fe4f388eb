//! TCP to one of the addresses of a server.
//!
//! The addresses are tried in the resolver's order. An address that does not answer
//! quickly does not hold up the next one (RFC 8305): a dual-stack name whose IPv6 is not
//! routed would otherwise cost ten seconds at every reconnect.
//!
//! [`TcpConnector`] is plain TCP to a name or an address.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::resolve::resolve;
use super::source_port::{self, Connected, SourcePort};
use crate::rpc::transport::{BoxStream, Connecting, Connector};

/// How long all addresses of a server may take together.
const CONNECT_TIME: Duration = Duration::from_secs(10);
/// How long an address has the line to itself before the next one is tried too.
const HEAD_START: Duration = Duration::from_millis(300);
/// When all have been tried and none has said anything, the first is tried once more, and
/// so on. A host that was away answers the next SYN and not those before it, and the
/// kernel sends the SYNs of one attempt 1, 3 and 7 s after the first: the grace period of
/// a server that is back may be over by then.
const AGAIN: Duration = Duration::from_millis(500);
/// Attempts at the same time.
const AT_ONCE: usize = 32;
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

/// The server as a person would name it.
pub(super) fn peer_of(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

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
        let stream = race(addresses, SourcePort::Any).await?.stream;
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
        peer_of(&self.host, self.port)
    }
}

/// The first of `addresses` that accepts. Attempts begin in order, each when
/// the one before has failed or had its head start, and again from the first while none
/// has answered; the losers are dropped. An address that has failed is not tried again.
pub(super) async fn race(addresses: Vec<SocketAddr>, from: SourcePort) -> io::Result<Connected> {
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the server has no address");
    let mut silent = addresses;
    let (mut next, mut fresh) = (0, silent.len());
    let end = Instant::now() + CONNECT_TIME;
    loop {
        if next < silent.len() && attempts.len() < AT_ONCE && Instant::now() < end {
            attempts.spawn(attempt(silent[next], from, end));
            next += 1;
        }
        fresh = fresh.saturating_sub(1);
        let pause = if fresh > 0 { HEAD_START } else { AGAIN };
        let finished = match timeout(pause, attempts.join_next()).await {
            Ok(finished) => finished,
            Err(_) => {
                if next >= silent.len() {
                    next = 0;
                }
                continue;
            }
        };
        match finished {
            Some(Ok((_, Ok(connected)))) => return Ok(connected),
            Some(Ok((address, Err(why)))) => {
                last = why;
                if let Some(at) = silent.iter().position(|one| *one == address) {
                    silent.remove(at);
                    next -= usize::from(at < next);
                }
            }
            Some(Err(why)) => last = io::Error::other(why),
            None => return Err(last),
        }
    }
}

async fn attempt(
    address: SocketAddr,
    from: SourcePort,
    end: Instant,
) -> (SocketAddr, io::Result<Connected>) {
    let failed = |kind, why: &str| io::Error::new(kind, format!("{address}: {why}"));
    let connected = match timeout_at(end, source_port::connect(address, from)).await {
        Ok(Ok(connected)) => Ok(connected),
        Ok(Err(why)) => Err(failed(why.kind(), &describe(&why))),
        Err(_) => {
            let why = format!("no answer within {} s", CONNECT_TIME.as_secs());
            Err(failed(io::ErrorKind::TimedOut, &why))
        }
    };
    (address, connected)
}

/// The error's words without the number that std appends.
fn describe(why: &io::Error) -> String {
    let text = why.to_string();
    let words = text.split(" (os error").next().unwrap_or(&text);
    words.to_lowercase()
}

/// Sets the options of a connection.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
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
        assert_eq!(
            race(vec![closed, open], SourcePort::Any)
                .await?
                .stream
                .peer_addr()?,
            open
        );
        assert_eq!(
            race(vec![], SourcePort::Any)
                .await
                .map_err(|why| why.kind())
                .err(),
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
            race(vec![silent, listener.local_addr()?], SourcePort::Any)
                .await?
                .stream
                .peer_addr()?,
            listener.local_addr()?
        );
        assert!(begun.elapsed() < Duration::from_secs(5));
        Ok(())
    }

    #[tokio::test]
    async fn a_host_that_is_back_is_found_by_the_next_attempt_not_by_the_kernels() -> io::Result<()>
    {
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        let any: SocketAddr = ([127, 0, 0, 1], 0).into();
        full.bind(&any.into())?;
        full.listen(0)?;
        let silent = full.local_addr()?.as_socket().unwrap_or(any);
        let filler = TcpStream::connect(silent).await?;
        let connecting = tokio::spawn(race(vec![silent], SourcePort::Any));
        // The kernel repeats the first SYN 1 s and 3 s after it.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert!(!connecting.is_finished());
        let back = std::time::Instant::now();
        let _accepted = full.accept()?;
        drop(filler);
        let connected = connecting.await.map_err(io::Error::other)??;
        assert_eq!(connected.stream.peer_addr()?, silent);
        assert!(back.elapsed() < AGAIN * 2, "{:?}", back.elapsed());
        Ok(())
    }

    #[test]
    fn the_peer_is_shown_with_brackets_where_needed() {
        assert_eq!(TcpConnector::new("::1", 2049).peer(), "[::1]:2049");
        assert_eq!(TcpConnector::new("h", 1).peer(), "h:1");
    }
}
