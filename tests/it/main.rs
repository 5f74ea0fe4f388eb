//! The integration tests: one binary, so that it links once.
//!
//! `peer` is a scripted NFSv4.1 server in memory (no root, no network);
//! `lookalike` is an EFS file system and the AWS around it;
//! `fixtures` starts real servers and real mounts (root, /dev/fuse, nfs-ganesha).

mod applications;
mod bad_input;
mod checker;
mod consistency;
mod copies;
mod docs;
mod efs;
mod faults;
mod fixtures;
mod home;
mod hostile;
mod kubernetes;
mod layers;
mod lifecycle;
mod lookalike;
mod model;
mod operations;
mod peer;
mod posix;
mod promises;
mod protocol;
mod regressions;
mod rooms;
mod scale;
mod soak;
mod strangers;
mod stress;
mod takeover;
