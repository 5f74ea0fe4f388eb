//! The tree as another host sees it: changes that no client of the double made.
//! They are stable at once and know no permissions.

use std::sync::Arc;
use std::time::Duration;

use super::Peer;
use super::args::Range;
use super::data::FileData;
use super::fs::{Dir, Kind, New, ROOT, Status, Time};
use super::ops_lock::bounds;
use super::proto::st;
use super::server::Server;

type Result<T> = std::result::Result<T, Status>;

/// Attributes of one inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) fileid: u64,
    pub(crate) generation: u64,
    /// nfs_ftype4.
    pub(crate) ftype: u32,
    pub(crate) size: u64,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) nlink: u32,
    pub(crate) change: u64,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
}

/// Paths are absolute; "/" is the root. Errors are nfsstat4.
pub(crate) struct PeerFs(pub(super) Arc<Peer>);

impl PeerFs {
    pub(crate) fn exists(&self, path: &str) -> bool {
        find(&self.0.server(), path).is_ok()
    }

    pub(crate) fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let server = self.0.server();
        let data = server.fs.node(find(&server, path)?)?.data()?;
        Ok(data.read(0, u32::try_from(data.size()).map_err(|_| st::FBIG)?))
    }

    /// True if a crash now would lose bytes of this file.
    pub(crate) fn has_unstable(&self, path: &str) -> Result<bool> {
        let server = self.0.server();
        Ok(server.fs.node(find(&server, path)?)?.data()?.has_unstable())
    }

    /// Replaces the content, in place if the file exists.
    pub(crate) fn write_file(&self, path: &str, content: &[u8]) -> Result<()> {
        let mut server = self.0.server();
        let id = match find(&server, path) {
            Ok(id) => id,
            Err(_) => make(&mut server, path, Kind::Reg(FileData::default()), 0o644)?,
        };
        let data = server.fs.node_mut(id)?.data_mut()?;
        data.truncate(0);
        data.write(0, content, true);
        server.fs.touch(id, true);
        Ok(())
    }

    /// A directory for the disk caches of this double's hosts, which goes with it.
    pub(crate) fn cache_dir(&self) -> std::path::PathBuf {
        let mut server = self.0.server();
        let make = || tempfile::tempdir().expect("temporary directory");
        server.fs.caches.get_or_insert_with(make).path().to_owned()
    }

    /// From now on the change attribute is the time, in ticks of this length.
    pub(crate) fn make_changes_coarse(&self, tick: Duration) {
        self.0.server().fs.coarse = Some(tick);
    }

    /// Overwrites bytes in the middle of a file.
    pub(crate) fn write_at(&self, path: &str, offset: u64, content: &[u8]) -> Result<()> {
        self.change(path, true, |node| {
            node.data_mut()?.write(offset, content, true);
            Ok(())
        })
    }

    pub(crate) fn truncate(&self, path: &str, size: u64) -> Result<()> {
        self.change(path, true, |node| {
            node.data_mut()?.truncate(size);
            Ok(())
        })
    }

    pub(crate) fn mkdir(&self, path: &str) -> Result<()> {
        make(&mut self.0.server(), path, Kind::Dir(Dir::default()), 0o755).map(drop)
    }

    pub(crate) fn symlink(&self, target: &str, path: &str) -> Result<()> {
        let kind = Kind::Lnk(target.as_bytes().to_vec());
        make(&mut self.0.server(), path, kind, 0o777).map(drop)
    }

    pub(crate) fn readlink(&self, path: &str) -> Result<String> {
        let server = self.0.server();
        match &server.fs.node(find(&server, path)?)?.kind {
            Kind::Lnk(text) => Ok(String::from_utf8_lossy(text).into_owned()),
            _ => Err(st::INVAL),
        }
    }

    pub(crate) fn link(&self, file: &str, path: &str) -> Result<()> {
        let mut server = self.0.server();
        let id = find(&server, file)?;
        let (dir, name) = parent(&server, path)?;
        server.fs.link(id, dir, name)
    }

    /// Shows an object under that fileid, and as one of that file system (1 is the root's),
    /// as what is made in it from then on.
    pub(crate) fn number(&self, path: &str, fsid: u64, fileid: u64) -> Result<()> {
        self.change(path, false, |node| {
            (node.fsid, node.fileid) = (fsid, fileid);
            Ok(())
        })
    }

    /// Removes a file or an empty directory.
    pub(crate) fn remove(&self, path: &str) -> Result<()> {
        let mut server = self.0.server();
        let (dir, name) = parent(&server, path)?;
        server.fs.remove(dir, name)
    }

    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<()> {
        let mut server = self.0.server();
        let (from, to) = (parent(&server, from)?, parent(&server, to)?);
        server.fs.rename(from, to)
    }

    /// Names in byte order; those that are not UTF-8 lossily.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<String>> {
        let server = self.0.server();
        let names = server.fs.node(find(&server, path)?)?.dir()?.names();
        Ok(names
            .map(|n| String::from_utf8_lossy(n).into_owned())
            .collect())
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) -> Result<()> {
        self.change(path, false, |node| {
            node.mode = mode & 0o7777;
            Ok(())
        })
    }

    pub(crate) fn chown(&self, path: &str, uid: u32, gid: u32) -> Result<()> {
        self.change(path, false, |node| {
            (node.uid, node.gid) = (uid, gid);
            Ok(())
        })
    }

    /// Makes an object look as if it had been made so long ago.
    pub(crate) fn age(&self, path: &str, seconds: i64) -> Result<()> {
        let mut server = self.0.server();
        let id = find(&server, path)?;
        let node = server.fs.node_mut(id)?;
        for time in [&mut node.atime, &mut node.mtime, &mut node.ctime] {
            time.secs -= seconds;
        }
        Ok(())
    }

    pub(crate) fn stat(&self, path: &str) -> Result<Stat> {
        let server = self.0.server();
        let node = server.fs.node(find(&server, path)?)?;
        Ok(Stat {
            fileid: node.fileid,
            generation: node.generation,
            ftype: node.ftype(),
            size: node.size(),
            mode: node.mode,
            uid: node.uid,
            gid: node.gid,
            nlink: node.nlink,
            change: node.change,
            atime: node.atime,
            mtime: node.mtime,
            ctime: node.ctime,
        })
    }

    /// Takes a byte-range lock as a host that is not a client of this double.
    /// A length of `u64::MAX` is "to the end". Nobody's lock stops it.
    pub(crate) fn lock(&self, path: &str, offset: u64, length: u64, write: bool) -> Result<()> {
        self.set_lock(path, offset, length, Some(write))
    }

    pub(crate) fn unlock(&self, path: &str, offset: u64, length: u64) -> Result<()> {
        self.set_lock(path, offset, length, None)
    }

    fn set_lock(&self, path: &str, offset: u64, length: u64, write: Option<bool>) -> Result<()> {
        let (start, end) = bounds(Range { offset, length })?;
        let mut server = self.0.server();
        let id = find(&server, path)?;
        server.state.set_foreign(id, start, end, write);
        Ok(())
    }

    /// (first byte, last byte, exclusive) of every lock on a file.
    pub(crate) fn locks(&self, path: &str) -> Result<Vec<(u64, u64, bool)>> {
        let server = self.0.server();
        let locks = server.state.locks_on(find(&server, path)?);
        Ok(locks.iter().map(|l| (l.start, l.end, l.write)).collect())
    }

    fn change(
        &self,
        path: &str,
        content: bool,
        edit: impl FnOnce(&mut super::fs::Node) -> Result<()>,
    ) -> Result<()> {
        let mut server = self.0.server();
        let id = find(&server, path)?;
        edit(server.fs.node_mut(id)?)?;
        server.fs.touch(id, content);
        Ok(())
    }
}

fn find(server: &Server, path: &str) -> Result<u64> {
    path.split('/')
        .filter(|part| !part.is_empty())
        .try_fold(ROOT, |dir, name| server.fs.lookup(dir, name.as_bytes()))
}

/// The directory of `path` and the last name in it.
fn parent<'p>(server: &Server, path: &'p str) -> Result<(u64, &'p [u8])> {
    let (dir, name) = path.rsplit_once('/').ok_or(st::INVAL)?;
    if name.is_empty() {
        return Err(st::INVAL);
    }
    Ok((find(server, dir)?, name.as_bytes()))
}

fn make(server: &mut Server, path: &str, kind: Kind, mode: u32) -> Result<u64> {
    let (dir, name) = parent(server, path)?;
    let new = New {
        kind,
        mode,
        uid: 0,
        gid: 0,
    };
    server.fs.create(dir, name, new)
}
