//! The mount that is at a place already, for who asks for the same once more.

use std::path::Path;

use super::found::Found;
use super::mountinfo::MountTable;
use super::place;
use crate::privilege;

/// A living mount of this user's, as its daemon has written it down.
#[derive(Debug, Clone)]
pub struct Standing {
    /// The server and the directory, `HOST:/dir`.
    pub device: String,
    /// The options, each as it was written.
    pub options: Vec<String>,
    /// Whether it can be written to now, which a remount changes.
    pub read_only: bool,
}

impl Standing {
    /// The one at `mountpoint`, in the mount namespace that this process mounts in.
    pub fn at(mountpoint: &Path) -> Option<Self> {
        let (mount, entry) = privilege::mounting(|| {
            let canonical = place::canonical(mountpoint).ok()?;
            let table = MountTable::read().ok()?;
            let mount = table.at(&canonical).filter(|mount| mount.is_ours())?;
            let entry = Found::of(mount)?.written()?.clone();
            Some((mount.clone(), entry))
        })?;
        Some(Self {
            device: entry.device,
            options: entry.options,
            read_only: mount.options.split(',').any(|option| option == "ro"),
        })
    }
}
