//! The keeper: the smallest process that holds what must outlive a daemon.
//!
//! It is the daemon's parent. It holds `/dev/fuse`, without which the kernel gives the mount
//! up, the lock file that says who the daemon is to the server, and the memory with the state
//! that a daemon leaves behind; and it starts the daemon that takes over. `ps` shows it as
//! `efs-fuse keeper MOUNTPOINT`. It asks nobody, parses nothing and allocates nothing once it
//! runs ([`process`]); what it does next is a plain machine ([`machine`]).
//!
//! ```text
//! command ─fork─► keeper ─fork─► daemon        mount
//!                   │  ◄─ hold, ready, next ─┘ (ends)
//!                   └─fork, exec─► daemon      efs-fuse take-over MOUNTPOINT
//! ```
//!
//! In the foreground the process that was started becomes the keeper, so that a service manager
//! sees one main process whatever happens to the daemon. Signals that it gets go on to the
//! daemon, and it ends as the daemon does. If the keeper itself is killed the daemon goes on,
//! and can be handed over no more.
//!
//! Why not the descriptor store of systemd: mounts by command and by fstab have none.
//!
//! # Messages
//!
//! Over a socket of packets, from the daemon only. The first byte says what it is:
//!
//! | byte | with | meaning |
//! |---|---|---|
//! | `h` | a [`Slot`], a descriptor | Hold this, instead of what was held there. |
//! | `t` | a descriptor | I am dying when this can be read. |
//! | `r` | | I serve: nothing can be taken back. |
//! | `n` | a path | My state is written and I shall end: start this program then. |
//! | `s` | | I stay. |
//! | `w` | | What I gave as the state is a write-ahead log: should I die, start my program again. |
//! | `b` | | I am alive. Every [`BEAT`] once the mount survives its daemon. |
//! | `g` | | Goodbye: the mount ends with me. |
//! | `f` | a text | I cannot take over, for this reason. |
//!
//! What a daemon gives before it is ready is held from then on, and forgotten if it ends before:
//! until then the next one finds all as it was. Messages that are not known are passed over.
//!
//! A daemon that takes over finds the socket at descriptor 3, and what is held behind it.

mod crashes;
mod died;
mod link;
mod machine;
mod process;
mod witness;

pub use died::Died;
pub use link::{Inherited, KeeperLink, attach, own_program};
pub use process::{NAME, run};

/// What the keeper holds, one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// `/dev/fuse`, of this mount.
    Device,
    /// The lock file of the owner: see [`super::owner`].
    Owner,
    /// The memory for the state.
    State,
    /// The program that serves, to come back to.
    Program,
}

impl Slot {
    /// All of them, in the order of their numbers.
    const ALL: [Self; 4] = [Self::Device, Self::Owner, Self::State, Self::Program];
    /// How many there are.
    const COUNT: usize = Self::ALL.len();
    /// Those that a daemon that takes over is given, in this order behind the socket.
    const INHERITED: [Self; 3] = [Self::Device, Self::Owner, Self::State];

    fn number(self) -> u8 {
        self as u8
    }
}

/// Where a daemon that takes over finds the socket; what it inherits is behind it.
const SOCKET: i32 = 3;

/// The longest message: a kind and a path.
const MESSAGE: usize = 1 + libc::PATH_MAX as usize;

/// How often a daemon that survives gives a sign of life.
pub const BEAT: std::time::Duration = std::time::Duration::from_secs(3);

/// Room for a [`Died`] in words: four numbers.
const DIED: usize = 96;

/// The longest reason that is passed on.
const REASON: usize = 512;
