//! The vfs against a reference model: random operations, with faults of server
//! and connection and changes by another host among them, have to come out as
//! they do on a file system that is a few maps in memory.
//!
//! - [`tree`]: the reference
//! - [`step`]: the operations, and how they are made up
//! - [`world`]: does each step on both sides and compares
//! - [`random`]: the property
//! - [`coherence`]: two hosts on one server
//! - [`locking`]: locks of processes of two hosts, against a table of bytes
//! - [`found`]: what the property has found, each step by step

mod coherence;
mod found;
mod locking;
mod random;
mod step;
mod tree;
mod world;
