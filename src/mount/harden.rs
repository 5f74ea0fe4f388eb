//! What a process does before it holds secrets, and before it has threads.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// Keeps the memory of this process, which will hold keys and credentials, out
/// of core dumps and away from debuggers of other users.
///
/// # Errors
/// The kernel refuses.
pub fn no_core_dumps() -> io::Result<()> {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the struct lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &none) })?;
    // The limit does not count where dumps go to a program.
    not_dumpable()
}

/// The same of this process alone, not of the programs that it starts.
///
/// # Errors
/// The kernel refuses.
pub fn not_dumpable() -> io::Result<()> {
    // SAFETY: prctl with these arguments sets a flag of this process.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// Moves this process, which must have one thread, into a network namespace.
///
/// # Errors
/// It is none, or not for us.
pub fn enter_network(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    // SAFETY: the descriptor is valid; the calling thread is the only one.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) })
}

/// Makes the environment say what it means: a variable of AWS that is set but
/// empty counts as unset, and a missing `HOME` (boot, cloud-init) is that of
/// the user. To be called while there is one thread.
pub fn settle_environment() {
    let matters =
        |name: &std::ffi::OsStr| name == "HOME" || name.to_string_lossy().starts_with("AWS_");
    let empty: Vec<_> = std::env::vars_os()
        .filter(|(name, value)| value.is_empty() && matters(name))
        .map(|(name, _)| name)
        .collect();
    for name in empty {
        // SAFETY: there is one thread, by the contract of this function.
        unsafe { std::env::remove_var(name) };
    }
    if std::env::var_os("HOME").is_none()
        && let Some(home) = std::env::home_dir()
    {
        // SAFETY: as above.
        unsafe { std::env::set_var("HOME", home) };
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_namespace_is_refused() -> io::Result<()> {
        let file = tempfile::NamedTempFile::new()?;
        let refused = enter_network(file.path());
        assert!(refused.is_err_and(|why| why.raw_os_error() == Some(libc::EINVAL)));
        assert!(enter_network(Path::new("/nonexistent/ns")).is_err());
        Ok(())
    }
}
