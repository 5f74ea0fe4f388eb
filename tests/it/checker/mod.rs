//! The checker: what several hosts may see of each other's work, whatever they do and
//! whoever dies.
//!
//! Processes of several hosts do what chance tells them, on few names, all at the
//! same time. Every call is written down with its beginning, its end and its answer
//! ([`history`]). The judge knows nothing of the program: it looks for an order in which
//! the rule book allows all of it ([`judge`], [`state`], [`rules`]).
//!
//! - [`plan`]: what a process does next
//! - [`memory`], [`kernel`], [`pages`]: histories on the scripted server, each from its seed
//! - [`judged`]: the judge, rule by rule
//! - [`real`], [`round`], [`worker`]: histories of processes on real mounts, or on those of
//!   another client
//!
//! The rules are those of `docs/SEMANTICS.md`, and each has its name there.

mod history;
mod judge;
mod judged;
mod kernel;
mod memory;
mod pages;
mod plan;
mod real;
mod round;
mod rules;
mod state;
mod worker;

pub(crate) use self::plan::Chance;
