//! Who a daemon is to its server: co_ownerid (RFC 8881 §2.4).
//!
//! The server keeps one client of an owner. Whoever comes with the owner of another and
//! a verifier of its own is taken for its next life, and all that the former one holds
//! is thrown away. So an owner must be
//!
//! - the same for a daemon and for the one that takes its place after it was killed:
//!   what that had open and locked is free at once, not when its lease runs out;
//! - another for every two daemons that live at the same time, on one host or on two.
//!
//! The place alone is not enough for the second: a mount that was unmounted lazily, or
//! is bound into a container, lives on when the next one is made at its place. Which
//! of several daemons of one place is meant is told by a lock file, held as long as the
//! daemon lives: a new one takes the first of the place's files that nobody holds. The
//! file's device and inode number are part of the owner, so that no two daemons of one
//! kernel can have one owner, wherever they have their files and whoever removes them
//! meanwhile: a file that is held open keeps its number.
//!
//! A file is left behind by a daemon that was killed, for its successor, and by one
//! that could not tell the server that it goes. The others remove theirs, while they
//! hold it. Files are empty; what is left of a place where nobody mounts again is removed
//! when no server can remember it any more ([`super::litter`]).

use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::litter;
use super::registry::Registry;
use crate::nfs::session::establish::Identity;
use crate::quoting;

/// Daemons of one place that live at the same time. Further ones are not told from
/// their predecessors, which is only a matter of waiting for a lease.
const AT_ONE_PLACE: usize = 64;

/// The name of a daemon, which no other daemon has as long as this value lives.
#[derive(Debug)]
pub struct Owner {
    name: Vec<u8>,
    machine_name: String,
    held: Option<Held>,
}

impl Owner {
    /// For a mount of `device` (as it was written, with its port) at `mountpoint`. What
    /// makes it less than it should be is said in the log.
    ///
    /// # Errors
    /// There are no random numbers, and they are needed.
    pub fn of_mount(registry: &Registry, device: &str, mountpoint: &Path) -> io::Result<Self> {
        let held = held(registry, mountpoint);
        let life = match &held {
            Ok(held) => held.to_string(),
            Err(why) => {
                tracing::warn!(
                    "no lock file for {}: {why}; should this daemon be killed, what it has \
                     locked is free when its lease has run out, not before",
                    quoting::path(mountpoint)
                );
                random()?
            }
        };
        let host = Host::this();
        let what = format!("{device} {}", mountpoint.display());
        Ok(Self {
            name: bounded(format!("efs-fuse {} {what} {life}", host.told()?)),
            machine_name: host.name,
            held: held.ok(),
        })
    }

    /// For a client that ends with its command and has no successor.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn passing() -> io::Result<Self> {
        let host = Host::this();
        Ok(Self {
            name: bounded(format!("efs-fuse {} {}", host.name, random()?)),
            machine_name: host.name,
            held: None,
        })
    }

    /// What the next daemon has to know, to be the same.
    pub fn hand_over(&self) -> OwnerState {
        let path = self.held.as_ref().map(|held| &held.path);
        OwnerState {
            name: Bytes::copy_from_slice(&self.name),
            machine_name: self.machine_name.clone(),
            path: path.map(|path| Bytes::copy_from_slice(path.as_os_str().as_bytes())),
        }
    }

    /// The same as a daemon that has ended. `file` is its lock file, which a keeper has held
    /// in between.
    ///
    /// # Errors
    /// Nothing can be told of the file.
    pub fn take_over(state: OwnerState, file: Option<File>) -> io::Result<Self> {
        let held = file.zip(state.path).map(|(file, path)| {
            let about = file.metadata()?;
            Ok::<_, io::Error>(Held {
                path: OsString::from_vec(path.to_vec()).into(),
                device: about.dev(),
                inode: about.ino(),
                file,
            })
        });
        Ok(Self {
            name: state.name.to_vec(),
            machine_name: state.machine_name,
            held: held.transpose()?,
        })
    }

    /// The lock file, for a keeper to hold as well.
    pub fn lock_file(&self) -> Option<BorrowedFd<'_>> {
        self.held.as_ref().map(|held| held.file.as_fd())
    }

    /// As the client wants it, with a verifier of its own.
    ///
    /// # Errors
    /// There are no random numbers.
    pub fn identity(&self) -> io::Result<Identity> {
        let mut verifier = [0; 8];
        getrandom::fill(&mut verifier).map_err(io::Error::other)?;
        Ok(Identity {
            owner: self.name.clone(),
            verifier,
            machine_name: self.machine_name.clone(),
        })
    }

    /// The server knows that this daemon is gone: there is nothing that a successor
    /// would have to free.
    pub fn retire(self) {
        if let Some(held) = self.held {
            // While it is still held: who opens it from here on makes a new one.
            let _ = fs::remove_file(&held.path);
        }
    }
}

/// An owner, for the next daemon to be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerState {
    name: Bytes,
    machine_name: String,
    /// Of the lock file, if there is one.
    path: Option<Bytes>,
}

/// What tells this host from all others, and is the same for the next daemon on it.
///
/// The kernel's boot id is random and the same for all of a boot. Two hosts have the same
/// one where a machine was copied while it ran (a snapshot that several start from), or
/// where both are containers of one kernel. The second have other namespaces; of the
/// first, the rest is what may differ: a copy that lives beside its original is usually
/// given a name, an id or, to be reached at all, an address of its own. Where it has none
/// of them nothing here can tell.
///
/// An address may change while a host is up. Then a killed daemon's successor is somebody
/// else to the server, and its locks wait for the lease.
struct Host {
    name: String,
    /// Empty where it cannot be read.
    boot: String,
    rest: [String; 5],
}

impl Host {
    fn this() -> Self {
        let read = |path: &str| {
            let text = fs::read_to_string(path);
            text.map_or_else(|_| String::new(), |text| text.trim().to_owned())
        };
        let link = |path: &str| {
            let link = fs::read_link(path);
            link.map_or_else(
                |_| String::new(),
                |link| link.to_string_lossy().into_owned(),
            )
        };
        Self {
            name: read("/proc/sys/kernel/hostname"),
            boot: read("/proc/sys/kernel/random/boot_id"),
            rest: [
                link("/proc/self/ns/net"),
                link("/proc/self/ns/mnt"),
                read("/etc/machine-id"),
                // For root only.
                read("/sys/class/dmi/id/product_uuid"),
                source_address().map_or_else(String::new, |address| address.to_string()),
            ],
        }
    }

    fn told(&self) -> io::Result<String> {
        let boot = match &*self.boot {
            "" => {
                tracing::warn!(
                    "/proc/sys/kernel/random/boot_id cannot be read: should this daemon be \
                     killed, what it has locked is free when its lease has run out, not before"
                );
                random()?
            }
            boot => boot.to_owned(),
        };
        Ok(format!("{} {boot} {}", self.name, self.rest.join(" ")))
    }
}

/// The address that this host has for others, by its default route; of IPv4 if there is
/// one, as those of IPv6 may be temporary. Nothing is sent.
fn source_address() -> Option<IpAddr> {
    // Addresses for documentation (RFC 5737, RFC 3849): nobody has them, so their route
    // is the default one.
    let ways: [(IpAddr, IpAddr); 2] = [
        (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 0, 2, 1).into(),
        ),
        (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    ];
    ways.into_iter().find_map(|(any, nobody)| {
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((nobody, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    })
}

/// A lock file that is ours as long as this lives.
#[derive(Debug)]
struct Held {
    path: PathBuf,
    /// The lock is its open file's: closed on exec, and opened after the daemon's fork.
    file: File,
    device: u64,
    inode: u64,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}:{}", self.device, self.inode)
    }
}

/// The first file of the place that nobody holds.
fn held(registry: &Registry, mountpoint: &Path) -> io::Result<Held> {
    // Who clears the directory holds each file for a moment. Should it take too long, the
    // owner is another one than it might be: a matter of waiting for a lease.
    let _alone = registry.alone()?;
    for number in 0..AT_ONE_PLACE {
        let path = registry.private_file(mountpoint, &format!("owner-{number}"))?;
        if let Some(held) = hold(path)? {
            return Ok(held);
        }
    }
    Err(io::Error::other(format!(
        "{AT_ONE_PLACE} daemons of this place are still alive"
    )))
}

/// Takes the file's lock; `None` if another has it.
fn hold(path: PathBuf) -> io::Result<Option<Held>> {
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            // Nothing but a file of ours belongs there: neither a link is followed nor a
            // reader of a pipe waited for.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)?;
        // SAFETY: a valid descriptor and a documented operation.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let why = io::Error::last_os_error();
            return match why.raw_os_error() {
                Some(libc::EWOULDBLOCK) => Ok(None),
                Some(libc::EINTR) => continue,
                _ => Err(why),
            };
        }
        let about = file.metadata()?;
        // Its last holder may have removed it in between. It would do; but the next
        // daemon of this place would find a free file and not this one.
        let linked = fs::symlink_metadata(&path)
            .is_ok_and(|now| (now.dev(), now.ino()) == (about.dev(), about.ino()));
        if linked {
            // It is in use again: what was noted of its last holder's death is void.
            file.set_modified(litter::IN_LIFE)?;
            return Ok(Some(Held {
                path,
                device: about.dev(),
                inode: about.ino(),
                file,
            }));
        }
    }
}

fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    }))
}

/// co_ownerid is at most 1,024 bytes (NFS4_OPAQUE_LIMIT); a longer one keeps its
/// beginning and says what comes after by a hash. Its end says which daemon it is, and
/// stays too.
fn bounded(owner: String) -> Vec<u8> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    const LIMIT: usize = 1024;
    const END: usize = 64;
    let owner = owner.into_bytes();
    if owner.len() <= LIMIT {
        return owner;
    }
    let mut hasher = DefaultHasher::new();
    owner.hash(&mut hasher);
    let hash = format!("#{:016x}#", hasher.finish());
    let end = &owner[owner.len() - END..];
    [&owner[..LIMIT - END - hash.len()], hash.as_bytes(), end].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> io::Result<(tempfile::TempDir, Registry)> {
        let dir = tempfile::tempdir()?;
        let registry = Registry::at(dir.path().join("efs-fuse"));
        Ok((dir, registry))
    }

    fn own(registry: &Registry) -> io::Result<Owner> {
        Owner::of_mount(registry, "h:/ 2049", Path::new("/volumes"))
    }

    #[test]
    fn two_living_daemons_of_a_place_are_two_owners_and_a_dead_ones_is_its_successors()
    -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let (first, second) = (own(&registry)?, own(&registry)?);
        assert_ne!(first.name, second.name);
        let names = [first.name.clone(), second.name.clone()];
        // As the kernel does when it was killed.
        drop(first);
        let third = own(&registry)?;
        assert_eq!(third.name, names[0]);
        drop(second);
        assert_eq!(own(&registry)?.name, names[1]);
        assert_ne!(third.identity()?.verifier, third.identity()?.verifier);
        let elsewhere = Owner::of_mount(&registry, "h:/ 2049", Path::new("/volume"))?;
        assert_ne!(elsewhere.name, names[0]);
        Ok(())
    }

    #[test]
    fn daemons_that_start_at_the_same_moment_are_all_different() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let owners = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..16)
                .map(|n| {
                    let registry = &registry;
                    // Some go at once, which removes files under the others' eyes.
                    scope.spawn(move || match n % 2 {
                        0 => own(registry).map(Some),
                        _ => own(registry).map(|owner| {
                            owner.retire();
                            None
                        }),
                    })
                })
                .collect();
            let started = starting.into_iter().map(|start| start.join());
            started
                .filter_map(|owner| {
                    owner
                        .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
                        .transpose()
                })
                .collect::<io::Result<Vec<_>>>()
        })?;
        let mut names: Vec<_> = owners.iter().map(|owner| &owner.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 8);
        assert!(owners.iter().all(|owner| owner.held.is_some()));
        Ok(())
    }

    #[test]
    fn a_lock_file_that_is_removed_makes_nobody_the_same() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let first = own(&registry)?;
        let path = first.held.as_ref().map(|held| held.path.clone());
        fs::remove_file(path.unwrap_or_default())?;
        assert_ne!(own(&registry)?.name, first.name);
        Ok(())
    }

    #[test]
    fn who_has_told_the_server_leaves_no_file() -> io::Result<()> {
        let (_dir, registry) = registry()?;
        let first = own(&registry)?;
        let dir = first.held.as_ref().and_then(|held| held.path.parent());
        let dir = dir.map(Path::to_owned).unwrap_or_default();
        assert_eq!(fs::read_dir(&dir)?.count(), 1);
        first.retire();
        assert_eq!(fs::read_dir(&dir)?.count(), 0);
        Ok(())
    }

    #[test]
    fn where_there_can_be_no_file_every_daemon_is_another() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::write(dir.path().join("efs-fuse"), "")?;
        let registry = Registry::at(dir.path().join("efs-fuse"));
        assert_ne!(own(&registry)?.name, own(&registry)?.name);
        // Nor is a link followed, or what is no file taken for one.
        let (dir, registry) = self::registry()?;
        let path = registry.private_file(Path::new("/volumes"), "owner-0")?;
        std::os::unix::fs::symlink(dir.path().join("theirs"), &path)?;
        assert!(own(&registry)?.held.is_none());
        assert!(!dir.path().join("theirs").exists());
        fs::remove_file(&path)?;
        fs::create_dir(&path)?;
        assert!(own(&registry)?.held.is_none());
        Ok(())
    }

    #[test]
    fn a_host_whose_boot_id_is_unknown_is_never_the_same_twice() -> io::Result<()> {
        let unknown = Host {
            boot: String::new(),
            ..Host::this()
        };
        assert_ne!(unknown.told()?, unknown.told()?);
        let known = Host::this();
        assert_eq!(known.told()?, Host::this().told()?);
        assert_ne!(Owner::passing()?.name, Owner::passing()?.name);
        Ok(())
    }

    #[test]
    fn a_long_owner_fits_and_still_says_which_daemon_it_is() {
        let owner = |end: &str| bounded(format!("efs-fuse {}{end}", "x".repeat(4000)));
        assert_eq!(owner("1").len(), 1024);
        assert_ne!(owner("1"), owner("2"));
        assert!(owner(" 1a:77").ends_with(b" 1a:77"));
        assert_eq!(bounded("short".to_owned()), b"short");
    }
}
