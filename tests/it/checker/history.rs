//! What processes of several hosts did, and what they were told: what the judge judges.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Microseconds since the run began, on one clock for all hosts.
pub(super) type Time = u64;

/// A value that is written once in a history. Zero is what a hole reads as.
pub(super) type Token = u32;

/// An open file, numbered through all processes.
pub(super) type Fd = u32;

/// One letter.
pub(super) type Name = u8;

/// Whoever stands apart: looks at the server's own files when all is over.
pub(super) const OBSERVER: u8 = u8::MAX;

/// A name in the plot, or in a directory of the plot.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Path {
    pub(super) dir: Option<Name>,
    pub(super) name: Name,
}

/// Its descriptor was opened with O_DIRECT.
pub(super) fn is_direct(history: &[Event], event: &Event) -> bool {
    let Some(mine) = event.call.fd() else {
        return false;
    };
    history
        .iter()
        .any(|other| matches!(other.call, Call::Open { fd, how, .. } if fd == mine && how.direct))
}

impl Path {
    pub(super) fn text(self) -> String {
        let name = char::from(self.name);
        match self.dir {
            Some(dir) => format!("{}/{name}", char::from(dir)),
            None => name.to_string(),
        }
    }

    /// It is the other, or the directory that has the other.
    pub(super) fn is_or_holds(self, other: Self) -> bool {
        self == other || self.dir.is_none() && other.dir == Some(self.name)
    }

    /// One is the other, or lies on the way to it.
    pub(super) fn touches(self, other: Self) -> bool {
        match (self.dir, other.dir) {
            (None, None) => self.name == other.name,
            (Some(dir), None) => dir == other.name,
            (None, Some(dir)) => dir == self.name,
            (Some(_), Some(_)) => self == other,
        }
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

/// How a file is opened; for reading and writing, unless it says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct How {
    pub(super) create: bool,
    pub(super) exclusive: bool,
    pub(super) truncate: bool,
    pub(super) append: bool,
    /// O_DIRECT.
    pub(super) direct: bool,
    /// O_RDONLY.
    #[serde(default)]
    pub(super) reads: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Call {
    Mkdir(Path),
    Rmdir(Path),
    Unlink(Path),
    /// The text is the token.
    Symlink(Path, Token),
    Readlink(Path),
    Link(Path, Path),
    Rename {
        from: Path,
        to: Path,
        /// Without RENAME_NOREPLACE.
        replaces: bool,
    },
    Chmod(Path, u16),
    /// To nothing.
    Truncate(Path),
    Stat(Path),
    /// Of the plot, or of a directory in it.
    List(Option<Name>),
    Open {
        at: Path,
        how: How,
        fd: Fd,
    },
    Write {
        fd: Fd,
        slot: u8,
        token: Token,
    },
    Append {
        fd: Fd,
        token: Token,
    },
    /// All of it.
    Read(Fd),
    /// To nothing.
    Ftruncate(Fd),
    Fstat(Fd),
    Fsync(Fd),
    Close(Fd),
    /// Waits.
    Lock {
        fd: Fd,
        exclusive: bool,
    },
    Unlock(Fd),
}

impl Call {
    pub(super) fn fd(&self) -> Option<Fd> {
        match *self {
            Self::Open { fd, .. }
            | Self::Write { fd, .. }
            | Self::Append { fd, .. }
            | Self::Read(fd)
            | Self::Ftruncate(fd)
            | Self::Fstat(fd)
            | Self::Fsync(fd)
            | Self::Close(fd)
            | Self::Lock { fd, .. }
            | Self::Unlock(fd) => Some(fd),
            _ => None,
        }
    }

    /// The names that it is about; of what has a descriptor none.
    pub(super) fn paths(&self) -> Vec<Path> {
        match *self {
            Self::Mkdir(at)
            | Self::Rmdir(at)
            | Self::Unlink(at)
            | Self::Symlink(at, _)
            | Self::Readlink(at)
            | Self::Chmod(at, _)
            | Self::Truncate(at)
            | Self::Stat(at)
            | Self::Open { at, .. } => vec![at],
            Self::Link(from, to) | Self::Rename { from, to, .. } => vec![from, to],
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Kind {
    File,
    Directory,
    Symlink,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    /// Not of directories.
    pub(super) links: u32,
    /// In slots; of files.
    pub(super) size: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Answer {
    Done,
    /// A rename between two names of one file: nobody was asked.
    Same,
    Refused(i32),
    Seen(Seen),
    Listed(Vec<Name>),
    /// The text of a link.
    Text(Token),
    /// One token a slot.
    Data(Vec<Token>),
}

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) host: u8,
    /// Numbered through all hosts.
    pub(super) process: u16,
    pub(super) call: Call,
    pub(super) began: Time,
    /// When it was answered; of who was killed, when he was gone.
    pub(super) ended: Time,
    /// `None`: the caller was killed.
    pub(super) answer: Option<Answer>,
    /// The server lost sessions while it ran: what was sent may have been done then, and be
    /// done once more when it is sent anew. ("Exactly once")
    pub(super) unsure: bool,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |time: Time| time as f64 / 1000.0;
        write!(
            f,
            "{:>10.3} {:>10.3}  host {} process {:<3} {:?} = ",
            ms(self.began),
            ms(self.ended),
            self.host,
            self.process,
            self.call
        )?;
        match &self.answer {
            Some(answer) => write!(f, "{answer:?}")?,
            None => f.write_str("(killed)")?,
        }
        if self.unsure {
            f.write_str(" (unsure)")?;
        }
        Ok(())
    }
}

pub(super) fn text(history: &[Event]) -> String {
    history.iter().map(|event| format!("{event}\n")).collect()
}
