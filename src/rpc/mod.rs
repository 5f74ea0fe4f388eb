//! ONC RPC version 2 (RFC 5531) over a stream transport.
//!
//! This layer knows no NFS operation: it carries opaque call bodies and hands
//! back opaque reply bodies.

pub mod transport;
