//! What outlives a daemon: its keeper, and the mount that another daemon takes over.

mod keeper;
mod session;
mod upgrade;
