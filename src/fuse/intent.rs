//! What the caller of a LOOKUP is about to do: make a name, be refused because it is there,
//! or find out whether it is; and whether the caller of a GETATTR wants to hear the server.
//!
//! Before it makes a name (open with O_CREAT, mkdir, mknod, symlink, link, rename) the kernel
//! asks whether the name is free. The server decides that in the very next request,
//! at that moment and for all hosts, so the question need not be asked as well; the
//! kernel's own clients of network file systems spare it, too. FUSE does not say for
//! what a name is looked up, but the caller waits in its system call, and
//! `/proc/TID/syscall` shows which that is.
//!
//! "It is about to be made" is only said of what is certain:
//!
//! - The call makes a name, and its path says which: the last component is the name that
//!   was asked for. The same name must not stand elsewhere in the path below a directory of
//!   the same name, nor at its beginning, nor in the other path of a link: it might be
//!   asked for on the way.
//! - The directory is that of the last component, as far as its name tells
//!   ([`Making::above`], judged by the vfs). A symbolic link on the way could else lead
//!   through the same name in another directory.
//! - The call is a native one of this machine; of io_uring, openat2(2) (its flags lie
//!   behind a pointer) and others nothing is said.
//!
//! statx(2) with AT_STATX_FORCE_SYNC wants attributes of the server. FUSE does not hand that
//! on, and the kernel asks for what it believes after every read and change as well; the
//! flag is in a register. A caller whose call cannot be told (io_uring) is taken for one
//! that wants it; of one that may not be looked at nothing is known, and the cache
//! answers.
//!
//! It may be wrong for who changes the path's bytes while the call is under way: for that
//! program alone.
//!
//! "It fails if the name is there" (mkdir, mknod, symlink, link, O_EXCL,
//! RENAME_NOREPLACE) is said of whatever may be: of a call that is not known for another
//! the server is asked, which is never wrong. Where callers cannot be looked at, nobody is
//! taken for such: what is known is the answer, as old as it may be believed.
//!
//! Reading needs the rights of ptrace(2) over the caller: CAP_SYS_PTRACE, in effect for
//! the two reads alone ([`privilege::tracing_callers`]); without it nothing is known, and names are
//! asked for. What is read is five pages of memory at most, and of it nothing but a path
//! is looked at. It may fault pages in, so it runs on a thread that may wait,
//! [`AT_ONCE`] at a time; who finds no place asks the server.

use std::fs::File;
use std::io::Read;

use tokio::sync::Semaphore;

use crate::privilege;

/// Callers looked at at the same time.
const AT_ONCE: usize = 4;

/// Longest path, the zero at its end included (PATH_MAX).
const PATH_MAX: usize = 4096;

/// How a call names what it makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Paths {
    /// The argument that is the path of the new name.
    made: usize,
    /// That of a path of something else, which is looked up too.
    other: Option<usize>,
    /// What has the name is replaced.
    replaces: bool,
}

/// What is seen of a caller at the first glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Glance {
    /// Its call does not fail because a name is there; or it cannot be looked at.
    Finds,
    /// It may.
    MayRefuse,
}

/// Whether a call fails because its last name is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    Never,
    /// And which argument is the path.
    Always(usize),
    Unknown,
}

/// A name that is about to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Making {
    /// The component before the name, as the caller has written it; `None`: the name is
    /// all of the path, so its directory is the one that the call begins in.
    pub(super) above: Option<Vec<u8>>,
}

/// A system call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Syscall {
    number: i64,
    args: [u64; 6],
    stack: u64,
}

impl Syscall {
    /// From `/proc/TID/syscall` (proc(5)): the number, six arguments, stack pointer and
    /// program counter. `None` for a thread that is in no call.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_ascii_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut hex = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
        let mut args = [0; 6];
        for arg in &mut args {
            *arg = hex()?;
        }
        Some(Self {
            number,
            args,
            stack: hex()?,
        })
    }

    /// Where the call says what it makes, if it makes a name.
    fn paths(&self) -> Option<Paths> {
        // A program of 32 bits has other numbers for its calls.
        if self.stack <= u32::MAX.into() {
            return None;
        }
        let creates = |flags: usize| self.args[flags] & libc::O_CREAT as u64 != 0;
        let makes = |made| {
            Some(Paths {
                made,
                other: None,
                replaces: false,
            })
        };
        let both = |other, made, replaces| {
            Some(Paths {
                made,
                other: Some(other),
                replaces,
            })
        };
        match self.number {
            libc::SYS_openat if creates(2) => makes(1),
            libc::SYS_mkdirat | libc::SYS_mknodat => makes(1),
            libc::SYS_symlinkat => makes(2),
            libc::SYS_linkat => both(1, 3, false),
            libc::SYS_renameat => both(1, 3, true),
            // RENAME_NOREPLACE: the kernel itself says what is there.
            libc::SYS_renameat2 if self.args[4] == 0 => both(1, 3, true),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open if creates(1) => makes(0),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_creat | libc::SYS_mkdir | libc::SYS_mknod => makes(0),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_symlink => makes(1),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_link => both(0, 1, false),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => both(0, 1, true),
            _ => None,
        }
    }

    /// Whether it fails because a name is there.
    fn refusal(&self) -> Refusal {
        let exclusive = |flags: u64, path| {
            let both = (libc::O_CREAT | libc::O_EXCL) as u64;
            match flags & both == both {
                true => Refusal::Always(path),
                false => Refusal::Never,
            }
        };
        if self.stack <= u32::MAX.into() {
            return Refusal::Unknown;
        }
        match self.number {
            libc::SYS_openat => exclusive(self.args[2], 1),
            libc::SYS_mkdirat | libc::SYS_mknodat => Refusal::Always(1),
            libc::SYS_symlinkat => Refusal::Always(2),
            libc::SYS_linkat => Refusal::Always(3),
            libc::SYS_renameat2 if self.args[4] & u64::from(libc::RENAME_NOREPLACE) != 0 => {
                Refusal::Always(3)
            }
            // Their arguments lie behind pointers, or with another thread.
            libc::SYS_openat2 | libc::SYS_io_uring_enter => Refusal::Unknown,
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => exclusive(self.args[1], 0),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mkdir | libc::SYS_mknod => Refusal::Always(0),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_symlink | libc::SYS_link => Refusal::Always(1),
            _ => Refusal::Never,
        }
    }

    /// The path that is opened, and the flags, if the call opens what is there.
    fn opens(&self) -> Option<(u64, i32)> {
        if self.stack <= u32::MAX.into() {
            return None;
        }
        let (path, flags) = match self.number {
            libc::SYS_openat => (self.args[1], self.args[2]),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => (self.args[0], self.args[1]),
            _ => return None,
        };
        let flags = flags as i32;
        let other = libc::O_PATH | libc::O_DIRECTORY | libc::O_EXCL;
        (flags & other == 0).then_some((path, flags))
    }
}

/// Whether a caller wants attributes that the server has now. `text` is its
/// `/proc/TID/syscall`.
fn forces(text: &str) -> bool {
    /// statx(2) of a program of 32 bits.
    #[cfg(target_arch = "x86_64")]
    const NARROW: i64 = 383;
    #[cfg(not(target_arch = "x86_64"))]
    const NARROW: i64 = 397;
    let Some(call) = Syscall::parse(text) else {
        return true;
    };
    let statx = match call.stack {
        // A thread of the kernel's, at work for a program.
        0 => return true,
        stack if stack <= u32::MAX.into() => call.number == NARROW,
        _ => call.number == libc::SYS_statx,
    };
    let sync = call.args[2] as libc::c_int & libc::AT_STATX_SYNC_TYPE;
    statx && sync == libc::AT_STATX_FORCE_SYNC || call.number == libc::SYS_io_uring_enter
}

/// Whether the path makes `name`, and below what.
fn making(path: &[u8], other: Option<&[u8]>, name: &[u8]) -> Option<Making> {
    fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
        path.split(|byte| *byte == b'/')
            .filter(|part| !part.is_empty())
    }
    let mut backwards = components(path).rev();
    if backwards.next() != Some(name) {
        return None;
    }
    let above = backwards.next();
    let mut rest: Vec<_> = above.into_iter().chain(backwards).collect();
    rest.reverse();
    // Where the path begins is not known; further on, the directory has a name.
    let first = rest.first() == Some(&name);
    let again = rest
        .windows(2)
        .any(|pair| pair[1] == name && Some(pair[0]) == above);
    let mut other = other.into_iter().flat_map(components);
    if first || again || other.any(|part| part == name) {
        return None;
    }
    match above {
        Some(b"." | b"..") => None,
        None if path.first() == Some(&b'/') => None,
        above => Some(Making {
            above: above.map(<[u8]>::to_vec),
        }),
    }
}

/// The zero-terminated string at `address` of thread `tid`.
fn string_at(tid: u32, address: u64) -> Option<Vec<u8>> {
    const PAGE: u64 = 4096;
    let pid = libc::pid_t::try_from(tid).ok()?;
    let mut text = Vec::with_capacity(256);
    let mut at = address;
    while text.len() < PATH_MAX {
        // Never beyond the page that the string is known to reach.
        let len = (PAGE - at % PAGE)
            .min((PATH_MAX - text.len()) as u64)
            .min(256);
        let mut piece = [0_u8; 256];
        let local = libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: len as usize,
        };
        let remote = libc::iovec {
            iov_base: at as *mut libc::c_void,
            iov_len: len as usize,
        };
        // SAFETY: the kernel fills `piece`, of which `len` bytes are there; the other
        // address is in another process and never used here.
        let read =
            unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
        if read != len as isize {
            return None;
        }
        let piece = &piece[..len as usize];
        if let Some(end) = piece.iter().position(|byte| *byte == 0) {
            text.extend_from_slice(&piece[..end]);
            return Some(text);
        }
        text.extend_from_slice(piece);
        at += len;
    }
    None
}

/// `/proc/TID/syscall`. Needs the rights of ptrace(2).
fn line_of(tid: u32) -> Option<String> {
    let mut text = String::new();
    File::open(format!("/proc/{tid}/syscall"))
        .and_then(|mut file| file.read_to_string(&mut text))
        .ok()?;
    Some(text)
}

/// Looks at the call of thread `tid`, which `judge` knows what to make of.
fn look<T>(tid: u32, judge: impl FnOnce(&Syscall) -> Option<T>) -> Option<T> {
    privilege::tracing_callers(|| judge(&Syscall::parse(&line_of(tid)?)?))
}

/// Whether thread `tid` may be in a call that fails if a name is there. No memory of the
/// thread is read, so this does not wait.
pub(super) fn glance(tid: u32) -> Glance {
    if tid == 0 {
        return Glance::Finds;
    }
    let refusal = privilege::tracing_callers(|| line_of(tid)).map(|line| refusal_of(&line));
    match refusal {
        None | Some(Refusal::Never) => Glance::Finds,
        Some(Refusal::Always(_) | Refusal::Unknown) => Glance::MayRefuse,
    }
}

/// Whether thread `tid` may want attributes that the server has now, as
/// [`Intents::forces`], at the first glance.
pub(super) fn may_force(tid: u32) -> bool {
    tid != 0 && privilege::tracing_callers(|| line_of(tid)).is_some_and(|text| forces(&text))
}

/// What a line of proc says. A thread that is about to sleep may still be seen running.
fn refusal_of(line: &str) -> Refusal {
    Syscall::parse(line).map_or(Refusal::Unknown, |call| call.refusal())
}

/// Whether the call of thread `tid` fails if `name` is there, for all that can be seen.
fn refuses(tid: u32, name: &[u8]) -> Option<()> {
    let line = line_of(tid)?;
    let refusal = refusal_of(&line);
    let path = match (refusal, Syscall::parse(&line)) {
        (Refusal::Never, _) => return None,
        (Refusal::Always(path), Some(call)) => string_at(tid, call.args[path]),
        _ => None,
    };
    let Some(path) = path else {
        return Some(());
    };
    let last = path
        .split(|byte| *byte == b'/')
        .rfind(|part| !part.is_empty());
    (last == Some(name)).then_some(())
}

fn makes(tid: u32, call: &Syscall, name: &[u8]) -> Option<Making> {
    let paths = call.paths()?;
    let made = string_at(tid, call.args[paths.made])?;
    let other = match paths.other {
        Some(arg) => Some(string_at(tid, call.args[arg])?),
        None => None,
    };
    making(&made, other.as_deref(), name)
}

/// The other path does not matter: what the kernel believes it does not look up, but for
/// the name that is replaced.
fn replaces(tid: u32, call: &Syscall, name: &[u8]) -> Option<Making> {
    let paths = call.paths().filter(|paths| paths.replaces)?;
    making(&string_at(tid, call.args[paths.made])?, None, name)
}

fn opens(tid: u32, call: &Syscall, name: &[u8]) -> Option<i32> {
    let (path, flags) = call.opens()?;
    let path = string_at(tid, path)?;
    (path.rsplit(|byte| *byte == b'/').next() == Some(name)).then_some(flags)
}

/// Looks at callers, a few at a time.
#[derive(Debug)]
pub(super) struct Intents(Semaphore);

impl Default for Intents {
    fn default() -> Self {
        Self(Semaphore::new(AT_ONCE))
    }
}

impl Intents {
    /// Whether thread `tid` asks for `name` because it is about to make it.
    pub(super) async fn makes(&self, tid: u32, name: &[u8]) -> Option<Making> {
        self.look(tid, name, makes).await
    }

    /// Whether thread `tid` asks for `name`, which the kernel believes, because it is about
    /// to replace it by a rename.
    pub(super) async fn replaces(&self, tid: u32, name: &[u8]) -> Option<Making> {
        self.look(tid, name, replaces).await
    }

    /// Whether thread `tid` is opening a path that ends with `name`, and how (`O_*`).
    pub(super) async fn opens(&self, tid: u32, name: &[u8]) -> Option<i32> {
        self.look(tid, name, opens).await
    }

    /// Whether the call of thread `tid` fails if `name` is there. Who finds no place asks.
    pub(super) async fn refuses(&self, tid: u32, name: &[u8]) -> bool {
        if tid == 0 {
            return false;
        }
        let Ok(_place) = self.0.try_acquire() else {
            return true;
        };
        let name = name.to_vec();
        let looked =
            tokio::task::spawn_blocking(move || privilege::tracing_callers(|| refuses(tid, &name)));
        looked.await.is_ok_and(|refuses| refuses.is_some())
    }

    /// Whether thread `tid` asks for attributes as the server has them now. Waits for its
    /// place: the answer may not be guessed.
    pub(super) async fn forces(&self, tid: u32) -> bool {
        if tid == 0 {
            return false;
        }
        let Ok(_place) = self.0.acquire().await else {
            return false;
        };
        let looked = tokio::task::spawn_blocking(move || {
            privilege::tracing_callers(|| line_of(tid)).is_some_and(|text| forces(&text))
        });
        looked.await.unwrap_or(false)
    }

    async fn look<T: Send + 'static>(
        &self,
        tid: u32,
        name: &[u8],
        judge: fn(u32, &Syscall, &[u8]) -> Option<T>,
    ) -> Option<T> {
        if tid == 0 {
            return None;
        }
        let _place = self.0.try_acquire().ok()?;
        let name = name.to_vec();
        tokio::task::spawn_blocking(move || look(tid, |call| judge(tid, call, &name)))
            .await
            .ok()
            .flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    fn call(number: i64, args: [u64; 6]) -> Syscall {
        Syscall {
            number,
            args,
            stack: 0x7ffc_0000_0000,
        }
    }

    #[test]
    fn the_line_of_proc_is_read_and_that_of_a_running_thread_is_none() {
        let line = "257 0xffffff9c 0x7ffd1 0x241 0x1b6 0x0 0x7f 0x7ffd0000 0x7f1\n";
        let parsed = Syscall::parse(line).unwrap();
        assert_eq!(parsed.number, 257);
        assert_eq!(parsed.args, [0xffff_ff9c, 0x7ffd1, 0x241, 0x1b6, 0, 0x7f]);
        assert_eq!(parsed.stack, 0x7ffd_0000);
        for none in ["running\n", "-1 0x7ffd0000 0x7f1\n", ""] {
            assert_eq!(Syscall::parse(none), None, "{none}");
        }
    }

    #[test]
    fn only_calls_that_make_a_name_are_taken_for_such() {
        let create = [0, 1, libc::O_CREAT as u64, 0, 0, 0];
        let made = |made, other: Option<usize>| {
            let replaces = other.is_some();
            Some(Paths {
                made,
                other,
                replaces,
            })
        };
        assert_eq!(call(libc::SYS_openat, create).paths(), made(1, None));
        assert_eq!(call(libc::SYS_openat, [0; 6]).paths(), None);
        assert_eq!(call(libc::SYS_renameat2, [0; 6]).paths(), made(3, Some(1)));
        assert_eq!(call(libc::SYS_symlinkat, [0; 6]).paths(), made(2, None));
        assert_eq!(call(libc::SYS_unlinkat, [0; 6]).paths(), None);
        let link = call(libc::SYS_linkat, [0; 6]).paths();
        assert!(link.is_some_and(|paths| !paths.replaces));
        let read = [0, 7, libc::O_RDWR as u64, 0, 0, 0];
        let opened = call(libc::SYS_openat, read).opens();
        assert_eq!(opened, Some((7, libc::O_RDWR)));
        let dir = [0, 7, libc::O_DIRECTORY as u64, 0, 0, 0];
        assert_eq!(call(libc::SYS_openat, dir).opens(), None);
        assert_eq!(call(libc::SYS_openat2, create).paths(), None);
        let narrow = Syscall {
            stack: 0xffff_0000,
            ..call(libc::SYS_openat, create)
        };
        assert_eq!(narrow.paths(), None, "of 32 bits");
    }

    #[test]
    fn statx_says_whether_the_server_is_to_be_asked() {
        let call = |number: i64, flags: i32, stack: u64| {
            forces(&format!(
                "{number} 0x5 0x7f00 {flags:#x} 0x7ff 0x0 0x0 {stack:#x} 0x1"
            ))
        };
        let (force, wide) = (libc::AT_STATX_FORCE_SYNC, 0x7fff_ffff_0000);
        assert!(call(libc::SYS_statx, force | libc::AT_EMPTY_PATH, wide));
        assert!(!call(libc::SYS_statx, 0, wide));
        assert!(!call(libc::SYS_statx, libc::AT_STATX_DONT_SYNC, wide));
        assert!(!call(libc::SYS_newfstatat, force, wide));
        assert!(!call(libc::SYS_statx, force, 0xffff_0000), "another call");
        assert!(call(libc::SYS_io_uring_enter, 0, wide));
        assert!(call(0, 0, 0), "a worker of io_uring");
        assert!(forces("running\n"));
    }

    #[test]
    fn a_name_is_made_if_it_is_the_last_of_the_path_and_stands_nowhere_else() {
        let above = |above: &str| {
            let above = Some(above.as_bytes().to_vec());
            Some(Making { above })
        };
        let judge = |path: &str, other: Option<&str>| {
            making(path.as_bytes(), other.map(str::as_bytes), b"x")
        };
        assert_eq!(judge("a/b/x", None), above("b"));
        assert_eq!(judge("/v//b/x/", None), above("b"));
        assert_eq!(judge("x", None), Some(Making { above: None }));
        assert_eq!(judge("a/x", Some("a/y")), above("a"));
        assert_eq!(judge("/m/a/x/b/x", None), above("b"));
        for (path, other) in [
            ("a/x/y", None),
            ("x/a/x", None),
            ("b/x/b/x", None),
            ("x/x", None),
            ("a/xx", None),
            ("/x", None),
            ("./x", None),
            ("a/../x", None),
            ("b/x", Some("a/x")),
            ("b/x", Some("x")),
            ("", None),
        ] {
            assert_eq!(judge(path, other), None, "{path} {other:?}");
        }
    }

    /// A thread waits in open(2) of a FIFO, with O_CREAT.
    #[test]
    fn the_call_of_a_waiting_thread_is_seen_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let c = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the string lives through the call.
        assert_eq!(unsafe { libc::mkfifo(c.as_ptr(), 0o600) }, 0);
        let (tell, told) = std::sync::mpsc::channel();
        let waits = std::thread::spawn(move || {
            // SAFETY: a call without arguments.
            tell.send(unsafe { libc::gettid() }).unwrap();
            // SAFETY: the string lives through the call.
            unsafe { libc::open(c.as_ptr(), libc::O_WRONLY | libc::O_CREAT, 0o600) }
        });
        let tid = u32::try_from(told.recv().unwrap()).unwrap();
        let above = dir.path().file_name().unwrap().as_bytes().to_vec();
        let expected = Some(Making { above: Some(above) });
        let seen = (0..2000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            look(tid, |call| makes(tid, call, b"fifo")) == expected
        });
        assert_eq!(look(tid, |call| makes(tid, call, b"other")), None);
        assert_eq!(look(tid, |call| replaces(tid, call, b"fifo")), None);
        let flags = look(tid, |call| opens(tid, call, b"fifo"));
        assert_eq!(flags, Some(libc::O_WRONLY | libc::O_CREAT));
        // Ends the wait.
        let reader = File::options().read(true).open(&path).unwrap();
        let fd = waits.join().unwrap();
        // SAFETY: the thread has opened it for this.
        unsafe { libc::close(fd) };
        drop(reader);
        assert!(seen, "needs the rights of ptrace over a thread of our own");
    }
}
