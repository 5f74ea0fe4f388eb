//! Mounting and unmounting on this machine: what surrounds the file system.
//!
//! ```text
//! mount:   checks ─► daemon (fork) ─► log, runtime ─► assembly ─► Ready
//! umount:  mountinfo, registry ─► umount2 ─► wait for the daemon
//! ```
//!
//! [`launch`] runs the first line ([`connecting`]: up to the first READDIR); [`unmount`] is the second; [`remount`] and
//! [`watchdog`] are for what happens in between. The kernel's
//! mount table ([`mountinfo`]) is the truth about what is mounted, the
//! [`registry`] adds who serves it ([`found`]: as far as that is believed), [`owner`] who
//! that is to the server. No function here asks a mounted file system
//! anything that could hang ([`place`], [`checks`]).

pub mod again;
pub mod assembly;
pub mod checks;
mod claim;
pub mod connecting;
pub mod daemon;
mod disk_cache;
pub mod endpoint;
pub mod error;
pub mod found;
pub mod handover;
pub mod harden;
pub mod keeper;
pub mod launch;
mod litter;
pub mod memory;
pub mod mountinfo;
pub mod notify;
pub mod options;
pub mod origins;
pub mod owner;
pub mod place;
mod private_dir;
pub mod process;
mod publish;
pub mod registry;
pub mod remount;
mod rest;
pub mod signals;
pub mod unmount;
pub mod upgrade;
pub mod watchdog;

pub use daemon::Ready;
pub use error::MountError;
pub use launch::MountRequest;
pub use options::MountOptions;

pub use crate::fuse::warm_call;
pub use crate::vfs::types::WarmFrom;
