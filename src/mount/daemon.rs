//! Becoming a daemon, and telling whoever waits whether it worked.
//!
//! The command forks before there is any thread or runtime. The child mounts;
//! the parent waits at a pipe for one message and ends with its verdict:
//!
//! ```text
//! child:  b'R'                          the mount is usable      → parent ends with 0
//! child:  b'E', status, length, text    it failed                → parent prints, ends with status
//! child:  end of file, nothing said     it died                  → parent says so, ends with 32
//! parent: SIGINT, SIGTERM, SIGHUP       passed on as SIGTERM     → child unmounts and says why
//! parent: dies                          the child notices at the pipe and ends itself
//! ```
//!
//! stderr is shared until the mount is usable, so that progress and warnings
//! of the child are seen; then the child lets go of it, of the terminal and of
//! the working directory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::{MountError, Retry};
use super::notify;
use super::registry::StartLock;

/// The longest error text that is passed on; fits its two-byte length and, with
/// it, into the pipe, so that writing never waits.
const MAX_TEXT: usize = 8 << 10;

/// How long a child that has failed may take to end.
const LAST_BREATH: Duration = Duration::from_secs(2);

/// What a message on the pipe says.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Ready,
    Failed(MountError),
    /// End of file before a whole message.
    Silence,
}

/// Which side of the fork this process is.
#[derive(Debug)]
pub enum Side {
    /// The command: waits for the child's verdict.
    Parent(Waiter),
    /// The daemon to be.
    Child(Announcer),
}

/// Closes every descriptor but the standard ones. A daemon that kept, say, a
/// script's lock file open would hold that lock for ever. To be called before
/// anything is opened.
pub fn close_inherited() {
    // SAFETY: nothing above stderr is in use yet, by the contract of this function.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0);
    }
}

/// Forks. `lock` stays with the child.
///
/// # Errors
/// No pipe, or no fork.
pub fn fork(lock: StartLock) -> io::Result<Side> {
    let (reader, writer) = pipe()?;
    // SAFETY: there is one thread, so the child may go on as if nothing had
    // happened.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            // SAFETY: setsid has no memory effects. It cannot fail: a forked
            // child leads no process group.
            unsafe { libc::setsid() };
            Ok(Side::Child(Announcer::to_parent(writer, lock)))
        }
        child => {
            drop(writer);
            lock.leave_to_child();
            pass_signals_on(child);
            Ok(Side::Parent(Waiter { reader, child }))
        }
    }
}

fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: pipe2 writes two descriptors into the array it is given.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both are new and belong to nobody else.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

/// The child that the handler below sends its signal to.
static CHILD: AtomicI32 = AtomicI32::new(0);

extern "C" fn pass_on(_signal: i32) {
    let child = CHILD.load(Ordering::Relaxed);
    if child > 0 {
        // SAFETY: kill is async-signal-safe; the child is not reaped before
        // the parent ends, so the pid is still its own.
        unsafe {
            libc::kill(child, libc::SIGTERM);
        }
    }
}

fn pass_signals_on(child: i32) {
    CHILD.store(child, Ordering::Relaxed);
    let handler: extern "C" fn(i32) = pass_on;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler is async-signal-safe and lives for ever. Reads are
        // restarted (signal(2) of glibc implies SA_RESTART).
        unsafe {
            libc::signal(signal, handler as libc::sighandler_t);
        }
    }
}

/// The parent's end.
#[derive(Debug)]
pub struct Waiter {
    reader: File,
    child: i32,
}

impl Waiter {
    /// Waits until the child has mounted, failed or died.
    ///
    /// # Errors
    /// The child's error, or that it ended without a word.
    pub fn wait(mut self) -> Result<(), MountError> {
        match read_verdict(&mut self.reader) {
            Verdict::Ready => Ok(()),
            Verdict::Failed(error) => {
                // It has nothing left to do but to end: nothing of it shall be
                // left running when the command returns.
                self.reap();
                Err(error)
            }
            Verdict::Silence => {
                let how = match self.reap() {
                    Some(status) if libc::WIFSIGNALED(status) => {
                        format!("the daemon was ended by signal {}", libc::WTERMSIG(status))
                    }
                    _ => "the daemon ended without a word".to_owned(),
                };
                Err(MountError::mount("mounting", how).remedy("--foreground -o debug"))
            }
        }
    }

    /// Waits, but not for ever, until the child has ended; its wait status.
    fn reap(&self) -> Option<i32> {
        let end = Instant::now() + LAST_BREATH;
        loop {
            let mut status = 0;
            // SAFETY: waitpid writes one int.
            match unsafe { libc::waitpid(self.child, &raw mut status, libc::WNOHANG) } {
                0 if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                reaped => return (reaped == self.child).then_some(status),
            }
        }
    }
}

/// Reads one message. Its length is in it: the end of the file would come
/// only when the last copy of the other end is closed.
fn read_verdict(reader: &mut impl Read) -> Verdict {
    match try_read_verdict(reader) {
        Ok(verdict) => verdict,
        Err(why) if why.kind() == io::ErrorKind::UnexpectedEof => Verdict::Silence,
        Err(why) => Verdict::Failed(MountError::system("waiting for the daemon", why)),
    }
}

fn try_read_verdict(reader: &mut impl Read) -> io::Result<Verdict> {
    let mut kind = [0];
    reader.read_exact(&mut kind)?;
    if kind == *b"R" {
        return Ok(Verdict::Ready);
    }
    let mut head = [0; 3];
    reader.read_exact(&mut head)?;
    let [status, length @ ..] = head;
    let mut text = vec![0; usize::from(u16::from_le_bytes(length))];
    reader.read_exact(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (message, remedy) = match text.split_once('\0') {
        Some((message, remedy)) => (message, Some(remedy.to_owned())),
        None => (&*text, None),
    };
    Ok(Verdict::Failed(MountError {
        message: message.to_owned(),
        remedy,
        status,
        // The daemon has tried as often as the options say.
        retry: Retry::InVain,
    }))
}

/// Tells whoever waits, once, how mounting went. Clones share the one message.
#[derive(Debug, Clone)]
pub struct Announcer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// The parent's pipe; `None` in the foreground.
    pipe: Mutex<Option<File>>,
    /// Held until the verdict is known.
    lock: Mutex<Option<StartLock>>,
    foreground: bool,
    /// It mounts; false where it takes over.
    is_first: bool,
    told: AtomicBool,
}

impl Announcer {
    /// For `--foreground`: readiness goes to the service manager, an error to
    /// the caller.
    pub fn foreground(lock: StartLock) -> Self {
        Self::new(None, Some(lock), true)
    }

    /// For a daemon that has taken over: nobody waits, but for a service manager in the
    /// foreground, which is told once more.
    pub fn taken_over(foreground: bool) -> Self {
        Self::new(None, None, foreground)
    }

    fn to_parent(pipe: File, lock: StartLock) -> Self {
        Self::new(Some(pipe), Some(lock), false)
    }

    fn new(pipe: Option<File>, lock: Option<StartLock>, foreground: bool) -> Self {
        Self(Arc::new(Shared {
            foreground,
            is_first: lock.is_some(),
            pipe: Mutex::new(pipe),
            lock: Mutex::new(lock),
            told: AtomicBool::new(false),
        }))
    }

    /// Ends this process with SIGTERM's means if the parent dies before the
    /// verdict. Starts a thread: to be called after the fork.
    ///
    /// # Errors
    /// No thread, or no descriptor.
    pub fn watch_parent(&self) -> io::Result<()> {
        let Some(pipe) = self
            .0
            .pipe
            .lock()
            .as_ref()
            .map(File::try_clone)
            .transpose()?
        else {
            return Ok(());
        };
        let shared = Arc::clone(&self.0);
        std::thread::Builder::new()
            .name("efs-fuse-parent".to_owned())
            .stack_size(64 << 10)
            .spawn(move || {
                // Whatever the verdict, the parent ends some time and with it this thread.
                wait_for_reader_to_go(&pipe);
                if !shared.told.load(Ordering::Acquire) {
                    terminate_self();
                }
            })?;
        Ok(())
    }

    /// The token that the assembly gives back when the mount is usable.
    pub fn ready(&self) -> Ready {
        Ready(self.clone())
    }

    /// Passes an error to the parent. Gives it back if there is nobody to pass
    /// it to: in the foreground, or after readiness.
    pub fn failed(&self, error: MountError) -> Option<MountError> {
        if self.0.told.swap(true, Ordering::AcqRel) {
            return Some(error);
        }
        *self.0.lock.lock() = None;
        let Some(mut pipe) = self.0.pipe.lock().take() else {
            return Some(error);
        };
        pipe.write_all(&encode(&error)).err().map(|_| error)
    }
}

fn encode(error: &MountError) -> Vec<u8> {
    let mut text = error.message.clone();
    if let Some(remedy) = &error.remedy {
        text.push('\0');
        text.push_str(remedy);
    }
    let text = &text.as_bytes()[..text.len().min(MAX_TEXT)];
    let [low, high] = (text.len() as u16).to_le_bytes();
    [&[b'E', error.status, low, high], text].concat()
}

fn wait_for_reader_to_go(pipe: &File) {
    let mut poll = libc::pollfd {
        fd: pipe.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // With no events asked for, only POLLERR (the reader has closed) ends it.
    // SAFETY: one valid pollfd, counted as one.
    while unsafe { libc::poll(&raw mut poll, 1, -1) } < 0 {
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return;
        }
    }
}

/// Asks this process to end as a user would.
fn terminate_self() {
    // SAFETY: kill has no memory effects.
    unsafe {
        libc::kill(libc::getpid(), libc::SIGTERM);
    }
}

/// The right to say, once, that the mount is usable.
#[derive(Debug)]
pub struct Ready(Announcer);

impl Ready {
    /// The first directory read would succeed: tells the parent or the service
    /// manager. The daemon lets go of terminal, standard descriptors and
    /// working directory.
    pub fn ready(self) {
        let shared = &*self.0.0;
        *shared.lock.lock() = None;
        if shared.foreground {
            shared.told.store(true, Ordering::Release);
            notify::ready();
            return;
        }
        if !shared.is_first {
            shared.told.store(true, Ordering::Release);
            return;
        }
        if let Err(why) = detach() {
            tracing::warn!(%why, "cannot let go of the terminal");
        }
        let pipe = shared.pipe.lock().take();
        // First: the parent may end as soon as it has read the message.
        shared.told.store(true, Ordering::Release);
        let heard = pipe.is_some_and(|mut pipe| pipe.write_all(b"R").is_ok());
        if !heard {
            // It died on the way: nobody wants this mount any more.
            terminate_self();
        }
    }
}

fn detach() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
    for standard in 0..=2 {
        // SAFETY: both are valid; dup2 replaces the second at once.
        if unsafe { libc::dup2(null.as_raw_fd(), standard) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::registry::Registry;

    fn lock(dir: &tempfile::TempDir) -> io::Result<StartLock> {
        let lock = Registry::at(dir.path().join("r")).lock("/p".as_ref(), Duration::ZERO)?;
        lock.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    }

    #[test]
    fn an_error_reaches_the_parent_with_status_and_remedy() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (mut reader, writer) = pipe()?;
        let announcer = Announcer::to_parent(writer, lock(&dir)?);
        let error = MountError::mount("mounting", "no such export").remedy("another one");
        assert_eq!(announcer.failed(error.clone()), None);
        assert_eq!(read_verdict(&mut reader), Verdict::Failed(error.clone()));
        // The place is free again, and a second error has nowhere to go.
        assert!(lock(&dir).is_ok());
        assert_eq!(announcer.failed(error.clone()), Some(error));
        Ok(())
    }

    #[test]
    fn a_child_that_dies_is_silence_and_not_success() -> io::Result<()> {
        for said in [&b""[..], b"E", b"x"] {
            assert_eq!(read_verdict(&mut &*said), Verdict::Silence);
        }
        assert_eq!(read_verdict(&mut &b"R"[..]), Verdict::Ready);
        Ok(())
    }

    #[test]
    fn an_endless_error_is_cut() {
        let error = MountError::mount("mounting", "x".repeat(1 << 20));
        let message = encode(&error);
        assert_eq!(message.len(), MAX_TEXT + 4);
        assert!(
            matches!(read_verdict(&mut &*message), Verdict::Failed(error) if error.status == 32)
        );
    }

    #[test]
    fn in_the_foreground_an_error_comes_back_to_the_caller() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let announcer = Announcer::foreground(lock(&dir)?);
        announcer.watch_parent()?;
        announcer.ready().ready();
        assert!(lock(&dir).is_ok());
        let error = MountError::mount("mounting", "late");
        assert_eq!(announcer.failed(error.clone()), Some(error));
        Ok(())
    }

    #[test]
    fn the_parents_end_is_noticed() -> io::Result<()> {
        let (reader, writer) = pipe()?;
        let watching = std::thread::spawn(move || wait_for_reader_to_go(&writer));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!watching.is_finished());
        drop(reader);
        assert!(watching.join().is_ok());
        Ok(())
    }
}
