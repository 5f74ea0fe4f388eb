//! Finding the root of a mount, and what its file system can do.

use std::sync::Arc;
use std::time::Duration;

use super::super::client::Client;
use super::super::proto::attrs::{self, AttrSet};
use super::super::proto::ops::Op;
use super::super::proto::reply::{NfsError, Reply};
use super::super::proto::types::FileHandle;
use super::super::server::FileSystem;
use super::super::session::slots::Class;
use crate::rpc::auth::Credential;

impl Client {
    /// What is known of the mounted file system.
    ///
    /// # Panics
    /// Before [`Client::find_root`] has succeeded.
    pub fn fs(&self) -> &FileSystem {
        self.fs
            .get()
            .expect("the root is found before anything else")
    }

    /// Walks from the server's root along `path` and learns about the file
    /// system there. Round trips: one for every twelve components or part, and
    /// one.
    ///
    /// # Errors
    /// The server's, for the component that failed: [`NfsError::Status`] of
    /// LOOKUP for a component that is not there.
    pub async fn find_root(
        self: &Arc<Self>,
        cred: &Credential,
        path: &[u8],
    ) -> Result<(), NfsError> {
        let components: Vec<&[u8]> = path
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".")
            .collect();
        let mut at: Option<FileHandle> = None;
        // Room for SEQUENCE, PUTFH and GETFH.
        let session = self.session().await?;
        let at_once = (session.attrs.max_ops as usize - 3).max(1);
        let mut chunks: Vec<&[&[u8]]> = components.chunks(at_once).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }
        for names in chunks {
            let mut reply = self
                .call(cred, Class::Metadata, |c| {
                    match &at {
                        None => c.put_root(),
                        Some(handle) => c.put(handle),
                    };
                    for name in names {
                        c.lookup(name);
                    }
                    c.get_handle();
                })
                .await?;
            reply.ok(if at.is_some() {
                Op::PutFh
            } else {
                Op::PutRootFh
            })?;
            for _ in names {
                reply.ok(Op::Lookup)?;
            }
            at = Some(reply.handle()?);
        }
        let root = at.ok_or(NfsError::Unfit("no root"))?;
        self.learn(cred, root).await
    }

    async fn learn(self: &Arc<Self>, cred: &Credential, root: FileHandle) -> Result<(), NfsError> {
        let take = |reply: &mut Reply| -> Result<_, NfsError> {
            reply.ok(Op::PutFh)?;
            let fs = reply.attrs()?.fs.unwrap_or_default();
            Ok((fs, reply.attrs()?))
        };
        let mut reply = self
            .call(cred, Class::Metadata, |c| {
                c.put(&root)
                    .get_attrs(attrs::FILE_SYSTEM)
                    .get_attrs(attrs::OBJECT);
            })
            .await?;
        let (fs, root_attrs) = take(&mut reply)?;
        if fs.lease_time > 0 {
            self.fore.lease.send_replace(fs.lease_time);
            let lease = Duration::from_secs(fs.lease_time.into());
            self.fore.channel.set_lease(lease);
        }
        let most = |server: u64| match server {
            0 => u32::MAX,
            some => u32::try_from(some).unwrap_or(u32::MAX),
        };
        let fs = FileSystem {
            root,
            root_attrs,
            supported: fs.supported,
            exclcreat: fs.exclcreat.and(fs.supported),
            max_read: most(fs.max_read),
            max_write: most(fs.max_write),
            max_file_size: match fs.max_file_size {
                0 => u64::MAX,
                some => some,
            },
            max_name: if fs.max_name == 0 {
                255
            } else {
                fs.max_name.min(255)
            },
        };
        // A second mount of the same client keeps the first answer.
        let _ = self.fs.set(fs);
        self.record();
        let session = self.session().await?;
        self.fit_io(&session.attrs);
        Ok(())
    }

    /// What of `wanted` the server has.
    pub(super) fn supported(&self, wanted: AttrSet) -> AttrSet {
        wanted.and(self.fs().supported)
    }

    /// The attributes of an object, as far as the server has them.
    pub(super) fn object(&self) -> AttrSet {
        self.supported(attrs::OBJECT)
    }
}
