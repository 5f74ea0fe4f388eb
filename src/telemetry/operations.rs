//! The names under which operations are counted: one table for NFSv4.1, one
//! for FUSE, one for the caches. The names are JSON keys that scripts rely on.

/// The first NFSv4.1 operation number (ACCESS).
pub(super) const NFS_FIRST: u32 = 3;

/// Names of the NFSv4.1 operations 3 to 58 (RFC 8881 section 16.2.1), by number.
pub(super) const NFS_NAMES: [&str; 56] = [
    "ACCESS",
    "CLOSE",
    "COMMIT",
    "CREATE",
    "DELEGPURGE",
    "DELEGRETURN",
    "GETATTR",
    "GETFH",
    "LINK",
    "LOCK",
    "LOCKT",
    "LOCKU",
    "LOOKUP",
    "LOOKUPP",
    "NVERIFY",
    "OPEN",
    "OPENATTR",
    "OPEN_CONFIRM",
    "OPEN_DOWNGRADE",
    "PUTFH",
    "PUTPUBFH",
    "PUTROOTFH",
    "READ",
    "READDIR",
    "READLINK",
    "REMOVE",
    "RENAME",
    "RENEW",
    "RESTOREFH",
    "SAVEFH",
    "SECINFO",
    "SETATTR",
    "SETCLIENTID",
    "SETCLIENTID_CONFIRM",
    "VERIFY",
    "WRITE",
    "RELEASE_LOCKOWNER",
    "BACKCHANNEL_CTL",
    "BIND_CONN_TO_SESSION",
    "EXCHANGE_ID",
    "CREATE_SESSION",
    "DESTROY_SESSION",
    "FREE_STATEID",
    "GET_DIR_DELEGATION",
    "GETDEVICEINFO",
    "GETDEVICELIST",
    "LAYOUTCOMMIT",
    "LAYOUTGET",
    "LAYOUTRETURN",
    "SECINFO_NO_NAME",
    "SEQUENCE",
    "SET_SSV",
    "TEST_STATEID",
    "WANT_DELEGATION",
    "DESTROY_CLIENTID",
    "RECLAIM_COMPLETE",
];

/// The name of any operation that is not in [`NFS_NAMES`].
pub(super) const NFS_OTHER: &str = "OTHER";

macro_rules! named {
    ($(#[$doc:meta])* $kind:ident { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(usize)]
        pub enum $kind { $($(#[$variant_doc])* #[doc = concat!("Counted as `", $name, "`.")] $variant),+ }

        impl $kind {
            /// All of them, in order of their discriminants.
            pub const ALL: &'static [$kind] = &[$($kind::$variant),+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();

            /// The key in `stats --json`.
            pub const fn name(self) -> &'static str {
                match self { $($kind::$variant => $name),+ }
            }
        }
    };
}

named! {
    /// A FUSE request as the kernel sends it.
    FuseOp {
        Lookup = "lookup",
        Forget = "forget",
        GetAttr = "getattr",
        SetAttr = "setattr",
        ReadLink = "readlink",
        MkNod = "mknod",
        MkDir = "mkdir",
        Unlink = "unlink",
        RmDir = "rmdir",
        Symlink = "symlink",
        Rename = "rename",
        Link = "link",
        Open = "open",
        Create = "create",
        Read = "read",
        Write = "write",
        Flush = "flush",
        Fsync = "fsync",
        Release = "release",
        OpenDir = "opendir",
        ReadDir = "readdir",
        ReadDirPlus = "readdirplus",
        ReleaseDir = "releasedir",
        FsyncDir = "fsyncdir",
        StatFs = "statfs",
        Access = "access",
        GetLk = "getlk",
        SetLk = "setlk",
        Ioctl = "ioctl",
    }
}

named! {
    /// A cache whose hits and misses are counted.
    Cache {
        /// Attributes of inodes.
        Attr = "attr",
        /// Names, including negative ones.
        Dentry = "dentry",
        /// File data.
        Page = "page",
        /// Directory listings.
        Dir = "dir",
        /// What the server allows whom.
        Access = "access",
        /// Opens for which nobody was asked (`nocto`).
        Open = "open",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nfs_names_stand_at_the_numbers_of_rfc_8881() {
        for (number, name) in [
            (3, "ACCESS"),
            (9, "GETATTR"),
            (18, "OPEN"),
            (25, "READ"),
            (38, "WRITE"),
            (42, "EXCHANGE_ID"),
            (53, "SEQUENCE"),
            (58, "RECLAIM_COMPLETE"),
        ] {
            assert_eq!(NFS_NAMES[(number - NFS_FIRST) as usize], name);
        }
    }

    #[test]
    fn discriminants_index_the_list_of_all() {
        for (index, op) in FuseOp::ALL.iter().enumerate() {
            assert_eq!(*op as usize, index);
        }
        for (index, cache) in Cache::ALL.iter().enumerate() {
            assert_eq!(*cache as usize, index);
        }
    }
}
