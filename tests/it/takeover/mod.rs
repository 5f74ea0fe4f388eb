//! What outlives a daemon: its keeper, and the mount that another daemon takes over.

mod crash;
mod keeper;
mod session;
mod upgrade;
