//! A FUSE file system that does nothing: reads give zeros, writes are
//! dropped. What it reaches, no FUSE file system exceeds on this machine. It
//! agrees with the kernel on the same as the real mount.

use std::ffi::OsStr;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, Session, SessionACL, WriteFlags,
};

use crate::host::{Context, Result, eventually, go_on};
use crate::mount::Mountpoint;

/// The one file there is.
const NAME: &str = "zeros";
const FILE: INodeNo = INodeNo(2);
const TTL: Duration = Duration::from_secs(3600);
const SIZE: u64 = 1 << 40;
static ZEROS: [u8; 1 << 20] = [0; 1 << 20];

struct Null;

fn attributes(ino: INodeNo) -> FileAttr {
    let directory = ino == INodeNo::ROOT;
    FileAttr {
        ino,
        size: if directory { 0 } else { SIZE },
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory {
            FileType::Directory
        } else {
            FileType::RegularFile
        },
        perm: 0o777,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 1 << 20,
        flags: 0,
    }
}

impl Filesystem for Null {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for flag in [
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
        ] {
            let _ = config.add_capabilities(flag);
        }
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(128);
        let _ = config.set_congestion_threshold(128);
        Ok(())
    }

    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if name == NAME {
            reply.entry(&TTL, &attributes(FILE), Generation(0));
        } else {
            reply.error(Errno::ENOENT);
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&ZEROS[..ZEROS.len().min(size as usize)]);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.written(data.len() as u32);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn getxattr(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _name: &OsStr,
        _size: u32,
        reply: fuser::ReplyXattr,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

/// Serves it until it is unmounted.
pub(crate) fn serve(mountpoint: &Path) -> Result<()> {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("null".into()),
        MountOption::DefaultPermissions,
    ];
    config.acl = SessionACL::All;
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, |n| n.get().min(4)));
    config.clone_fd = config.n_threads > Some(1);
    Session::new(Null, mountpoint, &config)
        .and_then(Session::run)
        .context("the null file system")
}

/// The null file system in a process of its own.
#[derive(Debug)]
pub(crate) struct NullMount {
    process: Child,
    dir: Mountpoint,
}

impl NullMount {
    pub(crate) fn new() -> Result<Self> {
        go_on()?;
        let dir = Mountpoint::new()?;
        let process = Command::new(std::env::current_exe().context("this program")?)
            .arg("--null")
            .arg(dir.path())
            .stdin(Stdio::null())
            .process_group(0)
            .spawn()
            .context("the null file system")?;
        let null = Self { process, dir };
        if !eventually(Duration::from_secs(10), || null.file().exists()) {
            return Err("the null file system does not come up".into());
        }
        set_read_ahead(null.dir.path())?;
        Ok(null)
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }
}

impl Drop for NullMount {
    fn drop(&mut self) {
        use std::os::unix::ffi::OsStrExt;
        if let Ok(path) = std::ffi::CString::new(self.dir.path().as_os_str().as_bytes()) {
            // SAFETY: umount2 reads a C string. Lazily: what is open in it ends
            // with this program.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The kernel's read-ahead as the real mount sets it.
fn set_read_ahead(mountpoint: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata(mountpoint)
        .context("the null file system")?
        .dev();
    let (major, minor) = (libc::major(device), libc::minor(device));
    let knob = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    std::fs::write(&knob, "8192").context(knob)
}
