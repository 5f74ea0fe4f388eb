//! `/proc/thread-self/mountinfo` (proc_pid_mountinfo(5)): what is mounted where.
//!
//! The kernel's own list, read without touching any mount: asking a mount
//! itself would hang when its server does.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The file system type of our mounts.
pub const FS_TYPE: &str = "fuse.efs-fuse";

/// One line of the list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number of the mount, as `/proc/PID/fdinfo` has it.
    pub id: u64,
    /// The device number of the file system; for FUSE the minor number names
    /// the connection in `/sys/fs/fuse/connections`.
    pub major: u32,
    /// See `major`.
    pub minor: u32,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The directory of the file system that is seen there: not its root in a
    /// bind mount.
    pub root: PathBuf,
    /// What the kernel allows there: `rw,nosuid,relatime`.
    pub options: String,
    /// What the file system itself shows: `rw,user_id=0,allow_other`.
    pub super_options: String,
    /// The type with its subtype, `fuse.efs-fuse`.
    pub fs_type: String,
    /// The device; for us `HOST:/dir`.
    pub source: String,
}

impl Mount {
    /// Whether it is one of ours.
    pub fn is_ours(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// Whose it is: of a FUSE mount the kernel knows who mounted it, and `fusermount3`
    /// lets nobody say it is another. `None` for other types.
    pub fn user(&self) -> Option<u32> {
        let shown = self.super_options.split(',');
        let mut users = shown.filter_map(|option| option.strip_prefix("user_id="));
        users.next()?.parse().ok()
    }
}

/// The mounts of this process's namespace, oldest first.
#[derive(Debug, Clone, Default)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads the kernel's list as it is now.
    ///
    /// # Errors
    /// `/proc` is not there.
    pub fn read() -> io::Result<Self> {
        // Of this thread, which may mount in another namespace than its process is in.
        Ok(Self::parse(&fs::read("/proc/thread-self/mountinfo")?))
    }

    fn parse(text: &[u8]) -> Self {
        // A line of a kernel newer than this program may be odd; skip it.
        Self(
            text.split(|&byte| byte == b'\n')
                .filter_map(parse_line)
                .collect(),
        )
    }

    /// The mount that is visible at `path` itself: of several stacked there,
    /// the last. `path` must be canonical.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.mountpoint == path)
    }

    /// The mount that `path` lies in: the one with the longest mount point.
    /// `path` must be canonical.
    pub fn containing(&self, path: &Path) -> Option<&Mount> {
        let around = self
            .0
            .iter()
            .filter(|mount| path.starts_with(&mount.mountpoint));
        // Of several at one place the last is seen: max_by_key takes that.
        around.max_by_key(|mount| mount.mountpoint.components().count())
    }

    /// The mount of this number.
    pub fn by_id(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id == id)
    }

    /// What is mounted below `path`, whatever it is.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Mount> {
        let below =
            move |mount: &&Mount| mount.mountpoint != path && mount.mountpoint.starts_with(path);
        self.0.iter().filter(below)
    }

    /// All our mounts.
    pub fn ours(&self) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(|mount| mount.is_ours())
    }
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw`: a variable
/// number of optional fields, ended by a hyphen, stands before the type.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let id = fields.next()?;
    let device = fields.nth(1)?;
    let root = fields.next()?;
    let mountpoint = fields.next()?;
    let options = fields.next()?;
    fields.find(|field| *field == b"-")?;
    let (fs_type, source) = (fields.next()?, fields.next()?);
    let super_options = fields.next().unwrap_or_default();
    let (major, minor) = str::from_utf8(device).ok()?.split_once(':')?;
    Some(Mount {
        id: str::from_utf8(id).ok()?.parse().ok()?,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        mountpoint: OsString::from_vec(unescape(mountpoint)).into(),
        root: OsString::from_vec(unescape(root)).into(),
        super_options: String::from_utf8_lossy(super_options).into_owned(),
        options: String::from_utf8_lossy(options).into_owned(),
        fs_type: String::from_utf8_lossy(&unescape(fs_type)).into_owned(),
        source: String::from_utf8_lossy(&unescape(source)).into_owned(),
    })
}

/// Undoes the kernel's `\040` (space, tab, newline, backslash, hash).
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, tail @ ..] = rest {
        match rest {
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = br"25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
30 1 8:1 / / rw,relatime shared:1 master:2 - ext4 /dev/sda1 rw
101 30 0:51 / /volumes rw,nosuid - fuse.efs-fuse 127.0.0.1:/export rw,user_id=0
102 30 0:52 / /my\040data\134x rw - fuse.efs-fuse [::1]:/a\040b rw
103 101 0:53 / /volumes rw - tmpfs tmpfs rw
rubbish
104 30 0:x / /bad rw - fuse.efs-fuse h:/ rw
";

    #[test]
    fn escapes_and_optional_fields_are_understood() {
        let table = MountTable::parse(TABLE);
        let mount = table.at(Path::new("/my data\\x"));
        assert!(mount.is_some_and(|mount| mount.is_ours()
            && mount.source == "[::1]:/a b"
            && mount.minor == 52));
        assert_eq!(
            table.at(Path::new("/")).map(|mount| mount.fs_type.as_str()),
            Some("ext4")
        );
    }

    #[test]
    fn of_stacked_mounts_the_last_is_seen() {
        let table = MountTable::parse(TABLE);
        assert_eq!(
            table
                .at(Path::new("/volumes"))
                .map(|mount| mount.fs_type.as_str()),
            Some("tmpfs")
        );
        assert_eq!(table.ours().count(), 2);
    }

    #[test]
    fn a_path_lies_in_the_mount_with_the_longest_place() {
        let table = MountTable::parse(TABLE);
        let source = |path| {
            table
                .containing(Path::new(path))
                .map(|mount| mount.source.as_str())
        };
        assert_eq!(source("/volumes/a/b"), Some("tmpfs"));
        assert_eq!(source("/my data\\x/c"), Some("[::1]:/a b"));
        assert_eq!(source("/volumesque"), Some("/dev/sda1"));
        let below = |path| table.below(Path::new(path)).count();
        assert_eq!((below("/volumes"), below("/")), (0, 4));
    }

    #[test]
    fn the_kernel_tells_whose_a_mount_is() {
        let table = MountTable::parse(TABLE);
        let user = |id| table.by_id(id).and_then(Mount::user);
        assert_eq!((user(101), user(103), user(30)), (Some(0), None, None));
        // What a user calls the device comes before, and cannot be taken for it.
        let line = br"7 1 0:9 / /m rw - fuse.efs-fuse x,user_id=0 rw,user_id=1000,group_id=0";
        let table = MountTable::parse(line);
        assert_eq!(table.by_id(7).and_then(Mount::user), Some(1000));
    }

    #[test]
    fn odd_escapes_stay_as_they_are() {
        assert_eq!(unescape(br"a\0"), br"a\0");
        assert_eq!(unescape(br"\9\040\777"), br"\9 \777");
        assert_eq!(unescape(b"\\"), b"\\");
    }

    #[test]
    fn the_real_list_has_a_root() -> io::Result<()> {
        assert!(MountTable::read()?.at(Path::new("/")).is_some());
        Ok(())
    }
}
