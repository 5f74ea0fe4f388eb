//! What outlives a daemon: its keeper, and the mount that another daemon takes over.

mod crash;
mod keeper;
mod kills;
mod reading;
mod session;
mod upgrade;
