//! What can be seen of a running mount: counters, latencies, logs, the socket
//! through which the commands ask for them, and the Prometheus endpoint.
//!
//! Any layer may count; this layer calls nobody but `background`, whose tasks it lists. Counting is relaxed atomics
//! only, so it is safe in a FUSE reader thread as well as in a tokio task. The
//! numbers live in one [`Metrics`] per mount, shared by `Arc`; nothing here is
//! global except the log subscriber, which the process has only one of, and what is
//! counted to be one line there ([`repeats`]).

pub mod control;
pub mod counters;
mod exposition;
mod harmless;
pub mod histogram;
pub mod line_limit;
pub mod log;
mod logfile;
pub mod metrics;
pub mod operations;
pub mod prometheus;
pub mod repeats;
pub mod serve;
pub mod slow;
mod unixsocket;

pub use counters::{Counter, DiskCounters, Gauge, Gauges};
pub use line_limit::LineLimit;
pub use metrics::Metrics;
pub use operations::{Cache, FuseOp};
