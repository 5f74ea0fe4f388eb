//! The client against a scripted server: what it promises when the server, the
//! connection or the session misbehave (RFC 8881 §2.10, §8, §9, §13, §15).
//!
//! Everything runs on tokio's paused clock, so that waits of minutes cost
//! nothing and a hang is a time limit that is reached ([`rig::within`]).

mod abandoned;
mod budget;
mod closes;
mod complete;
mod connections;
mod counting;
mod data;
mod deferred_setattr;
mod direct;
mod disk_cache;
mod disk_cache_warm;
mod exactly_once;
mod farewell;
mod file_systems;
mod flags;
mod fragments;
mod garbage;
mod handles;
mod handover;
mod hidden;
mod inline_read;
mod killed;
mod killed_state;
mod lease;
mod limits;
mod lockers;
mod locks;
mod name_writeback;
mod names;
mod nocto;
mod patience;
mod privileges;
mod recovery;
mod refusals;
mod remade;
mod removed;
mod replace;
pub(crate) mod rig;
mod sequence;
mod silence;
mod size;
mod slots;
mod small_writes;
mod take_over;
mod tasks;
mod unlink;
