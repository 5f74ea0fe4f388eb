//! Every operation of the file system, through the kernel, against a real
//! server. The directory behind the export is the oracle wherever it can be:
//! what a test did through the mount must be what the server holds.

mod absent;
mod again;
mod append;
mod attributes;
mod budget;
mod coherence;
pub(crate) mod counters;
mod create;
mod data;
mod directories;
mod disk_cache;
mod disk_cache_room;
mod disk_cache_size;
mod disk_cache_warm;
mod file_systems;
mod forced;
mod handles;
mod hidden;
mod hosts;
mod identity;
mod interrupts;
mod locks;
mod mapping;
mod names;
mod nocto;
mod remade;
mod rename;
mod small_writes;
mod told;
mod unlink;
mod writeback;
