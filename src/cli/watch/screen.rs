//! A screen of its own on the terminal, with keys read at once.

use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// The terminal's second screen, with keys read at once. Dropping it gives the
/// first one back.
pub(super) struct Screen {
    before: Option<libc::termios>,
}

impl Screen {
    pub(super) fn open() -> io::Result<Self> {
        let input = io::stdin().as_raw_fd();
        let mut now = std::mem::MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure, and is believed only if it did.
        let before =
            unsafe { (libc::tcgetattr(input, now.as_mut_ptr()) == 0).then(|| now.assume_init()) };
        if let Some(before) = before {
            let mut raw = before;
            // Signals stay with the terminal: Ctrl-C comes as a byte instead,
            // so that the way out is one.
            raw.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
            // SAFETY: a valid descriptor and a structure that was read from it.
            unsafe { libc::tcsetattr(input, libc::TCSANOW, &raw const raw) };
        }
        let mut stdout = io::stdout();
        stdout.write_all(b"\x1b[?1049h\x1b[?25l")?;
        stdout.flush()?;
        Ok(Self { before })
    }

    /// Columns and rows.
    pub(super) fn size(&self) -> (usize, usize) {
        // SAFETY: TIOCGWINSZ fills the structure it is given.
        let size = unsafe {
            let mut size: libc::winsize = std::mem::zeroed();
            libc::ioctl(io::stdout().as_raw_fd(), libc::TIOCGWINSZ, &raw mut size);
            size
        };
        match (size.ws_col, size.ws_row) {
            (0, _) | (_, 0) => (80, 24),
            (columns, rows) => (columns.into(), rows.into()),
        }
    }

    pub(super) fn show(&self, lines: &[String]) {
        let rows = self.size().1;
        // Line by line, each cleared to its end: no flicker.
        let mut text = String::from("\x1b[H");
        for (index, line) in lines.iter().take(rows).enumerate() {
            if index > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
            text.push_str("\x1b[K");
        }
        text.push_str("\x1b[J");
        let mut stdout = io::stdout();
        // A terminal that is gone ends the program soon enough.
        let _ = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
    }

    /// Waits for `time`; true at once when the user wants to end.
    pub(super) fn ended_within(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut poll = libc::pollfd {
                fd: io::stdin().as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            };
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: one valid pollfd, counted as one.
            if unsafe { libc::poll(&raw mut poll, 1, millis) } <= 0 {
                return false;
            }
            let mut keys = [0u8; 64];
            // SAFETY: the buffer is ours and its length is given.
            let got = unsafe { libc::read(poll.fd, keys.as_mut_ptr().cast(), keys.len()) };
            let Ok(got @ 1..) = usize::try_from(got) else {
                // The terminal, or whatever is there instead, is gone.
                return true;
            };
            // q, Q, Ctrl-C, Ctrl-D, Escape alone.
            if keys[..got]
                .iter()
                .any(|key| matches!(key, b'q' | b'Q' | 3 | 4))
                || keys[..got] == [27]
            {
                return true;
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut stdout = io::stdout();
        let _ = stdout
            .write_all(b"\x1b[?25h\x1b[?1049l")
            .and_then(|()| stdout.flush());
        if let Some(before) = &self.before {
            // SAFETY: a valid descriptor and what was read from it.
            unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, before) };
        }
    }
}
