//! A TCP proxy that adds half a round-trip time to each direction.
//!
//! Per direction one thread stamps what comes in with the time it is due and
//! another sends it then, with a bounded queue between: latency is added and
//! bandwidth is not taken away, up to [`QUEUE`] chunks under way.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::host::{Context, Result};

const CHUNK: usize = 256 << 10;
/// 64 MiB at the most.
const QUEUE: usize = 256;

/// A running proxy. Its connections end when either side closes them.
#[derive(Debug)]
pub(crate) struct Proxy {
    listener: TcpListener,
    address: SocketAddr,
}

impl Proxy {
    pub(crate) fn new(server: SocketAddr, round_trip: Duration) -> Result<Self> {
        let port = crate::server::free_port()?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("the proxy")?;
        let address = listener.local_addr().context("the proxy")?;
        let accepting = listener.try_clone().context("the proxy")?;
        thread::spawn(move || {
            while let Ok((client, _)) = accepting.accept() {
                // A client whose server is not there sees its connection close.
                let _ = connect(client, server, round_trip / 2);
            }
        });
        Ok(Self { listener, address })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        use std::os::fd::AsRawFd;
        // accept(2) in the other thread returns with an error.
        // SAFETY: the descriptor is open, `listener` owns it.
        unsafe { libc::shutdown(self.listener.as_raw_fd(), libc::SHUT_RD) };
    }
}

fn connect(client: TcpStream, server: SocketAddr, delay: Duration) -> std::io::Result<()> {
    let server = TcpStream::connect(server)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    pump(client.try_clone()?, server.try_clone()?, delay);
    pump(server, client, delay);
    Ok(())
}

fn pump(from: TcpStream, to: TcpStream, delay: Duration) {
    let (queue, due) = sync_channel(QUEUE);
    thread::spawn(move || receive(from, delay, &queue));
    thread::spawn(move || send(to, &due));
}

fn receive(mut from: TcpStream, delay: Duration, queue: &SyncSender<(Instant, Vec<u8>)>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(len @ 1..) = from.read(&mut chunk) {
        if queue
            .send((Instant::now() + delay, chunk[..len].to_vec()))
            .is_err()
        {
            return;
        }
    }
}

fn send(mut to: TcpStream, queue: &Receiver<(Instant, Vec<u8>)>) {
    for (due, bytes) in queue {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
