//! How a connection to the server is made: the seam between ONC RPC and what
//! carries it (TCP, TLS, or an in-memory pipe in tests).

use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

/// A byte stream to the server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An owned [`Stream`] of any kind.
pub type BoxStream = Box<dyn Stream>;

/// The future that [`Connector::connect`] returns.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send + 'a>>;

/// Makes connections to one server. Called once for the first connection and
/// again after every loss, so that a new DNS answer is honoured and every
/// attempt leaves from a fresh source port.
pub trait Connector: Send + Sync + 'static {
    /// Opens one new connection, ready for the first RPC record.
    fn connect(&self) -> Connecting<'_>;

    /// The server as a person would name it, for messages and logs.
    fn peer(&self) -> String;
}
