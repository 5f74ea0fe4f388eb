//! The numbers of NFSv4.1 (RFC 5662) which the double uses, typed in anew.

/// Operation numbers.
pub(crate) mod op {
    macro_rules! ops {
        ($($name:ident = $number:expr),* $(,)?) => {
            $(pub(crate) const $name: u32 = $number;)*

            /// The name of an operation for messages.
            pub(crate) fn name(number: u32) -> &'static str {
                match number {
                    $($number => stringify!($name),)*
                    _ => "?",
                }
            }
        };
    }
    ops! {
        ACCESS = 3, CLOSE = 4, COMMIT = 5, CREATE = 6, DELEGPURGE = 7, DELEGRETURN = 8, GETATTR = 9,
        GETFH = 10, LINK = 11, LOCK = 12, LOCKT = 13, LOCKU = 14, LOOKUP = 15, LOOKUPP = 16,
        NVERIFY = 17, OPEN = 18, OPENATTR = 19, OPEN_DOWNGRADE = 21, PUTFH = 22, PUTPUBFH = 23,
        PUTROOTFH = 24, READ = 25, READDIR = 26, READLINK = 27, REMOVE = 28, RENAME = 29,
        RESTOREFH = 31, SAVEFH = 32, SECINFO = 33, SETATTR = 34, VERIFY = 37, WRITE = 38,
        BACKCHANNEL_CTL = 40, BIND_CONN_TO_SESSION = 41, EXCHANGE_ID = 42, CREATE_SESSION = 43,
        DESTROY_SESSION = 44, FREE_STATEID = 45, GET_DIR_DELEGATION = 46, GETDEVICEINFO = 47,
        GETDEVICELIST = 48, LAYOUTCOMMIT = 49, LAYOUTGET = 50, LAYOUTRETURN = 51,
        SECINFO_NO_NAME = 52, SEQUENCE = 53, SET_SSV = 54, TEST_STATEID = 55,
        WANT_DELEGATION = 56, DESTROY_CLIENTID = 57, RECLAIM_COMPLETE = 58, ILLEGAL = 10044,
    }
}

/// nfsstat4.
pub(crate) mod st {
    pub(crate) const OK: u32 = 0;
    pub(crate) const PERM: u32 = 1;
    pub(crate) const NOENT: u32 = 2;
    pub(crate) const IO: u32 = 5;
    pub(crate) const ACCESS: u32 = 13;
    pub(crate) const EXIST: u32 = 17;
    pub(crate) const NOTDIR: u32 = 20;
    pub(crate) const ISDIR: u32 = 21;
    pub(crate) const INVAL: u32 = 22;
    pub(crate) const FBIG: u32 = 27;
    pub(crate) const NOSPC: u32 = 28;
    pub(crate) const ROFS: u32 = 30;
    pub(crate) const MLINK: u32 = 31;
    pub(crate) const NAMETOOLONG: u32 = 63;
    pub(crate) const NOTEMPTY: u32 = 66;
    pub(crate) const DQUOT: u32 = 69;
    pub(crate) const STALE: u32 = 70;
    pub(crate) const BADHANDLE: u32 = 10001;
    pub(crate) const BAD_COOKIE: u32 = 10003;
    pub(crate) const NOTSUPP: u32 = 10004;
    pub(crate) const TOOSMALL: u32 = 10005;
    pub(crate) const SERVERFAULT: u32 = 10006;
    pub(crate) const BADTYPE: u32 = 10007;
    pub(crate) const DELAY: u32 = 10008;
    pub(crate) const SAME: u32 = 10009;
    pub(crate) const DENIED: u32 = 10010;
    pub(crate) const EXPIRED: u32 = 10011;
    pub(crate) const GRACE: u32 = 10013;
    pub(crate) const CLID_INUSE: u32 = 10017;
    pub(crate) const NOFILEHANDLE: u32 = 10020;
    pub(crate) const MINOR_VERS_MISMATCH: u32 = 10021;
    pub(crate) const STALE_CLIENTID: u32 = 10022;
    pub(crate) const STALE_STATEID: u32 = 10023;
    pub(crate) const OLD_STATEID: u32 = 10024;
    pub(crate) const BAD_STATEID: u32 = 10025;
    pub(crate) const NOT_SAME: u32 = 10027;
    pub(crate) const SYMLINK: u32 = 10029;
    pub(crate) const RESTOREFH: u32 = 10030;
    pub(crate) const ATTRNOTSUPP: u32 = 10032;
    pub(crate) const NO_GRACE: u32 = 10033;
    pub(crate) const RECLAIM_BAD: u32 = 10034;
    pub(crate) const RECLAIM_CONFLICT: u32 = 10035;
    pub(crate) const BADXDR: u32 = 10036;
    pub(crate) const LOCKS_HELD: u32 = 10037;
    pub(crate) const OPENMODE: u32 = 10038;
    pub(crate) const BADOWNER: u32 = 10039;
    pub(crate) const BADCHAR: u32 = 10040;
    pub(crate) const BADNAME: u32 = 10041;
    pub(crate) const OP_ILLEGAL: u32 = 10044;
    pub(crate) const ADMIN_REVOKED: u32 = 10047;
    pub(crate) const BADSESSION: u32 = 10052;
    pub(crate) const BADSLOT: u32 = 10053;
    pub(crate) const COMPLETE_ALREADY: u32 = 10054;
    pub(crate) const CONN_NOT_BOUND_TO_SESSION: u32 = 10055;
    pub(crate) const BACK_CHAN_BUSY: u32 = 10057;
    pub(crate) const SEQ_MISORDERED: u32 = 10063;
    pub(crate) const SEQUENCE_POS: u32 = 10064;
    pub(crate) const REQ_TOO_BIG: u32 = 10065;
    pub(crate) const REP_TOO_BIG: u32 = 10066;
    pub(crate) const REP_TOO_BIG_TO_CACHE: u32 = 10067;
    pub(crate) const RETRY_UNCACHED_REP: u32 = 10068;
    pub(crate) const TOO_MANY_OPS: u32 = 10070;
    pub(crate) const OP_NOT_IN_SESSION: u32 = 10071;
    pub(crate) const CLIENTID_BUSY: u32 = 10074;
    pub(crate) const SEQ_FALSE_RETRY: u32 = 10076;
    pub(crate) const BAD_HIGH_SLOT: u32 = 10077;
    pub(crate) const NOT_ONLY_OP: u32 = 10081;
    pub(crate) const WRONG_TYPE: u32 = 10083;
}

/// Attribute numbers.
pub(crate) mod fattr {
    pub(crate) const SUPPORTED_ATTRS: u32 = 0;
    pub(crate) const TYPE: u32 = 1;
    pub(crate) const FH_EXPIRE_TYPE: u32 = 2;
    pub(crate) const CHANGE: u32 = 3;
    pub(crate) const SIZE: u32 = 4;
    pub(crate) const LINK_SUPPORT: u32 = 5;
    pub(crate) const SYMLINK_SUPPORT: u32 = 6;
    pub(crate) const NAMED_ATTR: u32 = 7;
    pub(crate) const FSID: u32 = 8;
    pub(crate) const UNIQUE_HANDLES: u32 = 9;
    pub(crate) const LEASE_TIME: u32 = 10;
    pub(crate) const RDATTR_ERROR: u32 = 11;
    pub(crate) const CANSETTIME: u32 = 15;
    pub(crate) const CASE_INSENSITIVE: u32 = 16;
    pub(crate) const CASE_PRESERVING: u32 = 17;
    pub(crate) const CHOWN_RESTRICTED: u32 = 18;
    pub(crate) const FILEHANDLE: u32 = 19;
    pub(crate) const FILEID: u32 = 20;
    pub(crate) const FILES_AVAIL: u32 = 21;
    pub(crate) const FILES_FREE: u32 = 22;
    pub(crate) const FILES_TOTAL: u32 = 23;
    pub(crate) const HOMOGENEOUS: u32 = 26;
    pub(crate) const MAXFILESIZE: u32 = 27;
    pub(crate) const MAXLINK: u32 = 28;
    pub(crate) const MAXNAME: u32 = 29;
    pub(crate) const MAXREAD: u32 = 30;
    pub(crate) const MAXWRITE: u32 = 31;
    pub(crate) const MODE: u32 = 33;
    pub(crate) const NO_TRUNC: u32 = 34;
    pub(crate) const NUMLINKS: u32 = 35;
    pub(crate) const OWNER: u32 = 36;
    pub(crate) const OWNER_GROUP: u32 = 37;
    pub(crate) const RAWDEV: u32 = 41;
    pub(crate) const SPACE_AVAIL: u32 = 42;
    pub(crate) const SPACE_FREE: u32 = 43;
    pub(crate) const SPACE_TOTAL: u32 = 44;
    pub(crate) const SPACE_USED: u32 = 45;
    pub(crate) const TIME_ACCESS: u32 = 47;
    pub(crate) const TIME_ACCESS_SET: u32 = 48;
    pub(crate) const TIME_CREATE: u32 = 50;
    pub(crate) const TIME_DELTA: u32 = 51;
    pub(crate) const TIME_METADATA: u32 = 52;
    pub(crate) const TIME_MODIFY: u32 = 53;
    pub(crate) const TIME_MODIFY_SET: u32 = 54;
    pub(crate) const MOUNTED_ON_FILEID: u32 = 55;
    pub(crate) const SUPPATTR_EXCLCREAT: u32 = 75;
}

/// nfs_ftype4.
pub(crate) mod ftype {
    pub(crate) const REG: u32 = 1;
    pub(crate) const DIR: u32 = 2;
    pub(crate) const BLK: u32 = 3;
    pub(crate) const CHR: u32 = 4;
    pub(crate) const LNK: u32 = 5;
    pub(crate) const SOCK: u32 = 6;
    pub(crate) const FIFO: u32 = 7;
}

/// Bits of sr_status_flags.
pub(crate) mod seq4 {
    pub(crate) const CB_PATH_DOWN: u32 = 0x1;
    pub(crate) const EXPIRED_ALL_STATE_REVOKED: u32 = 0x8;
    pub(crate) const EXPIRED_SOME_STATE_REVOKED: u32 = 0x10;
    pub(crate) const ADMIN_STATE_REVOKED: u32 = 0x20;
    pub(crate) const RESTART_RECLAIM_NEEDED: u32 = 0x100;
    pub(crate) const BACKCHANNEL_FAULT: u32 = 0x400;
}

/// stable_how4.
pub(crate) mod stable {
    pub(crate) const UNSTABLE: u32 = 0;
    pub(crate) const DATA_SYNC: u32 = 1;
    pub(crate) const FILE_SYNC: u32 = 2;
}

/// ACCESS4 bits.
pub(crate) mod access {
    pub(crate) const READ: u32 = 0x1;
    pub(crate) const LOOKUP: u32 = 0x2;
    pub(crate) const MODIFY: u32 = 0x4;
    pub(crate) const EXTEND: u32 = 0x8;
    pub(crate) const DELETE: u32 = 0x10;
    pub(crate) const EXECUTE: u32 = 0x20;
}
