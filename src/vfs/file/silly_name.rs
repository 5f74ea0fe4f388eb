//! The hidden name of a file that was removed while it is open here.

use std::sync::Arc;

use crate::nfs::proto::types::FileHandle;
use crate::rpc::auth::Credential;

/// Where a removed file is kept while it is open. `D` is how its directory is known, of which
/// a file knows nothing more.
#[derive(Clone, Debug)]
pub(in crate::vfs) struct SillyName<D> {
    /// The directory.
    pub(in crate::vfs) dir: D,
    /// The name in it.
    pub(in crate::vfs) name: Vec<u8>,
    /// The file.
    pub(in crate::vfs) file: FileHandle,
    /// In whose name it is removed: who removed it first, or has moved it last.
    pub(in crate::vfs) cred: Arc<Credential>,
    /// Who removed it first, if another has moved it: of the two, each may lack a right.
    pub(in crate::vfs) first: Option<Arc<Credential>>,
    /// Where it is instead, if the RENAME from there was not executed: the process that sent that
    /// was killed.
    pub(in crate::vfs) was: Option<(D, Vec<u8>)>,
}

impl<D: Clone> SillyName<D> {
    /// The same at the place that it may not have left.
    pub(in crate::vfs) fn as_it_was(&self) -> Option<Self> {
        let (dir, name) = self.was.clone()?;
        let was = None;
        let same = self.clone();
        Some(Self {
            dir,
            name,
            was,
            ..same
        })
    }
}
