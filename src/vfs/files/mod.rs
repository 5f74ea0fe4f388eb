//! Open files, and what is on its way to them.

pub mod deferred_setattr;
pub(in crate::vfs) mod handle;
mod hidden;
mod inline_read;
pub(in crate::vfs) mod kept_open;
pub mod lock;
pub mod read;
mod revalidate;
pub mod silly;
mod unanswered;
pub mod window;
pub mod write;
