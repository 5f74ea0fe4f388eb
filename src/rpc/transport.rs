//! How a connection to the server is made: the seam between ONC RPC and what
//! carries it (TCP, TLS, or an in-memory pipe in tests).

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

use super::scaling::Pause;

/// A byte stream to the server.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An owned [`Stream`] of any kind.
pub type BoxStream = Box<dyn Stream>;

/// The future that [`Connector::connect`] returns.
pub type Connecting<'a> = Pin<Box<dyn Future<Output = io::Result<BoxStream>> + Send + 'a>>;

/// The future that [`Connector::further`] returns.
pub type Joining<'a> = Pin<Box<dyn Future<Output = Result<BoxStream, NoFurther>> + Send + 'a>>;

/// Why there is no further connection, and when to ask again.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct NoFurther {
    /// The reason.
    pub why: String,
    /// The next attempt.
    pub pause: Pause,
}

impl NoFurther {
    /// Not now.
    pub fn now(why: impl fmt::Display) -> Self {
        Self {
            why: why.to_string(),
            pause: Pause::Growing,
        }
    }
}

/// Makes connections to one server. Called once for the first connection and
/// again after every loss, so that a new DNS answer is honoured and every
/// attempt leaves from a fresh source port.
pub trait Connector: Send + Sync + 'static {
    /// Opens one new connection, ready for the first RPC record.
    fn connect(&self) -> Connecting<'_>;

    /// Opens one more beside those that live, to where the last
    /// [`Connector::connect`] led, as far as that can be known.
    fn further(&self) -> Joining<'_> {
        Box::pin(async { self.connect().await.map_err(NoFurther::now) })
    }

    /// This many connections make sense at most, by what the server has said.
    fn allowed(&self) -> usize {
        usize::MAX
    }

    /// The server has said that further connections reach the same session: one that
    /// does not know how to bind them may have them unbound.
    fn vouches(&self) -> bool {
        false
    }

    /// The server as a person would name it, for messages and logs.
    fn peer(&self) -> String;
}
