//! What kind of server the double is. The default is as close to EFS as is
//! known: 16 operations a compound, 128-byte handles, no callbacks.

use std::time::Duration;

/// How WRITE answers a request for UNSTABLE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommitMode {
    /// Unstable stays unstable, and a crash loses it.
    Unstable,
    /// Everything is FILE_SYNC; there is never anything to commit.
    FileSync,
}

/// Fixed properties of one [`super::Peer`]; the setters of `Peer` change the few
/// that may move during a test.
#[derive(Debug, Clone)]
pub(crate) struct PeerConfig {
    /// Upper limits for the fore channel; CREATE_SESSION lowers to these.
    pub(crate) max_ops: u32,
    pub(crate) max_request: u32,
    pub(crate) max_response: u32,
    pub(crate) max_cached: u32,
    pub(crate) slots: u32,
    /// Lease and grace period in seconds of tokio's clock.
    pub(crate) lease_s: u32,
    pub(crate) grace_s: u32,
    /// eir_flags without CONFIRMED_R.
    pub(crate) exchange_flags: u32,
    /// eir_server_scope.
    pub(crate) scope: &'static str,
    /// csr_flags that are granted if asked for.
    pub(crate) session_flags: u32,
    /// A connection may use a session without BIND_CONN_TO_SESSION.
    pub(crate) implicit_bind: bool,
    /// A retry that differs from its original gets SEQ_FALSE_RETRY.
    pub(crate) detect_false_retry: bool,
    /// Handles are padded to this many bytes (24 to 128).
    pub(crate) fh_len: usize,
    pub(crate) maxread: u32,
    pub(crate) maxwrite: u32,
    pub(crate) commit_mode: CommitMode,
    /// Data of a WRITE that begin in a later page of their request than the first are taken from
    /// the beginning of that page (as Linux 6.1 does).
    pub(crate) misplaces_later_data: bool,
    /// OPEN says PRESERVE_UNLINKED.
    pub(crate) preserve_unlinked: bool,
    /// A removed file really stays until its last CLOSE.
    pub(crate) keep_unlinked: bool,
    /// A removed directory still has attributes, and no names: NOENT instead of STALE
    /// (as ganesha answers for a while).
    pub(crate) keep_removed_dirs: bool,
    /// Directory operations answer with an atomic change_info4.
    pub(crate) atomic_cinfo: bool,
    /// Who is not root takes setuid and setgid from a file by setting its size.
    pub(crate) kills_privileges: bool,
    /// EXCLUSIVE creates keep their verifier in atime and mtime, and attrset
    /// says so (as ganesha does).
    pub(crate) exclusive_in_times: bool,
    /// And no longer, once those were set, or moved by a WRITE.
    pub(crate) exclusive_until_times: bool,
    /// READDIR stops after this many entries.
    pub(crate) readdir_page_entries: u32,
    /// READDIR lists the first of each under the name of the second.
    pub(crate) disguised: Vec<(&'static str, &'static [u8])>,
    /// Cookies are hashes of this many bits (3 to 64).
    pub(crate) cookie_bits: u32,
    /// Names and link targets that are not UTF-8 are INVAL.
    pub(crate) utf8_only: bool,
    /// CREATE makes device nodes (EFS does not).
    pub(crate) devices: bool,
    pub(crate) maxlink: u32,
    /// Bytes; WRITE and SETATTR beyond get FBIG.
    pub(crate) max_file_size: u64,
    /// A removed file's id is used again, with the next generation.
    pub(crate) reuse_fileids: bool,
    /// Attributes that supported_attrs leaves out.
    pub(crate) hidden_attrs: Vec<u32>,
    /// Every reply comes this long after its request.
    pub(crate) latency: Duration,
    /// Replies are cut into record fragments of this size; 0: one fragment.
    pub(crate) reply_fragment: usize,
    /// First bytes of the epoch: two peers with the same seed behave alike.
    pub(crate) seed: u32,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            max_ops: 16,
            max_request: 1_049_620,
            max_response: 1_049_480,
            max_cached: 8192,
            slots: 64,
            lease_s: 90,
            grace_s: 90,
            exchange_flags: 0x1_0000,
            scope: "efs-double-scope",
            session_flags: 0,
            implicit_bind: true,
            detect_false_retry: true,
            fh_len: 128,
            maxread: 1 << 20,
            maxwrite: 1 << 20,
            commit_mode: CommitMode::Unstable,
            misplaces_later_data: true,
            preserve_unlinked: false,
            keep_unlinked: true,
            keep_removed_dirs: false,
            atomic_cinfo: false,
            kills_privileges: true,
            exclusive_in_times: false,
            exclusive_until_times: false,
            readdir_page_entries: u32::MAX,
            disguised: Vec::new(),
            cookie_bits: 63,
            utf8_only: false,
            devices: false,
            maxlink: 177,
            max_file_size: 52_673_613_135_872,
            reuse_fileids: false,
            hidden_attrs: Vec::new(),
            latency: Duration::ZERO,
            reply_fragment: 0,
            seed: 0x5eed,
        }
    }
}
