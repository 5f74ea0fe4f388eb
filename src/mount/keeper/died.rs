//! How a daemon has died, as the one that takes over is told.

use std::fmt;
use std::io::Write;
use std::time::Duration;

/// How the last daemon has ended that served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Died {
    /// Its wait status.
    pub status: i32,
    /// The keeper has killed it, since it gave no sign of life.
    pub hung: bool,
    /// When the keeper noticed it, by [`clock`](crate::wal::clock).
    pub noticed: Duration,
    /// How often daemons of this mount have died, those included that were about to take over.
    pub crashes: u64,
}

impl Died {
    /// As an argument with a NUL behind it; nothing is allocated. Cut where there is no room,
    /// and not understood then.
    pub(super) fn encode(self, room: &mut [u8]) {
        let Some(most) = room.len().checked_sub(1) else {
            return;
        };
        let mut rest = &mut room[..most];
        // What does not fit is cut.
        let _ = write!(
            rest,
            "{} {} {} {}",
            self.status,
            u8::from(self.hung),
            self.noticed.as_millis(),
            self.crashes
        );
        let left = rest.len();
        room[most - left] = 0;
    }

    /// What [`encode`](Self::encode) has written.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let mut word = || words.next()?.parse::<u64>().ok();
        Some(Self {
            status: i32::try_from(word()?).ok()?,
            hung: word()? != 0,
            noticed: Duration::from_millis(word()?),
            crashes: word()?,
        })
    }
}

impl fmt::Display for Died {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.hung {
            return to.write_str("gave no sign of life for 30 s and was killed");
        }
        match libc::WIFSIGNALED(self.status) {
            true => write!(to, "was ended by signal {}", libc::WTERMSIG(self.status)),
            false => write!(to, "ended with status {}", libc::WEXITSTATUS(self.status)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::DIED;
    use super::*;

    #[test]
    fn what_the_keeper_writes_is_what_a_daemon_reads() {
        let died = Died {
            status: i32::MAX,
            hung: true,
            noticed: Duration::from_millis(u64::MAX),
            crashes: u64::MAX,
        };
        let mut room = [0xff; DIED];
        died.encode(&mut room);
        let end = room.iter().position(|byte| *byte == 0);
        let text = end.and_then(|end| std::str::from_utf8(&room[..end]).ok());
        assert_eq!(text.and_then(Died::parse), Some(died));
        assert_eq!(Died::parse("9 0 17"), None);
    }
}
