//! How to be a client.

use std::time::Duration;

use super::session::establish::Identity;
use crate::rpc::{Connections, Tolerance};
use crate::wal::Wal;

/// How to be a client.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// Who we are to the server.
    pub identity: Identity,
    /// Slots to ask for.
    pub slots: u32,
    /// Largest READ, bytes; the server may allow less.
    pub rsize: u32,
    /// Largest WRITE, bytes; the server may allow less.
    pub wsize: u32,
    /// What is thought of calls that wait.
    pub tolerance: Tolerance,
    /// How many connections the session may be spread over.
    pub connections: Connections,
    /// How long the machine has been suspended in all: [`super::suspended`]. Leases
    /// run on while we sleep, and tokio's clock does not.
    pub suspended: fn() -> Duration,
    /// What the next process must know should this one be killed.
    pub wal: Wal,
}
