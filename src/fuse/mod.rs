//! fuser callbacks ⇄ vfs calls.
//!
//! This layer is thin on purpose: it owns reply objects, the identities of the
//! callers and the thread that talks back to the kernel, and nothing of what a
//! file system means.
//!
//! ```text
//! kernel ─► session   reader threads (request_buffer), mount (mounting, or inherited) and unmount
//!             │         (place)
//!             └─► gated     what fuser calls; parks requests while the gate is closed
//!             └─► adapter   one short method per operation
//!                   ├─ lookup      what is known, or what the server says (intent, reopen)
//!                   ├─ identity    pid, uid, gid → Credential
//!                   ├─ warm_call   what `efs-fuse warm` asks by ioctl(2)
//!                   ├─ cache hit:  answered on the reader thread
//!                   └─ dispatch    else one tokio task, which runs to its end
//!                        ├─ interrupt   answers EINTR when the caller is killed
//!                        └─ failure_log says why a request has failed
//! upgrade ─► quiesce   closes the gate and waits until nothing is under way
//! watchdog ─► prober    one request of our own, there and back
//! kernel ◄─ notify    invalidations, from a thread of their own
//!             └─► notify_store   the size of a file that has grown elsewhere
//! ```
//!
//! Invariants:
//! - A request is answered exactly once, whatever panics.
//! - A reader thread never waits for the server.
//! - A task is never aborted; an answer that came too late is undone.
//! - Nothing here holds a lock while it talks to the kernel, except the reply
//!   cell of a directory listing, which only its own request can want.

mod adapter;
mod answer;
mod convert;
mod dispatch;
mod estale_retry;
mod failure_log;
mod gate;
mod gated;
mod identity;
mod inherited;
mod intent;
mod interrupt;
mod kernel;
mod listing;
mod lookup;
mod mounting;
mod notify;
mod notify_store;
mod place;
mod prober;
mod proc;
mod quiesce;
mod request_buffer;
mod session;
pub mod warm_call;

pub use adapter::Adapter;
pub use estale_retry::{EstaleRetries, WalksUnderWay};
pub use inherited::InitValues;
pub use interrupt::Soft;
pub use kernel::KernelOptions;
pub use mounting::MS_NOSYMFOLLOW;
pub use notify::Notify;
pub use place::Unmount;
pub use quiesce::{NotQuiet, Quiesced};
pub use request_buffer::RequestBuffers;
pub use session::{RESENDS_FROM, Running, SessionOptions, kernel_release, start, take_over};
