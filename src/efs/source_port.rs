//! The port that a connection comes from.
//!
//! Linux exports with `secure` unless it is told otherwise (exports(5)): a client whose port
//! is not below 1024, which only root could have bound, is denied access. So a daemon of
//! root comes from such a port, as the kernel's client does (`resvport` of nfs(5)).
//!
//! A port is taken for one connection and given back with it; a connection that replaces
//! another one takes any that is free. Ports of connections that have ended lately
//! (TIME_WAIT) are not free. If there is none that is, one of a connection to another server
//! is shared; if none can be had at all, the connection comes from a high port: most servers
//! do not mind, and who does says so.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::SockRef;
use tokio::net::{TcpSocket, TcpStream};

use crate::privilege;

/// Those of Linux' own client (`sunrpc.min_resvport`, `sunrpc.max_resvport`): below are
/// most of the ports on which services wait that have not begun yet.
const LOWEST: u16 = 665;
const HIGHEST: u16 = 1023;
const PORTS: u16 = HIGHEST - LOWEST + 1;

/// Which ports a connection may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourcePort {
    /// Any.
    Any,
    /// One that only root may use, if there is one.
    Reserved,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) stream: TcpStream,
    /// Why it does not come from a port that only root may use, if it was to.
    pub(super) not_reserved: Option<NotReserved>,
}

/// Why there is no port that only root may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotReserved {
    /// All are in use.
    Taken,
    /// The process may not bind one, or there is none for the address.
    NotPermitted,
}

impl NotReserved {
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Taken => "all of them are in use",
            Self::NotPermitted => "this process may not use them",
        }
    }
}

/// Whether a port is one that only root may use.
pub fn is_reserved(port: u16) -> bool {
    port <= HIGHEST
}

/// Connects to `address`.
///
/// # Errors
/// As connect(2).
pub(super) async fn connect(address: SocketAddr, from: SourcePort) -> io::Result<Connected> {
    if from == SourcePort::Any {
        return from_any(address, None).await;
    }
    let first = random()?;
    let alone = socket(address)?;
    match bind_any(&alone, address, first) {
        Ok(()) => match alone.connect(address).await {
            Err(why) if why.kind() == io::ErrorKind::AddrNotAvailable => {}
            connected => return reserved(connected?),
        },
        Err(NotReserved::Taken) => {}
        Err(why) => return from_any(address, Some(why)).await,
    }
    // None is free. One that leads to another server, or led there lately, will do.
    for step in 0..PORTS {
        let shared = socket(address)?;
        shared.set_reuseaddr(true)?;
        let port = nth(first, step);
        if privilege::binding(|| shared.bind(here(address, port))).is_err() {
            continue;
        }
        match shared.connect(address).await {
            Err(why) if why.kind() == io::ErrorKind::AddrNotAvailable => {}
            connected => return reserved(connected?),
        }
    }
    from_any(address, Some(NotReserved::Taken)).await
}

fn reserved(stream: TcpStream) -> io::Result<Connected> {
    Ok(Connected {
        stream,
        not_reserved: None,
    })
}

async fn from_any(address: SocketAddr, why: Option<NotReserved>) -> io::Result<Connected> {
    let stream = socket(address)?.connect(address).await?;
    Ok(Connected {
        stream,
        not_reserved: why,
    })
}

fn socket(address: SocketAddr) -> io::Result<TcpSocket> {
    match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

fn random() -> io::Result<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u16::from_ne_bytes(bytes) % PORTS)
}

fn nth(first: u16, step: u16) -> u16 {
    LOWEST + (first + step) % PORTS
}

/// Every address of this machine, in the family of `address`.
fn here(address: SocketAddr, port: u16) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// Binds `socket` to the first port that nobody has, from the `first` one on.
fn bind_any(socket: &TcpSocket, address: SocketAddr, first: u16) -> Result<(), NotReserved> {
    privilege::binding(|| {
        for step in 0..PORTS {
            match socket.bind(here(address, nth(first, step))) {
                Ok(()) => {
                    // A service of this host that begins later may listen there, and a
                    // connection to another server may come from there.
                    let _ = SockRef::from(socket).set_reuse_address(true);
                    return Ok(());
                }
                Err(why) if why.kind() == io::ErrorKind::AddrInUse => {}
                Err(_) => return Err(NotReserved::NotPermitted),
            }
        }
        Err(NotReserved::Taken)
    })
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn is_root() -> bool {
        // SAFETY: geteuid has no preconditions.
        unsafe { libc::geteuid() == 0 }
    }

    #[tokio::test]
    async fn a_connection_comes_from_a_reserved_port_if_it_is_to_and_may() -> io::Result<()> {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await?;
            let to = listener.local_addr()?;
            let any = connect(to, SourcePort::Any).await?;
            assert!(!is_reserved(any.stream.local_addr()?.port()));
            assert_eq!(any.not_reserved, None);
            // Two at a time, each from a port of its own.
            let one = connect(to, SourcePort::Reserved).await?;
            let other = connect(to, SourcePort::Reserved).await?;
            let ports = [&one, &other].map(|from| from.stream.local_addr().map(|at| at.port()));
            let [one, other] = [ports[0].as_ref().ok(), ports[1].as_ref().ok()];
            assert_ne!(one, other);
            let reserved = one.is_some_and(|port| (LOWEST..=HIGHEST).contains(port));
            assert_eq!(reserved, is_root(), "{one:?}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_port_that_is_in_use_or_was_lately_is_passed_over() -> io::Result<()> {
        if !is_root() {
            return Ok(());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let to = listener.local_addr()?;
        let taken = socket(to)?;
        bind_any(&taken, to, 100).map_err(|why| io::Error::other(why.words()))?;
        let first = taken.local_addr()?.port();
        let next = socket(to)?;
        bind_any(&next, to, first - LOWEST).map_err(|why| io::Error::other(why.words()))?;
        assert_ne!(next.local_addr()?.port(), first);
        // Closed by us first, it is in TIME_WAIT.
        let stream = taken.connect(to).await?;
        let (accepted, _) = listener.accept().await?;
        drop(stream);
        drop(accepted);
        let again = socket(to)?;
        bind_any(&again, to, first - LOWEST).map_err(|why| io::Error::other(why.words()))?;
        assert_ne!(again.local_addr()?.port(), first);
        Ok(())
    }

    /// In a network namespace of its own, all of whose ports are in use.
    #[test]
    fn where_no_port_is_free_one_is_shared_with_another_server_or_a_high_one_is_used() {
        if !is_root() {
            return;
        }
        let test = std::thread::spawn(|| {
            // SAFETY: it moves this thread only, and threads that it starts.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
            loopback_up();
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.expect("runtime").block_on(async {
                let one = TcpListener::bind("127.0.0.1:0").await.expect("listen");
                let other = TcpListener::bind("127.0.0.1:0").await.expect("listen");
                let (one, other) = (one.local_addr(), other.local_addr());
                let (one, other) = (one.expect("address"), other.expect("address"));
                let mut held = Vec::new();
                // The backlog takes them.
                for port in LOWEST..=HIGHEST {
                    let socket = socket(one).expect("socket");
                    assert_eq!(bind_any(&socket, one, port - LOWEST), Ok(()));
                    held.push(socket);
                }
                let shared = connect(other, SourcePort::Reserved).await.expect("shared");
                assert_eq!(shared.not_reserved, None);
                let port = shared.stream.local_addr().expect("address").port();
                assert!(is_reserved(port), "{port}");
                for socket in &held {
                    SockRef::from(socket)
                        .set_reuse_address(false)
                        .expect("option");
                }
                let high = connect(other, SourcePort::Reserved).await.expect("high");
                assert_eq!(high.not_reserved, Some(NotReserved::Taken));
            });
        });
        assert!(test.join().is_ok());
    }

    /// Of this thread's network namespace.
    fn loopback_up() {
        // SAFETY: an ifreq is plain data; the name and the flags are those of the call.
        unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
                *to = *from as libc::c_char;
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
            let control = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            assert_eq!(
                libc::ioctl(control, libc::SIOCSIFFLAGS, &raw mut request),
                0
            );
            libc::close(control);
        }
    }

    #[tokio::test]
    async fn a_service_may_listen_on_the_port_of_a_connection() -> io::Result<()> {
        if !is_root() {
            return Ok(());
        }
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let connected = connect(listener.local_addr()?, SourcePort::Reserved).await?;
        let port = connected.stream.local_addr()?.port();
        // As std and tokio do, and most services.
        assert!(
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
                .await
                .is_ok()
        );
        Ok(())
    }
}
