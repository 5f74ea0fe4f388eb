//! A mount that another process has made: its device is served on.
//!
//! The kernel sends FUSE_INIT once in the life of a mount, and fuser 0.18 serves no device
//! without one. So fuser gets a socket first, on which it finds a FUSE_INIT that we have
//! written; its answer goes nowhere. Then the device takes the socket's place under the same
//! descriptor number (dup3(2)), before fuser's threads begin to read.
//!
//! What the offer says is what the first process and the kernel have *agreed*, not all that
//! the kernel has: the kernel keeps to that agreement, so a newer program that asks for more
//! has to find that it does not get it.
//!
//! What processes before this one have read and not answered the kernel sends again when it
//! is asked to (FUSE_NOTIFY_RESEND, Linux 6.9), before any of this process's threads reads.
//! Such a request has the highest bit of its number set, which its answer needs too: fuser
//! echoes the number, and `FuseRequest` leaves the bit out of what is logged.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use fuser::{Config, InitFlags, KernelConfig, Session};
use serde::{Deserialize, Serialize};

use super::gated::Gated;

/// `FUSE_NOTIFY_RESEND` of `enum fuse_notify_code` in `<linux/fuse.h>`.
const NOTIFY_RESEND: i32 = 7;

/// `FUSE_INIT` of `enum fuse_opcode`.
const INIT: u32 = 26;

/// Bytes of `fuse_in_header` and `fuse_init_in`.
const INIT_SIZE: usize = 40 + 64;

/// Bytes of `fuse_out_header`, `fuse_init_out`, and both.
const OUT_HEADER: usize = 16;
const INIT_ANSWER: usize = OUT_HEADER + 64;

/// What FUSE_INIT has come to, for a process that sees none.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct InitValues {
    /// The kernel's version of the protocol.
    pub major: u32,
    /// Of which this is the second part.
    pub minor: u32,
    /// The kernel's largest read-ahead, in bytes.
    pub max_readahead: u32,
    /// The capabilities that the kernel offered (`fuser::InitFlags`).
    pub offered: u64,
    /// Those of them that are in use.
    pub agreed: u64,
    /// `major:minor` of the mount, if it was found.
    pub mount: Option<String>,
}

impl InitValues {
    /// What `config` says of the kernel.
    pub(super) fn of(config: &mut KernelConfig, agreed: InitFlags) -> Self {
        let version = config.kernel_abi();
        // fuser tells it only to who asks for too much.
        let max_readahead = match config.set_max_readahead(u32::MAX) {
            Ok(before) => before,
            Err(most) => most,
        };
        Self {
            major: version.0,
            minor: version.1,
            max_readahead,
            offered: config.capabilities().bits(),
            agreed: agreed.bits(),
            mount: None,
        }
    }

    /// The kernel can send again what was read and not answered.
    pub fn has_resend(&self) -> bool {
        // Tests have no older kernel.
        if cfg!(debug_assertions) && std::env::var_os("EFS_FUSE_TEST_NO_RESEND").is_some() {
            return false;
        }
        InitFlags::from_bits_retain(self.offered).contains(InitFlags::FUSE_HAS_RESEND)
    }

    /// A direct write drops the kernel's pages of its range: since Linux 6.6, as does this flag.
    pub(super) fn drops_pages_at_direct_writes(&self) -> bool {
        InitFlags::from_bits_retain(self.offered).contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)
    }

    /// The FUSE_INIT of a kernel that has what is in use.
    fn request(&self) -> [u8; INIT_SIZE] {
        let flags = self.agreed | InitFlags::FUSE_INIT_EXT.bits();
        let (low, high) = (flags as u32, (flags >> 32) as u32);
        let mut request = [0; INIT_SIZE];
        let mut put = |at: usize, word: u32| {
            request[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        };
        // The header: who asks, and for which inode, stays 0. The number is the first that
        // the kernel uses.
        put(0, INIT_SIZE as u32);
        put(4, INIT);
        let body = [self.major, self.minor, self.max_readahead, low, high];
        for (place, word) in body.into_iter().enumerate() {
            put(40 + 4 * place, word);
        }
        request[8..16].copy_from_slice(&2_u64.to_ne_bytes());
        request
    }
}

/// What fuser has answered: the capabilities it uses.
///
/// # Errors
/// It has refused.
fn agreed_again(answer: &[u8]) -> io::Result<u64> {
    let word = |at: usize| {
        let bytes = answer
            .get(at..at + 4)
            .and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u32::from_ne_bytes)
    };
    // len, error, unique
    if answer.len() != INIT_ANSWER || word(4) != 0 {
        return Err(io::Error::other("fuser does not take the mount over"));
    }
    // major, minor, max_readahead, flags; flags2 is the ninth word of the body.
    let flags = u64::from(word(OUT_HEADER + 12)) | u64::from(word(OUT_HEADER + 32)) << 32;
    Ok(flags & !InitFlags::FUSE_INIT_EXT.bits())
}

/// A session on `device`, which was agreed upon as `init` says. Nothing is read from the
/// device, and its mount stays whatever happens.
///
/// # Errors
/// fuser refuses, or there are no descriptors.
pub(super) fn session(
    adapter: Gated,
    device: &OwnedFd,
    init: &InitValues,
    config: Config,
) -> io::Result<Session<Gated>> {
    let (theirs, ours) = socket_pair()?;
    let mut ours = File::from(ours);
    ours.write_all(&init.request())?;
    let acl = config.acl;
    let session = Session::from_fd(adapter, theirs, acl, config)?;
    let mut answer = [0; 2 * INIT_ANSWER];
    let len = ours.read(&mut answer)?;
    let agreed = agreed_again(&answer[..len])?;
    if agreed != init.agreed {
        let left_out = InitFlags::from_bits_retain(init.agreed & !agreed);
        tracing::warn!(
            ?left_out,
            "the kernel goes on with FUSE capabilities that this program does not ask for, \
             until it is mounted anew"
        );
    }
    // SAFETY: both are open; what the second number stood for, the socket, is closed by this,
    // and nobody reads from it yet.
    let moved = unsafe {
        libc::dup3(
            device.as_raw_fd(),
            session.as_fd().as_raw_fd(),
            libc::O_CLOEXEC,
        )
    };
    match moved {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(session),
    }
}

/// A pair that keeps messages apart, as the device does.
fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut pair = [-1; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: there is room for two descriptors.
    match unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, pair.as_mut_ptr()) } {
        0 => {
            // SAFETY: the kernel has just given us both, and nobody else.
            Ok(unsafe { (OwnedFd::from_raw_fd(pair[0]), OwnedFd::from_raw_fd(pair[1])) })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel send again what was read and not answered, by whatever process.
///
/// # Errors
/// The mount is gone, or the kernel is older than 6.9.
pub(super) fn resend(device: impl AsFd) -> io::Result<()> {
    // A bare `fuse_out_header`: len, the notification in the place of an error, and no unique.
    let mut message = [0; OUT_HEADER];
    message[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
    message[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    let mut device = File::from(device.as_fd().try_clone_to_owned()?);
    device.write_all(&message)
}

#[cfg(test)]
mod tests {
    use fuser::Filesystem;

    use super::*;
    use crate::fuse::KernelOptions;

    struct Negotiates(KernelOptions, std::sync::mpsc::Sender<InitValues>);

    impl Filesystem for Negotiates {
        fn init(&mut self, _: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
            let agreed = self.0.negotiate(config);
            self.1.send(InitValues::of(config, agreed)).unwrap();
            Ok(())
        }
    }

    /// What is found out upon this FUSE_INIT, and what fuser answers to it.
    fn negotiated(options: KernelOptions, request: &[u8]) -> (InitValues, u64) {
        let (theirs, ours) = socket_pair().unwrap();
        let mut ours = File::from(ours);
        ours.write_all(request).unwrap();
        let (found, values) = std::sync::mpsc::channel();
        let fs = Negotiates(options, found);
        let config = Config::default();
        Session::from_fd(fs, theirs, config.acl, config).unwrap();
        let mut answer = [0; 256];
        let len = ours.read(&mut answer).unwrap();
        (
            values.recv().unwrap(),
            agreed_again(&answer[..len]).unwrap(),
        )
    }

    /// The FUSE_INIT of Linux 6.18, with these capabilities.
    fn of_linux(flags: u64) -> [u8; INIT_SIZE] {
        InitValues {
            major: 7,
            minor: 45,
            max_readahead: 131_072,
            offered: 0,
            agreed: flags,
            mount: None,
        }
        .request()
    }

    const LINUX_6_18: u64 = 0x07fd_73ff_fffb;

    #[test]
    fn a_successor_agrees_on_what_the_first_process_has_agreed_on() {
        let options = KernelOptions::default();
        for offered in [LINUX_6_18, 0x73ff_fffb, 0x0001_000b] {
            let (first, answered) = negotiated(options, &of_linux(offered));
            assert_eq!(first.offered, offered & !InitFlags::FUSE_INIT_EXT.bits());
            assert_eq!(first.agreed, answered, "not what fuser has told the kernel");
            assert_eq!(
                (first.major, first.minor, first.max_readahead),
                (7, 45, 131_072)
            );
            let (second, again) = negotiated(options, &first.request());
            assert_eq!(again, answered);
            assert_eq!(second.agreed, first.agreed);
        }
    }

    #[test]
    fn a_successor_that_asks_for_more_does_not_get_it() {
        let less = KernelOptions {
            posix_locks: false,
            flock_locks: false,
        };
        let (first, _) = negotiated(less, &of_linux(LINUX_6_18));
        let (_, again) = negotiated(KernelOptions::default(), &first.request());
        assert_eq!(again, first.agreed);
    }

    #[test]
    fn a_kernel_that_cannot_send_again_is_known_by_its_offer() {
        let options = KernelOptions::default();
        assert!(negotiated(options, &of_linux(LINUX_6_18)).0.has_resend());
        assert!(!negotiated(options, &of_linux(0x73ff_fffb)).0.has_resend());
    }

    #[test]
    fn an_answer_that_refuses_is_an_error() {
        let mut answer = [0; INIT_ANSWER];
        assert!(agreed_again(&answer).is_ok());
        answer[4..8].copy_from_slice(&(-71_i32).to_ne_bytes());
        assert!(agreed_again(&answer).is_err());
        assert!(agreed_again(&answer[..16]).is_err());
    }
}
