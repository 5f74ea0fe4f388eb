//! What a process does next, drawn from a seed.

use serde::{Deserialize, Serialize};

use super::history::{Answer, Call, Fd, How, Name, Path, Token};

/// Numbers by chance (splitmix64), the same for the same seed.
#[derive(Clone)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (x ^ (x >> 31)) % limit
    }

    pub(super) fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    /// A number of its own for a part of the work.
    pub(super) fn split(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }
}

/// What a history is mostly about, so that its calls meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Theme {
    /// Directories, links, renames, modes.
    Names,
    /// Files: what is in them, and their names.
    Data,
    /// Files that are read and written under locks.
    Locks,
    /// Files that grow at their end: of one host alone, or under a lock.
    Appends,
    All,
}

pub(super) const THEMES: [Theme; 5] = [
    Theme::Names,
    Theme::Data,
    Theme::Locks,
    Theme::Appends,
    Theme::All,
];

/// The file that all hosts append to, each under a lock.
const SHARED_LOG: Name = b'd';

#[derive(Clone, Copy, Debug)]
struct Held {
    fd: Fd,
    name: Name,
    locked: bool,
    append: bool,
    reads: bool,
}

/// A process: what it has open, and its chance.
pub(super) struct Plan {
    theme: Theme,
    host: u8,
    chance: Chance,
    /// The last number it has given away.
    number: u32,
    held: Vec<Held>,
    /// Files are opened with O_DIRECT at times.
    direct: bool,
    /// Files are opened with O_RDONLY at times.
    reads: bool,
}

/// Files a process has open at the same time.
const OPEN_AT_ONCE: usize = 2;

impl Plan {
    /// Numbers of processes tell their descriptors and tokens apart.
    pub(super) fn new(theme: Theme, host: u8, process: u16, chance: Chance, direct: bool) -> Self {
        Self {
            theme,
            host,
            chance,
            number: u32::from(process) * 10_000,
            held: Vec::new(),
            direct,
            reads: false,
        }
    }

    /// The same, that opens files for reading alone at times.
    pub(super) fn reading(self, reads: bool) -> Self {
        Self { reads, ..self }
    }

    fn token(&mut self) -> Token {
        self.number += 1;
        self.number
    }

    fn name(&mut self) -> Name {
        b"abcd"[self.chance.below(4) as usize]
    }

    fn path(&mut self) -> Path {
        let dir = self.chance.one_in(3).then(|| self.name());
        Path {
            dir,
            name: self.name(),
        }
    }

    fn file(&mut self) -> Path {
        let name = b"ab"[self.chance.below(2) as usize];
        Path { dir: None, name }
    }

    /// What was answered.
    pub(super) fn hears(&mut self, call: &Call, answer: &Answer) {
        let done = *answer == Answer::Done;
        match *call {
            Call::Open { at, how, fd } if done => self.held.push(Held {
                fd,
                name: at.name,
                locked: false,
                append: how.append,
                reads: how.reads,
            }),
            // close(2) leaves nothing open, whatever it says.
            Call::Close(fd) => self.held.retain(|held| held.fd != fd),
            Call::Lock { fd, .. } if done => self.set_locked(fd, true),
            Call::Unlock(fd) => self.set_locked(fd, false),
            _ => {}
        }
    }

    fn set_locked(&mut self, fd: Fd, locked: bool) {
        for held in self.held.iter_mut().filter(|held| held.fd == fd) {
            held.locked = locked;
        }
    }

    /// What is open when the process ends.
    pub(super) fn open(&self) -> Vec<Fd> {
        self.held.iter().map(|held| held.fd).collect()
    }

    pub(super) fn next(&mut self) -> Call {
        match self.theme {
            Theme::Names => self.names(),
            Theme::Data => match self.chance.below(3) {
                0 => self.opens(false),
                1 => self.with_open(),
                _ => self.file_by_name(),
            },
            Theme::Locks => match self.chance.below(4) {
                0 => self.opens(false),
                _ => self.under_lock(),
            },
            Theme::Appends => self.appends(),
            Theme::All => match self.chance.below(4) {
                0 => self.names(),
                1 => self.file_by_name(),
                2 => self.opens(true),
                _ => self.with_open(),
            },
        }
    }

    fn names(&mut self) -> Call {
        let at = self.path();
        match self.chance.below(24) {
            0..4 => Call::Mkdir(at),
            4..6 => Call::Rmdir(at),
            6..8 => Call::Unlink(at),
            8 => Call::Symlink(at, self.token()),
            9 => Call::Readlink(at),
            10..12 => Call::Link(at, self.path()),
            12..15 => Call::Rename {
                from: at,
                to: self.path(),
                replaces: !self.chance.one_in(8),
            },
            15 => Call::Chmod(at, self.mode()),
            16..19 => Call::Stat(at),
            19..21 => Call::List(at.dir),
            _ => self.opens(true),
        }
    }

    fn mode(&mut self) -> u16 {
        [0o600, 0o640, 0o644, 0o700, 0o755][self.chance.below(5) as usize]
    }

    /// Opens a file, or closes one if enough are open.
    fn opens(&mut self, anywhere: bool) -> Call {
        if self.held.len() == OPEN_AT_ONCE {
            return Call::Close(self.held[self.chance.below(OPEN_AT_ONCE as u64) as usize].fd);
        }
        let at = if anywhere { self.path() } else { self.file() };
        let create = !self.chance.one_in(3);
        let reads = self.reads && self.chance.one_in(2);
        let how = How {
            create,
            exclusive: create && self.chance.one_in(3),
            truncate: self.chance.one_in(4) && !reads,
            append: false,
            direct: self.direct && self.chance.one_in(3),
            reads,
        };
        let fd = self.token();
        Call::Open { at, how, fd }
    }

    fn pick(&mut self) -> Option<Held> {
        match self.held.len() {
            0 => None,
            open => Some(self.held[self.chance.below(open as u64) as usize]),
        }
    }

    fn with_open(&mut self) -> Call {
        let Some(Held {
            fd, name, reads, ..
        }) = self.pick()
        else {
            return self.opens(self.theme == Theme::All);
        };
        if reads {
            return match self.chance.below(8) {
                0..4 => Call::Read(fd),
                4 => Call::Fstat(fd),
                5..7 => Call::Close(fd),
                _ => Call::Chmod(Path { dir: None, name }, self.mode()),
            };
        }
        match self.chance.below(18) {
            0..5 => Call::Write {
                fd,
                slot: self.chance.below(4) as u8,
                token: self.token(),
            },
            5..9 => Call::Read(fd),
            9 => Call::Ftruncate(fd),
            10 => Call::Fstat(fd),
            11..13 => Call::Fsync(fd),
            13..16 => Call::Close(fd),
            // It may be unpublished.
            _ => Call::Chmod(Path { dir: None, name }, self.mode()),
        }
    }

    fn file_by_name(&mut self) -> Call {
        let at = self.file();
        match self.chance.below(8) {
            0 => Call::Truncate(at),
            1 => Call::Unlink(at),
            2 => Call::Rename {
                from: at,
                to: self.file(),
                replaces: true,
            },
            3 => Call::Link(at, self.path()),
            4 => Call::Chmod(at, self.mode()),
            _ => Call::Stat(at),
        }
    }

    fn under_lock(&mut self) -> Call {
        let Some(held) = self.pick() else {
            return self.opens(false);
        };
        // Who waits has nothing that another may wait for.
        let has_one = self.held.iter().any(|held| held.locked);
        let fd = held.fd;
        match (held.locked, has_one) {
            (false, true) => self.with_open(),
            (false, false) => Call::Lock {
                fd,
                exclusive: !self.chance.one_in(3) && !held.reads,
            },
            (true, _) => match self.chance.below(4) {
                0 => Call::Unlock(fd),
                1 => Call::Read(fd),
                2 => Call::Close(fd),
                _ if held.reads => Call::Read(fd),
                _ => Call::Write {
                    fd,
                    slot: self.chance.below(3) as u8,
                    token: self.token(),
                },
            },
        }
    }

    fn appends(&mut self) -> Call {
        let own = b'a' + self.host % 3;
        let Some(held) = self.pick() else {
            // Its own host's, the shared one, or another's, which it only reads.
            let (name, append) = match self.chance.below(5) {
                0 | 1 => (own, true),
                2 => (b'a' + self.chance.below(3) as u8, false),
                _ => (SHARED_LOG, true),
            };
            let how = How {
                create: append,
                append,
                reads: self.reads && !append,
                ..How::default()
            };
            let fd = self.token();
            let at = Path { dir: None, name };
            return Call::Open { at, how, fd };
        };
        let fd = held.fd;
        let append = |plan: &mut Self| Call::Append {
            fd,
            token: plan.token(),
        };
        if held.name == SHARED_LOG {
            return match (held.locked, self.chance.below(4)) {
                (false, _) => Call::Lock {
                    fd,
                    exclusive: true,
                },
                (true, 0) => Call::Unlock(fd),
                (true, 1) => Call::Read(fd),
                (true, 2) => Call::Close(fd),
                (true, _) => append(self),
            };
        }
        match self.chance.below(6) {
            0 => Call::Close(fd),
            1 => Call::Read(fd),
            2 => Call::Fsync(fd),
            _ if held.append => append(self),
            _ => Call::Read(fd),
        }
    }
}
