//! efs-fuse mounts an AWS EFS file system, or any NFSv4.1 export, through FUSE
//! with its own NFSv4.1 client.
//!
//! The layers, from the top; an arrow may only point down:
//!
//! ```text
//! cli ─► mount ─┬─► fuse ─► vfs ─┬─► disk_cache
//!  │            │                ├─► nfs ─┐     fuse   fuser callbacks ⇄ vfs calls
//!  ├─► tree ────┼────────────────┘        │     vfs    what a file system means here
//!  │            │                         │     tree   whole trees over NFS, without a mount
//!  └────────────┴─► efs ──────────────────┤     nfs    the NFSv4.1 client (RFC 8881)
//!                                         │     efs    where and how to connect
//!                                         └─► rpc ─► xdr   (RFC 5531, RFC 4506)
//! ```
//!
//! A layer may skip those between: `doctor` of `cli` speaks to `nfs`, `fuse` knows the credentials
//! of `rpc`; `cli` and `mount` know `disk_cache`, data of files on a local disk. Any layer may use `telemetry` (counters, logs, the control socket), `background`
//! (how tasks are spawned, and what their death means), `privilege` (capabilities, in effect only
//! where needed), `quoting` (names as terminals and logs may have them) and `wal` (the write-ahead
//! log, by which a daemon goes on where another was killed).

pub mod background;
pub mod cli;
pub mod disk_cache;
pub mod efs;
pub mod fuse;
pub mod mount;
pub mod nfs;
pub mod privilege;
pub mod quoting;
pub mod rpc;
pub mod telemetry;
pub mod tree;
pub mod vfs;
pub mod wal;
pub mod xdr;
