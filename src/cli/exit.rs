//! How a command ends: one line on stderr, one status.
//!
//! | status | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | usage: arguments, options, device; a path that is not our mount |
//! | 2 | the system: no /dev/fuse, not permitted, no fork; a daemon that does not answer |
//! | 32 | anything else on the way of a mount |

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use crate::background;
use crate::mount::MountError;
use crate::mount::error::{SYSTEM, USAGE};
use crate::quoting;

/// Why a command did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(MountError);

impl Failure {
    /// What the user wrote cannot be done (status 1).
    pub fn usage(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self(MountError::new(USAGE, what, why))
    }

    /// The machine or the daemon fails (status 2).
    pub fn system(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self(MountError::new(SYSTEM, what, why))
    }

    /// A mount cannot be made, or changed (status 32).
    pub fn mount(what: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self(MountError::mount(what, why))
    }

    /// Adds what the user can do.
    #[must_use]
    pub fn remedy(self, remedy: impl fmt::Display) -> Self {
        Self(self.0.remedy(remedy))
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.0.status
    }
}

impl From<MountError> for Failure {
    fn from(error: MountError) -> Self {
        Self(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// Prints the failure, if there is one, and turns it into the exit status.
pub fn finish(outcome: Result<(), Failure>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say(&failure.to_string());
            ExitCode::from(failure.status())
        }
    }
}

/// A warning, on a line of its own.
pub fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

/// What a command that prints something else on stdout has to say, on a line of
/// its own.
pub fn note(text: &str) {
    say(text);
}

/// One line on stderr, whatever is in the text: names that users give may
/// contain line breaks and worse.
fn say(text: &str) {
    let line = quoting::plain(text);
    // There is nowhere left to complain to.
    let _ = writeln!(io::stderr(), "efs-fuse: {line}");
}

/// Prints an answer on stdout. A reader that has gone away (`| head`) is no
/// failure of ours.
///
/// # Errors
/// stdout cannot be written.
pub fn print(text: &str) -> Result<(), Failure> {
    print_bytes(text.as_bytes())
}

/// The same for what need not be text.
///
/// # Errors
/// stdout cannot be written.
pub fn print_bytes(text: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Err(why) if why.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system("printing the answer", why))
        }
        _ => Ok(()),
    }
}

/// From here on a panic is one line that says where: in the log if there is
/// one, else on stderr. It names the task that it is in, with the text; that of a
/// request, which may hold anything and says nothing to a user, is only in a debug log.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(
            || "an unknown place".to_owned(),
            |at| format!("{}:{}", at.file(), at.line()),
        );
        let what = background::current().map_or_else(String::new, |task| {
            let text = background::text_of(panic.payload());
            format!(" in the task {task} ({text})")
        });
        let line = format!(
            "internal error{what} at {place}: this is a bug. Try: report it with what was done"
        );
        if tracing::enabled!(tracing::Level::ERROR) {
            tracing::error!("{line}");
            tracing::debug!(text = panic.payload_as_str(), "the panic");
        } else {
            say(&line);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_whatever_the_user_wrote() {
        let failure = Failure::usage("mounting", "no \"a\nb\" there\u{1b}[2J").remedy("c");
        let line = quoting::plain(&failure.to_string());
        assert!(line.chars().all(|c| !c.is_control()), "{line:?}");
        assert!(line.ends_with(". Try: c"));
        assert_eq!(failure.status(), 1);
    }
}
