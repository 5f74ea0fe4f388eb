//! The cache on this host's disk (`-o cache=`), as a mount makes it.
//!
//! What keeps file systems apart in one directory is their identity: of EFS the id of the file
//! system; of another server its name as it was given, its port, and what it calls itself (owner and
//! scope, RFC 8881 §2.10.4). To that come the fsid of the root, and the access point: who comes by
//! another one may be somebody else there.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::error::MountError;
use super::launch::MountRequest;
use crate::disk_cache::{self, DiskCache, FileSystemId};
use crate::efs::device::DeviceKind;
use crate::nfs::Client;
use crate::quoting;
use crate::telemetry::Metrics;

/// Makes sure that the directory of the cache is there and fit, before anything is asked of a
/// server.
///
/// # Errors
/// It is not, and why.
pub(super) fn prepare(request: &MountRequest) -> Result<(), MountError> {
    let Some(dir) = &request.options.disk_cache else {
        return Ok(());
    };
    let what = || format!("using {} as cache", quoting::path(dir));
    let remedy = "a directory of a local disk that is yours alone (mode 0700), in cache=";
    let unfit = |why: &str| MountError::mount(what(), why).remedy(remedy);
    if is_below(dir, &request.mountpoint) {
        return Err(unfit("it is in the mount itself"));
    }
    disk_cache::prepare(dir).map_err(|why| unfit(&why))
}

/// The directory, or what it will be made in, is below the mount point.
fn is_below(dir: &Path, mountpoint: &Path) -> bool {
    let canonical = dir.ancestors().find_map(|above| above.canonicalize().ok());
    dir.starts_with(mountpoint) || canonical.is_some_and(|dir| dir.starts_with(mountpoint))
}

/// The cache of a mount.
#[derive(Clone)]
pub(super) enum MountCache {
    /// None was asked for.
    None,
    /// It has to do without, and why.
    Off(String),
    /// There is one.
    On(Arc<DiskCache>),
}

impl MountCache {
    /// The cache, if there is one.
    pub(super) fn get(&self) -> Option<&Arc<DiskCache>> {
        match self {
            Self::On(cache) => Some(cache),
            Self::None | Self::Off(_) => None,
        }
    }

    /// What `status` shows of it.
    pub(super) fn status(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Off(why) => json!({"off": why}),
            Self::On(cache) => cache.status(),
        }
    }
}

/// The cache of a mount whose server is known.
pub(super) fn open(request: &MountRequest, client: &Client, metrics: &Metrics) -> MountCache {
    let Some(config) = request.options.disk_cache_config() else {
        return MountCache::None;
    };
    match DiskCache::open(&config, identity(request, client), metrics) {
        Ok(cache) => MountCache::On(cache),
        Err(why) => {
            let dir = quoting::path(&config.dir);
            tracing::warn!(
                "there is no cache in {dir}: {why}. What is read comes from the server. Try: free space \
                 on its disk, or another cache=, and mount again"
            );
            MountCache::Off(format!("there is no cache in {dir}: {why}"))
        }
    }
}

fn identity(request: &MountRequest, client: &Client) -> FileSystemId {
    let device = &request.device;
    let (major, minor) = client.fs().root_attrs.fsid;
    let fsid = [major.to_le_bytes(), minor.to_le_bytes()].concat();
    let point = request.options.server.access_point.as_deref();
    let point = point.unwrap_or_default().as_bytes();
    match &device.kind {
        DeviceKind::FileSystemId { fs_id } | DeviceKind::EfsName { fs_id, .. } => {
            FileSystemId::of(&[b"efs", fs_id.as_bytes(), &fsid, point])
        }
        _ => {
            let server = client.server();
            let port = request.options.server.port.to_le_bytes();
            let host = device.host.as_bytes();
            FileSystemId::of(&[host, &port, &server.major, &server.scope, &fsid, point])
        }
    }
}
