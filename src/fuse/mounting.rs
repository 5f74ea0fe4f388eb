//! mount(2) on a directory that was opened once.
//!
//! fuser mounts at a path, which it makes canonical first. Between that and the mount
//! whoever may write to a directory on the way can put another one, or a link, in its
//! place; a daemon of root then mounts where somebody else likes. So for root the directory
//! is opened (`O_PATH`), looked at, and mounted upon by its descriptor, and fuser gets the
//! device that this was done with. `fusermount3`, which mounts for users, looks by itself
//! whether the directory is the user's, with the user's rights.

use std::ffi::{CStr, CString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fuser::{Config, MountOption, SessionACL};

/// Of mount(2), since Linux 5.10; earlier kernels take no notice of it.
pub const MS_NOSYMFOLLOW: libc::c_ulong = 256;
/// How fuser is told, which has no word for it.
pub(super) const NO_SYMFOLLOW: &str = "nosymfollow";

/// Mounts at `mountpoint`, which must be canonical, with these options. Returns the device
/// that serves it.
///
/// # Errors
/// There is no `/dev/fuse`, the directory is another one than its path says, or mount(2)
/// refuses.
pub(super) fn mount(mountpoint: &Path, config: &Config) -> io::Result<OwnedFd> {
    let directory = open(mountpoint)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")?;
    // SAFETY: neither can fail or has memory effects.
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
    let mut data = format!(
        "fd={},rootmode={:o},user_id={user},group_id={group}",
        device.as_raw_fd(),
        libc::S_IFDIR
    );
    let (flags, words) = split(&config.mount_options)?;
    let others = (config.acl != SessionACL::Owner).then_some("allow_other");
    for word in words.into_iter().chain(others) {
        data.push(',');
        data.push_str(word);
    }
    let (source, data) = (CString::new(source(config))?, CString::new(data)?);
    let target = CString::new(by_descriptor(&directory))?;
    mount_at(&source, &target, flags, &data)?;
    Ok(device.into())
}

/// Opens a directory by path only, so that a mount that is there already is not asked.
fn open(mountpoint: &Path) -> io::Result<File> {
    let directory = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(mountpoint)?;
    // The one that was checked and that other commands will look for.
    match fs::read_link(by_descriptor(&directory))? == mountpoint {
        true => Ok(directory),
        false => Err(io::Error::other(
            "the directory was replaced while it was about to be mounted upon",
        )),
    }
}

fn by_descriptor(directory: &File) -> String {
    format!("/proc/self/fd/{}", directory.as_raw_fd())
}

fn source(config: &Config) -> String {
    let mut names = config
        .mount_options
        .iter()
        .filter_map(|option| match option {
            MountOption::FSName(name) => Some(name.clone()),
            _ => None,
        });
    names.next().unwrap_or_else(|| "/dev/fuse".to_owned())
}

/// The flags of mount(2), and what the file system type reads.
fn split(options: &[MountOption]) -> io::Result<(libc::c_ulong, Vec<&str>)> {
    let (mut flags, mut data) = (0, Vec::new());
    for option in options {
        match option {
            MountOption::RO => flags |= libc::MS_RDONLY,
            MountOption::NoDev => flags |= libc::MS_NODEV,
            MountOption::NoSuid => flags |= libc::MS_NOSUID,
            MountOption::NoExec => flags |= libc::MS_NOEXEC,
            MountOption::NoAtime => flags |= libc::MS_NOATIME,
            MountOption::RW | MountOption::Dev | MountOption::Suid => {}
            MountOption::Exec | MountOption::Atime | MountOption::FSName(_) => {}
            MountOption::CUSTOM(text) if text == NO_SYMFOLLOW => flags |= MS_NOSYMFOLLOW,
            MountOption::DefaultPermissions => data.push("default_permissions"),
            MountOption::CUSTOM(text) => data.push(text),
            other => {
                let why = format!("no way to mount with {other:?}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
        }
    }
    Ok((flags, data))
}

fn mount_at(source: &CStr, target: &CStr, flags: libc::c_ulong, data: &CStr) -> io::Result<()> {
    // SAFETY: four C strings that live through the call.
    let done = unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            c"fuse".as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_that_was_replaced_is_not_mounted_upon() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let dir = dir.path().canonicalize()?;
        let (place, other) = (dir.join("a/m"), dir.join("b/m"));
        fs::create_dir_all(&place)?;
        fs::create_dir_all(&other)?;
        assert!(open(&place).is_ok());
        // The last name, and one on the way.
        fs::remove_dir(&place)?;
        symlink(&other, &place)?;
        assert!(open(&place).is_err());
        fs::remove_file(&place)?;
        fs::remove_dir(dir.join("a"))?;
        symlink(dir.join("b"), dir.join("a"))?;
        assert!(open(&place).is_err());
        Ok(())
    }

    #[test]
    fn options_are_flags_of_the_mount_or_words_of_fuse() -> io::Result<()> {
        let options = [
            MountOption::FSName("h:/".to_owned()),
            MountOption::CUSTOM("subtype=efs-fuse".to_owned()),
            MountOption::RO,
            MountOption::NoDev,
            MountOption::Suid,
            MountOption::DefaultPermissions,
            MountOption::CUSTOM(NO_SYMFOLLOW.to_owned()),
            MountOption::CUSTOM("context=\"a:b:c:s0:c1,c2\"".to_owned()),
        ];
        let (flags, data) = split(&options)?;
        assert_eq!(flags, libc::MS_RDONLY | libc::MS_NODEV | MS_NOSYMFOLLOW);
        let context = "context=\"a:b:c:s0:c1,c2\"";
        assert_eq!(data, ["subtype=efs-fuse", "default_permissions", context]);
        assert!(split(&[MountOption::AutoUnmount]).is_err());
        Ok(())
    }
}
