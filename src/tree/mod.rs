//! Whole directory trees over NFS, without a mount: `efs-fuse du` and
//! `efs-fuse rm`.
//!
//! ```text
//! walk      listing: several directories a compound, many compounds at once
//!   ├─► measure   what a tree takes
//!   └─► remove    takes it away: several names a compound
//! ```
//!
//! A walk goes by file handles, as the listings gave them. So a name that
//! becomes a symbolic link meanwhile leads nowhere else, and a directory of
//! another file system is seen by its fsid and never entered.
//!
//! What runs at the same time is bounded by the session's slots; what is kept
//! in memory by [`walk::SPARE`] open directories, one listing page and the
//! subdirectories of each.

pub mod measure;
pub mod progress;
pub mod remove;
mod walk;

use std::sync::Arc;

use crate::nfs::proto::attrs::Attributes;
use crate::nfs::proto::types::{FileHandle, FileType};
use crate::nfs::{Client, NfsError};
use crate::rpc::auth::Credential;

/// Where a tree hangs: a directory of the server, and the name in it.
#[derive(Debug, Clone)]
pub struct Top {
    /// The directory that holds it; for the root of the file system itself.
    pub parent: FileHandle,
    /// Its name there; empty for the root itself.
    pub name: Vec<u8>,
    /// The object.
    pub handle: FileHandle,
    /// Its attributes.
    pub attrs: Attributes,
}

impl Top {
    /// Looks up `name` in the root that `client` has found; the root itself if
    /// `name` is empty. `None`: there is no such name.
    ///
    /// # Errors
    /// The server's.
    pub async fn find(
        client: &Arc<Client>,
        cred: &Credential,
        name: &[u8],
    ) -> Result<Option<Self>, NfsError> {
        let parent = client.fs().root.clone();
        if name.is_empty() {
            return Ok(Some(Self {
                handle: parent.clone(),
                attrs: client.fs().root_attrs.clone(),
                parent,
                name: Vec::new(),
            }));
        }
        let found = client.lookup(cred, &parent, name).await?;
        Ok(found.object.map(|(handle, attrs)| Self {
            parent,
            name: name.to_owned(),
            handle,
            attrs,
        }))
    }

    /// It is a directory, and not a link to one.
    pub fn is_directory(&self) -> bool {
        self.attrs.kind == Some(FileType::Directory)
    }
}

/// `dir/name`.
fn joined(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match dir {
        [] => name.to_owned(),
        [.., b'/'] => [dir, name].concat(),
        _ => [dir, b"/", name].concat(),
    }
}
