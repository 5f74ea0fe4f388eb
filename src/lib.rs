//! efs-fuse mounts an AWS EFS file system, or any NFSv4.1 export, through FUSE
//! with its own NFSv4.1 client.
//!
//! The layers, from the top; an arrow may only point down:
//!
//! ```text
//! cli ─► mount ─┬─► efs        where and how to connect
//!               ├─► fuse       fuser callbacks ⇄ vfs calls
//!               │     └─► vfs      what a file system means here
//!               │           └─► nfs      the NFSv4.1 client (RFC 8881)
//!               │                 └─► rpc      ONC RPC (RFC 5531) ─► xdr (RFC 4506)
//!               ├─► tree       whole trees over NFS, without a mount (du, rm)
//!               └─► telemetry  counters, logs, the control socket (any layer may count)
//!                   background how tasks are spawned, and what their death means (any may)
//!                   privilege  capabilities, in effect only where needed (any layer may)
//!                   quoting    names as terminals and logs may have them (any layer may)
//! ```

pub mod background;
pub mod cli;
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
pub mod xdr;
